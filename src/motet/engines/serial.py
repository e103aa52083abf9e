"""All sites in this process, one after the other: the reference that other engines must equal."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from motet.core import wire
from motet.core.batch import Dataset
from motet.core.errors import MotetError
from motet.core.guard import Protection
from motet.core.messages import Reply, Request, Traits
from motet.core.method import Method
from motet.core.roster import Drawn, Roster
from motet.core.site import Door, Evaluate, Site, SiteSpec
from motet.core.store import Shelf
from motet.core.tree import Tree, separate
from motet.core.validate import row_order
from motet.engines.doors import Doors

# Sites of a large population whose traits are kept in mind.
TRAITS = 10_000


class Serial:
    """Runs each request when its reply is fetched.

    strict: pass every message through the wire format, both ways, as a network would. Otherwise
        payloads are copied and the size of their frames is worked out; results and bytes are
        the same.
    folder: where the sites keep their state; None keeps it in memory alone.
    live: how many sites are held in memory at a time; None for 1,000. The state of others waits in
        a temporary folder, and results are the same.
    repeats: whether a request may come again, so that sites must keep their last reply.
    """

    def __init__(
        self,
        specs: Sequence[SiteSpec],
        method: Method,
        *,
        seed: int,
        public: Dataset | None = None,
        evaluate: Evaluate | None = None,
        strict: bool = False,
        folder: Path | None = None,
        protection: Protection | None = None,
        live: int | None = None,
        repeats: bool = True,
    ) -> None:
        self.strict = strict

        def make(spec: SiteSpec) -> Door:
            return Door(
                Site(spec, seed=seed, public=public, evaluate=evaluate),
                method,
                shelf=None if folder is None else Shelf(folder / spec.name),
                protection=protection,
                repeats=repeats,
            )

        self._doors = Doors(specs, make, live=live, folder=folder)
        self._traits = traits_of(specs, row_order(public))
        self._queue: deque[Request] = deque()
        self._sized: tuple[Request, int] | None = None

    def sites(self) -> Mapping[str, Traits]:
        """All sites by name."""
        return self._traits

    def send(self, requests: Sequence[Request]) -> None:
        """Queues the requests."""
        self._queue.extend(requests)

    def recv(self, timeout: float | None = None) -> Reply | None:
        """Runs the oldest request and returns its reply; None when there is none left."""
        if not self._queue:
            return None
        return self._answer(self._queue.popleft())

    def _answer(self, request: Request) -> Reply:
        if self.strict:
            frame = wire.encode(_message(request))
            down = len(frame)
            request = _request(request.site, wire.decode(frame))
        else:
            down = self._size(request)
            # As on a network, neither side may see what the other does to its tensors later on.
            shared, own = separate(request.shared), separate(request.own)
            request = replace(request, shared=shared, own=own)
        try:
            value = self._doors[request.site].handle(request)
            if not self.strict:
                up = wire.frame_size(value)
                return Reply(request.site, request.tag, separate(value), None, down, up)
            reply = wire.encode(value)
        except MotetError as error:
            return Reply(request.site, request.tag, None, str(error), down)
        return Reply(request.site, request.tag, wire.decode(reply), None, down, len(reply))

    def _size(self, request: Request) -> int:
        """Bytes of the question's frame, worked out once for all sites that are asked the same."""
        if request.own:
            return wire.frame_size(_message(request))
        last = self._sized
        if last is None or last[0].shared is not request.shared or last[0].tag != request.tag:
            last = self._sized = (request, wire.frame_size(_message(request)))
        return last[1]

    def close(self) -> None:
        """Drops what is still queued, and what sites had put away."""
        self._queue.clear()
        self._doors.close()

    def holding(self) -> set[str]:
        """The sites that may hold something from before."""
        return self._doors.holding()


def traits_of(specs: Sequence[SiteSpec], public: str) -> Mapping[str, Traits]:
    """Site -> what the hub may know of it. public: the hash of the public rows."""
    if not isinstance(specs, Drawn):
        return {spec.name: replace(spec.traits, public=public) for spec in specs}
    named: Callable[[str], SiteSpec] = specs.named

    @lru_cache(maxsize=TRAITS)
    def make(name: str) -> Traits:
        return replace(named(name).traits, public=public)

    return Roster(specs.names, make)


def _message(request: Request) -> Tree:
    return {
        "op": request.op,
        "tag": request.tag,
        "round": request.round,
        "shared": request.shared,
        "own": request.own,
    }


def _request(site: str, message: Tree) -> Request:
    return Request(
        site, message["op"], message["tag"], message["round"], message["shared"], message["own"]
    )
