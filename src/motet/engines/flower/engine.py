"""An engine whose messages go through Flower's Grid to the agents of real sites."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import Array, Message
from flwr.serverapp import Grid

from motet.agent.messages import about, ask, asked, read_hello, read_reply
from motet.core import wire
from motet.core.errors import MotetError, SiteError, WireError
from motet.core.messages import Reply, Request, Traits
from motet.engines.flower.records import (
    MESSAGE_TYPE,
    RecordError,
    framed,
    question,
    reply_frame,
)

LOG = logging.getLogger("motet.flower")
# Seconds between two looks at who is connected, and between two tries to reach a site.
WATCH = 3.0
AGAIN = (1.0, 3.0, 10.0, 30.0)
# Seconds after which a question is asked again though nothing is known to be wrong, twice as many
# each time: a SuperNode that cannot pass a reply on drops it without a word, and an agent that is
# asked again answers from memory.
REPEAT = 120.0
AWAY = "its SuperNode is not connected"
# Whoever had a question for so long before it failed was reachable then.
STEADY = 30.0


@dataclass
class _Node:
    """A SuperNode: its key, since when it is connected, whose it is, and how asking that went."""

    key: bytes
    activated: str
    site: str | None = None
    tries: int = 0
    next: float = 0.0
    hello: str | None = None
    sent: float = 0.0
    here: bool = True


@dataclass
class _Errand:
    """A question on its way, until its one reply is there."""

    request: Request
    down: int
    frames: dict[str, Array]
    messages: set[str] = field(default_factory=set)
    sent: float = 0.0
    repeat: float = REPEAT
    tries: int = 0
    next: float = 0.0
    trouble: float | None = None
    reason: str = ""


class FlowerEngine:
    """Asks sites through a Grid, and asks anew when something on the way was restarted.

    sites: the names that may take part, each with its public key as PEM; None where SuperNodes are
    not authenticated. A site is known by the name that its agent tells; with keys, only by the
    SuperNode with that key. recipe: its digest, which the sites must share. wait: seconds until
    all must have said hello. patience: seconds for which a site may be away before its reply is
    given up. pause: seconds between two looks for replies. tell: called with a site's name and
    what is wrong there, whenever that changes; "" for nothing any more. Raises SiteError when
    sites are missing, or were set up for something else.
    """

    def __init__(
        self,
        grid: Grid,
        sites: Mapping[str, bytes | None],
        *,
        recipe: str,
        wait: float = 600.0,
        patience: float = 600.0,
        pause: float = 0.2,
        limit: int = wire.MAX_BYTES,
        tell: Callable[[str, str], None] | None = None,
    ) -> None:
        self.grid = grid
        self.patience = patience
        self.pause = pause
        self.limit = limit
        self._recipe = recipe
        self._keys = {name: None if key is None else key.strip() for name, key in sites.items()}
        self._tell = tell or _log
        self._told: dict[str, str] = {}
        self._traits: dict[str, Traits] = {}
        self._nodes: dict[int, _Node] = {}
        self._node_of: dict[str, int] = {}
        self._hellos: dict[str, int] = {}
        self._errands: dict[tuple[str, str], _Errand] = {}
        self._asked: dict[str, tuple[str, str]] = {}
        self._ready: deque[Reply] = deque()
        self._watched = float("-inf")
        self._clock = 0.0
        self._meet(wait)

    def sites(self) -> Mapping[str, Traits]:
        """All sites by name."""
        return self._traits

    def send(self, requests: Sequence[Request]) -> None:
        """Puts the requests on their way; what they share is encoded once."""
        shared: dict[int, Array] = {}
        errands = []
        for request in requests:
            down = wire.frame_size(asked(request))
            if id(request.shared) not in shared:
                shared[id(request.shared)] = framed(wire.encode(request.shared))
            frames = {"shared": shared[id(request.shared)]} if request.shared else {}
            if request.own:
                frames["own"] = framed(wire.encode(request.own))
            errands.append(_Errand(request, down, frames))
        for errand in errands:
            self._errands[_key(errand)] = errand
        self._send_due()

    def recv(self, timeout: float | None = None) -> Reply | None:
        """The next reply; None when none came in time, or when nothing is asked any more."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._ready and self._errands:
            self._look()
            now = time.monotonic()
            if self._ready or (end is not None and now >= end):
                break
            time.sleep(self.pause if end is None else min(self.pause, end - now))
        return self._ready.popleft() if self._ready else None

    def close(self) -> None:
        """Forgets what is still asked; the Grid is Flower's own."""
        self._errands.clear()
        self._asked.clear()
        self._hellos.clear()

    def _meet(self, wait: float) -> None:
        """Waits until every site has said hello."""
        end = time.monotonic() + wait
        while missing := sorted(self._keys.keys() - self._traits.keys()):
            if time.monotonic() > end:
                told = "; ".join(
                    f"{who}: {what}" for who, what in sorted(self._told.items()) if what
                )
                raise SiteError(
                    f"no hello from {', '.join(missing)} within {wait:g} s; start agent and "
                    f"SuperNode there, or look at their logs ({told or 'no other node is there'})"
                )
            self._look()
            time.sleep(self.pause)

    def _look(self) -> None:
        """Takes what has come, sees who is there, and repeats what got lost."""
        self._asked = {n: key for n, key in self._asked.items() if key in self._errands}
        if numbers := [*self._hellos, *self._asked]:
            for message in self.grid.pull_messages(numbers):
                self._take(message)
        now = time.monotonic()
        if now - self._watched >= WATCH:
            self._watched = now
            self._watch(now)
        self._send_due()

    def _send_due(self) -> None:
        """Sends what is to be sent, and gives up what waited for too long."""
        now = time.monotonic()
        due = []
        for errand in list(self._errands.values()):
            here = self._nodes[self._node_of[errand.request.site]].here
            if errand.messages:
                if here and now - errand.sent > errand.repeat:
                    errand.repeat *= 2
                    due.append(errand)
                continue
            if not here:
                errand.trouble = errand.trouble or now
                errand.reason = AWAY
            if errand.trouble is not None and now - errand.trouble > self.patience:
                self._give_up(errand)
            elif here and now >= errand.next:
                due.append(errand)
        self._push(due)

    def _take(self, message: Message) -> None:
        number = message.metadata.reply_to_message_id
        node = self._hellos.pop(number, None)
        errand = self._errands.get(self._asked.pop(number, ("", "")))
        try:
            if message.has_error():
                raise RecordError(f"Flower could not deliver it: {message.error.reason}")
            frame = reply_frame(message.content)
        except RecordError as error:
            if node is not None:
                self._not_met(node, str(error))
            elif errand is not None:
                self._failed(errand, number, str(error))
            return
        if node is not None:
            self._introduce(node, frame)
        elif errand is not None:
            self._answered(errand, frame)

    def _answered(self, errand: _Errand, frame: bytes) -> None:
        request, down = errand.request, errand.down
        try:
            found = read_reply(wire.decode(frame, max_bytes=self.limit), request)
        except WireError as error:
            told = f"{_about(request)}: what came back is no reply: {error}"
            found = Reply(request.site, request.tag, error=told)
        up = 0 if found.value is None else wire.frame_size(found.value)
        self._done(errand, replace(found, down=down, up=up))

    def _give_up(self, errand: _Errand) -> None:
        request = errand.request
        told = f"{_about(request)}: not reached for {self.patience:g} s: {errand.reason}"
        reply = Reply(request.site, request.tag, error=told, down=errand.down, lost=True)
        self._done(errand, reply)

    def _done(self, errand: _Errand, reply: Reply) -> None:
        del self._errands[_key(errand)]
        self._say(errand.request.site, "")
        self._ready.append(reply)

    def _failed(self, errand: _Errand, number: str, reason: str) -> None:
        """Notes that a sending came to nothing; the question is repeated after a while."""
        errand.messages.discard(number)
        now = time.monotonic()
        if errand.trouble is None or now - errand.sent > STEADY:
            errand.trouble = now
            errand.tries = 0
        errand.reason = reason
        errand.next = now + _delay(errand.tries)
        errand.tries += 1
        self._say(errand.request.site, reason)

    def _push(self, errands: Sequence[_Errand]) -> None:
        """Sends these questions to where their sites are now."""
        if not errands:
            return
        numbers = list(self.grid.push_messages([self._message(errand) for errand in errands]))
        # A SuperLink that finds all of them too large takes none, and says so by none.
        numbers += [""] * (len(errands) - len(numbers))
        for errand, number in zip(errands, numbers, strict=True):
            errand.sent = time.monotonic()
            if number:
                errand.messages.add(number)
                self._asked[number] = _key(errand)
            else:
                self._failed(errand, "", "the SuperLink did not take the message")

    def _message(self, errand: _Errand) -> Message:
        request = errand.request
        # A clock that is set back must not make a question older than the one before.
        self._clock = max(time.time(), self._clock)
        head = ask(replace(request, shared={}, own={}), self._recipe, sent=self._clock)
        records = question(head, errand.frames)
        node = self._node_of[request.site]
        return Message(records, node, MESSAGE_TYPE, group_id=str(request.round))

    def _watch(self, now: float) -> None:
        """Sees who is connected: says hello to new ones, and asks restarted ones anew."""
        infos = {info.node_id: info for info in self.grid.get_nodes()}
        for number, info in infos.items():
            node = self._nodes.setdefault(
                number, _Node(bytes(info.public_key).strip(), info.last_activated_at)
            )
            if node.activated != info.last_activated_at:
                node.activated = info.last_activated_at
                node.hello = None
                self._lost(number, "its SuperNode was restarted")
            unheard = node.hello is None or now - node.sent > REPEAT
            if node.site is None and unheard and now >= node.next:
                self._greet(number, node)
        for number, node in self._nodes.items():
            node.here = number in infos
            if not node.here and node.site is not None and self._node_of[node.site] == number:
                self._lost(number, AWAY)
                self._say(node.site, AWAY)

    def _lost(self, number: int, reason: str) -> None:
        """Repeats what was asked through a SuperNode that went away.

        It may come twice: agents keep what they answered, and the first reply counts.
        """
        for errand in self._errands.values():
            if self._node_of.get(errand.request.site) == number:
                for message in list(errand.messages):
                    self._failed(errand, message, reason)

    def _greet(self, number: int, node: _Node) -> None:
        """Asks a SuperNode's agent who it is; where sites have keys, only one with such a key."""
        keys = self._keys.values()
        if None not in keys and node.key not in keys:
            node.next = float("inf")
            self._say(f"node {number}", "its key is no site's, and it is asked nothing")
            return
        message = Message(question(about("hello", recipe=self._recipe), {}), number, MESSAGE_TYPE)
        numbers = list(self.grid.push_messages([message]))
        if not numbers or not numbers[0]:
            self._not_met(number, "the SuperLink did not take the message")
            return
        node.hello, node.sent = numbers[0], time.monotonic()
        self._hellos[numbers[0]] = number

    def _not_met(self, number: int, reason: str) -> None:
        node = self._nodes[number]
        node.hello = None
        node.next = time.monotonic() + _delay(node.tries)
        node.tries += 1
        self._say(f"node {number}", reason)

    def _introduce(self, number: int, frame: bytes) -> None:
        """Takes a site's word for who it is, where no key says otherwise."""
        node = self._nodes[number]
        try:
            site, traits = read_hello(wire.decode(frame, max_bytes=self.limit), self._recipe)
            self._check(site, traits, node)
        except MotetError as error:
            if len(self._traits) < len(self._keys) and isinstance(error, SiteError):
                raise
            self._not_met(number, str(error))
            return
        if site not in self._keys:
            node.next, node.hello = float("inf"), None
            self._say(f"node {number}", f"it is site {site!r:.80}, which has no part in this run")
            return
        self._traits[site] = traits
        node.site = site
        self._node_of[site] = number
        self._say(f"node {number}", "")
        self._say(site, "")
        for errand in self._errands.values():
            if errand.request.site == site:
                errand.messages.clear()
                errand.next = 0.0

    def _check(self, site: str, traits: Traits, node: _Node) -> None:
        if self._keys.get(site) not in (None, node.key):
            raise SiteError(
                f"a SuperNode with another site's key says that it is {site}; give every site its "
                "own folder of what motet deploy wrote"
            )
        known = self._traits.get(site, traits)
        if known != traits:
            raise SiteError(f"site {site} now holds {traits}, and it said {known} before")

    def _say(self, who: str, what: str) -> None:
        if self._told.get(who, "") != what:
            self._told[who] = what
            self._tell(who, what)


def _key(errand: _Errand) -> tuple[str, str]:
    return errand.request.site, errand.request.tag


def _delay(tries: int) -> float:
    return AGAIN[min(tries, len(AGAIN) - 1)]


def _about(request: Request) -> str:
    return f"site {request.site}, round {request.round}, operation {request.op}"


def _log(who: str, what: str) -> None:
    LOG.warning("%s: %s", who, what or "is there again")
