"""A tap on the line between hub and sites: what whoever runs the hub really sees of each reply."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from motet.core.errors import MotetError
from motet.core.guard import OWN, Passage, Protection
from motet.core.kinds import Kind
from motet.core.messages import Engine, Reply, Request, Traits
from motet.core.method import Method
from motet.core.middleware import unpack_all
from motet.core.tree import Tree, clone, leaves

MOST_BYTES = 256 * 2**20
# Kinds whose values are real numbers, so that one without any is a secret share of a sum.
REAL = frozenset(
    {
        Kind.WEIGHTS,
        Kind.CONTROL,
        Kind.GRADIENTS,
        Kind.REPRESENTATIONS,
        Kind.LOGITS,
        Kind.ACTIVATIONS,
    }
)


class Enough(Exception):  # noqa: N818 - not an error
    """Ends a run of which the tap has seen what it was to see; no error of Motet's."""


@dataclass(frozen=True)
class Seen:
    """One question to a site and its answer, with codecs and guards undone as the hub does.

    sends: top-level key of the reply -> kind. sent: what the site was asked with. reply: its
    answer. up: bytes of the answer's frame. problem: why the answer could not be undone, and is
    kept as it travelled; "" for none.
    """

    site: str
    op: str
    tag: str
    round: int
    sends: Mapping[str, Kind]
    sent: Tree
    reply: Tree
    up: int = 0
    problem: str = ""

    def masked(self, key: str) -> bool:
        """Whether real numbers are meant under this key, and none can be read: a secret sum."""
        if self.sends.get(key) not in REAL or key not in self.reply:
            return False
        found = [leaf for _, leaf in leaves(self.reply[key])]
        return not any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in found)


class Tap:
    """An engine that passes everything on unchanged, and keeps a copy of what the hub receives.

    sites: whose replies are kept; None for all. protection: that of the run, whose codecs and
    guards are undone as the hub undoes them: noise stays in, masks stay on. rounds: raises
    ``Enough`` when a further round begins after so many in which one of the ``counted`` sites
    answered (None: any whose replies are kept); None never ends a run. most_bytes: at most so many
    bytes of tensors are kept, of which the oldest go first; ``dropped`` counts what went.
    """

    def __init__(
        self,
        engine: Engine,
        method: Method,
        *,
        protection: Protection | None = None,
        sites: Collection[str] | None = None,
        counted: Collection[str] | None = None,
        rounds: int | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.engine = engine
        self.dropped = 0
        self._operations = method.operations()
        self._protection = protection or Protection()
        self._sites = None if sites is None else frozenset(sites)
        self._counted = self._sites if counted is None else frozenset(counted)
        self._rounds = rounds
        self._most = most_bytes
        self._asked: dict[tuple[str, str], Request] = {}
        self._kept: deque[tuple[Seen, int]] = deque()
        self._bytes = 0
        self._moments: set[str] = set()
        # What the last question told all sites: sent, and as it is kept.
        self._shared: tuple[Tree, Tree] = ({}, {})

    @property
    def seen(self) -> tuple[Seen, ...]:
        """What was kept, the oldest first."""
        return tuple(item for item, _ in self._kept)

    @property
    def bytes(self) -> int:
        """Bytes of the tensors that are kept."""
        return self._bytes

    def of(self, site: str, kind: Kind | None = None) -> list[Seen]:
        """What is kept of this site, or those replies alone that have a key of this kind."""
        found = [item for item in self.seen if item.site == site]
        if kind is None:
            return found
        return [item for item in found if any(item.sends.get(key) == kind for key in item.reply)]

    def sites(self) -> Mapping[str, Traits]:
        """All sites by name."""
        return self.engine.sites()

    def send(self, requests: Sequence[Request]) -> None:
        """Passes the requests on, and notes those whose answers are to be kept."""
        for request in requests:
            if request.op in self._operations:
                self._end_before(_moment(request.tag))
                if self._sites is None or request.site in self._sites:
                    self._asked[request.site, request.tag] = request
        self.engine.send(requests)

    def _end_before(self, moment: str) -> None:
        full = self._rounds is not None and len(self._moments) >= self._rounds
        if full and moment not in self._moments:
            raise Enough

    def recv(self, timeout: float | None = None) -> Reply | None:
        """The next reply, of which a copy stays here."""
        reply = self.engine.recv(timeout)
        if reply is not None:
            request = self._asked.pop((reply.site, reply.tag), None)
            if request is not None and reply.value is not None:
                self._keep(request, reply)
        return reply

    def close(self) -> None:
        """Closes the engine; what was seen stays."""
        self._asked.clear()
        self.engine.close()

    def _keep(self, request: Request, reply: Reply) -> None:
        known = request.shared is self._shared[0]
        item = self._opened(request, reply)
        # What all sites were told is held, and counted, once.
        size = _bytes(item.reply) + _bytes(request.own if known else item.sent)
        if self._counted is None or request.site in self._counted:
            self._moments.add(_moment(request.tag))
        self._kept.append((item, size))
        self._bytes += size
        while self._bytes > self._most:
            _, freed = self._kept.popleft()
            self._bytes -= freed
            self.dropped += 1

    def _opened(self, request: Request, reply: Reply) -> Seen:
        """The exchange as the hub reads it; its tensors are copies."""
        sends = self._operations[request.op].sends
        codecs = self._protection.middleware
        if request.shared is not self._shared[0]:
            self._shared = (request.shared, unpack_all(codecs, clone(request.shared)))
        payload = {**self._shared[1], **unpack_all(codecs, clone(request.own))}
        own = {key: value for key, value in payload.items() if key.startswith(OWN)}
        sent = {key: value for key, value in payload.items() if key not in own}
        passage = Passage(request.site, request.op, request.tag, request.round, sends, sent, own)
        value: Any = clone(reply.value)
        problem = ""
        try:
            opened = unpack_all(codecs, value)
            for guard in reversed(self._protection.guards):
                opened = guard.arrive(opened, passage)
            value = {key: item for key, item in opened.items() if not key.startswith(OWN)}
        except MotetError as error:
            problem = str(error)
        return Seen(
            request.site, request.op, request.tag, request.round, sends, sent, value, reply.up,
            problem,
        )  # fmt: skip


def _moment(tag: str) -> str:
    """Loop and round of a question, which begin its tag."""
    return tag.rpartition(".")[0]


def _bytes(tree: Tree) -> int:
    return sum(leaf.nbytes for _, leaf in leaves(tree) if isinstance(leaf, Tensor))
