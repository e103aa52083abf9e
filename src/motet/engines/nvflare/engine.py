"""An engine whose letters go through NVFlare's proxies to the agents of real sites."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from motet.agent.messages import about, ask, asked, read_hello, read_reply
from motet.core import wire
from motet.core.errors import MotetError, SiteError, WireError
from motet.core.messages import Reply, Request, Traits
from motet.core.tree import Tree, clone
from motet.engines.nvflare.letters import HOLD, PENDING, QUESTION, REPLY, WAIT, name_of

LOG = logging.getLogger("motet.nvflare")
# Seconds between two tries to reach a site.
AGAIN = (0.2, 1.0, 3.0, 10.0)
# Seconds beyond HOLD without any sign of life after which a call is given up.
SILENCE = 20.0


class Proxy(Protocol):
    """A site as NVFlare lets the hub call it: ``proxy(timeout=30).ask(letter)``."""

    def __call__(self, *, timeout: float) -> Any:
        """The same site, with another time to wait."""


class Unreachable(Exception):  # noqa: N818
    """Nobody answers now; the question may be put again."""


class NvflareEngine:
    """Asks sites through NVFlare, all at the same time, and asks anew what got lost on the way.

    proxies: NVFlare's, by the site's name, which is the one in its certificate and Motet's own.
    recipe: its digest, which the sites must share. wait: seconds until all must have said hello.
    patience: seconds for which a site may be away before its reply is given up. aborted: whether
    NVFlare ends the job. tell: called with a site's name and what is wrong there. Raises SiteError
    when sites are missing, or were set up for something else.
    """

    def __init__(
        self,
        proxies: Mapping[str, Proxy],
        *,
        recipe: str,
        wait: float = 600.0,
        patience: float = 600.0,
        silence: float = SILENCE,
        limit: int = wire.MAX_BYTES,
        aborted: Callable[[], bool] = lambda: False,
        tell: Callable[[str, str], None] | None = None,
    ) -> None:
        self._replies: SimpleQueue[Reply] = SimpleQueue()
        self._open = 0
        self._aborted = aborted
        say = _in_turn(tell or _log)
        self._lines = {
            name: Line(name, proxy, recipe, self._replies, patience, silence, limit, say)
            for name, proxy in sorted(proxies.items())
        }
        try:
            self._traits = self._meet(wait)
        except BaseException:
            self.close()
            raise

    def _meet(self, wait: float) -> dict[str, Traits]:
        """Waits until every site has said hello."""
        end = time.monotonic() + wait
        for line in self._lines.values():
            line.greet(wait)
        found = {name: line.met(end) for name, line in self._lines.items()}
        missing = [name for name, traits in found.items() if traits is None]
        if missing:
            told = "; ".join(f"{name}: {self._lines[name].trouble}" for name in missing)
            raise SiteError(
                f"no hello from {', '.join(missing)} within {wait:g} s; start the agent there, or "
                f"look at its log ({told})"
            )
        return {name: traits for name, traits in found.items() if traits is not None}

    def sites(self) -> Mapping[str, Traits]:
        """All sites by name."""
        return self._traits

    def send(self, requests: Sequence[Request]) -> None:
        """Puts the requests on their way, as they are now.

        Raises WireError, and sends nothing, for a payload that cannot travel.
        """
        sizes = [wire.frame_size(asked(request)) for request in requests]
        shared: dict[int, Tree] = {}
        for request, down in zip(requests, sizes, strict=True):
            # What the hub does to its tensors later on must not reach a site that is asked late.
            if id(request.shared) not in shared:
                shared[id(request.shared)] = clone(request.shared)
            once = shared[id(request.shared)]
            self._lines[request.site].put(
                replace(request, shared=once, own=clone(request.own)), down
            )
            self._open += 1

    def recv(self, timeout: float | None = None) -> Reply | None:
        """The next reply; None when none came in time, or when nothing is asked any more.

        Raises SiteError when NVFlare ends the job.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self._open:
            left = 1.0 if end is None else min(1.0, end - time.monotonic())
            try:
                reply = self._replies.get(timeout=max(left, 0.0))
            except Empty:
                if self._aborted():
                    raise SiteError("NVFlare ended the job") from None
                if end is not None and time.monotonic() >= end:
                    return None
                continue
            self._open -= 1
            return reply
        return None

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes of the letters that went to the sites and came from them, so far."""
        lines = self._lines.values()
        return sum(line.sent for line in lines), sum(line.received for line in lines)

    def close(self) -> None:
        """Asks no more; what a site still works on stays in its agent."""
        self._open = 0
        for line in self._lines.values():
            line.close()


def connect(sites: Sequence[str], **options: Any) -> NvflareEngine:
    """An engine for these sites in NVFlare's job that runs here; options as for the engine.

    To be called by what ``@collab.main`` marks. Raises SiteError for a site that has no part in it.
    """
    from nvflare.collab import collab

    context = collab.context
    proxies = {proxy.name: proxy for proxy in context.clients}
    missing = [name for name in sites if name not in proxies]
    if missing:
        raise SiteError(
            f"NVFlare's job has no client {missing[0]!r}; it has {', '.join(sorted(proxies))}, and "
            "a client must be named as its site in the recipe"
        )
    known = {name: proxies[name] for name in sites}
    return NvflareEngine(known, aborted=lambda: bool(context.is_aborted()), **options)


class Line:
    """One site as the hub sees it: a thread asks it one thing after the other."""

    def __init__(
        self,
        site: str,
        proxy: Proxy,
        recipe: str,
        replies: SimpleQueue[Reply],
        patience: float,
        silence: float,
        limit: int,
        tell: Callable[[str, str], None],
    ) -> None:
        self.site = site
        self.trouble = ""
        self.sent = self.received = 0
        self._proxy = proxy
        self._recipe = recipe
        self._replies = replies
        self._patience = patience
        self._silence = silence
        self._limit = limit
        self._tell = tell
        self._clock = 0.0
        self._traits: Traits | None = None
        self._refusal: MotetError | None = None
        self._greeted = threading.Event()
        self._closing = threading.Event()
        self._errands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._run, name=f"site {site}", daemon=True).start()

    def greet(self, wait: float) -> None:
        """Asks the site who it is, for so many seconds."""
        self._errands.put(lambda: self._greet(wait))

    def met(self, end: float) -> Traits | None:
        """What it said, None when it said nothing by then; raises what speaks against it."""
        self._greeted.wait(max(end - time.monotonic(), 0.0))
        if self._refusal is not None:
            raise self._refusal
        return self._traits

    def put(self, request: Request, down: int) -> None:
        """Queues a request, whose frame is counted as ``down`` bytes."""
        self._errands.put(lambda: self._answer(request, down))

    def close(self) -> None:
        """Ends the thread after the call that is under way."""
        self._closing.set()
        self._errands.put(None)

    def _run(self) -> None:
        while (errand := self._errands.get()) is not None and not self._closing.is_set():
            errand()

    def _greet(self, wait: float) -> None:
        try:
            tree = self._exchange(lambda: about("hello", recipe=self._recipe), wait)
            name, traits = read_hello(tree, self._recipe)
            if name != self.site:
                raise SiteError(
                    f"NVFlare's client {self.site} has the agent of site {name}; give every site "
                    "its own folder of what motet deploy wrote"
                )
            self._traits = traits
        except MotetError as error:
            self._refusal = error
        except Unreachable:
            pass
        finally:
            self._greeted.set()

    def _answer(self, request: Request, down: int) -> None:
        where = f"site {request.site}, round {request.round}, operation {request.op}"
        try:
            tree = self._exchange(lambda: self._question(request), self._patience)
            reply = read_reply(tree, request)
        except Unreachable as error:
            told = f"{where}: not reached for {self._patience:g} s: {error}"
            reply = Reply(request.site, request.tag, error=told)
        except WireError as error:
            told = f"{where}: what came back is no reply: {error}"
            reply = Reply(request.site, request.tag, error=told)
        except Exception as error:
            # The hub must not wait for ever, whatever went wrong here.
            told = f"{where}: the engine failed: {type(error).__name__}: {error}"
            reply = Reply(request.site, request.tag, error=told)
        up = 0 if reply.value is None else wire.frame_size(reply.value)
        self._replies.put(replace(reply, down=down, up=up))

    def _question(self, request: Request) -> Tree:
        # A clock that is set back must not make a question older than the one before.
        self._clock = max(time.time(), self._clock)
        return ask(request, self._recipe, sent=self._clock)

    def _exchange(self, make: Callable[[], Tree], patience: float) -> Tree:
        """The reply's tree; asks anew until the site was away for ``patience`` seconds on end.

        A site that is asked anew does the work once: agents keep what they answered.
        """
        trouble: float | None = None
        tries = 0
        while True:
            began = time.monotonic()
            try:
                return wire.decode(self._carry(wire.encode(make())), max_bytes=self._limit)
            except Unreachable as error:
                now = time.monotonic()
                if trouble is None or now - began > 2 * (HOLD + self._silence):
                    # It was there, and at work, for most of that time.
                    trouble, tries = now, 0
                self._say(str(error))
                pause = AGAIN[min(tries, len(AGAIN) - 1)]
                tries += 1
                if now + pause - trouble > patience or self._closing.wait(pause):
                    raise

    def _carry(self, frame: bytes) -> bytes:
        """The agent's frame in return for this one; raises Unreachable."""
        letter = self._call(QUESTION + frame)
        while letter == PENDING:
            if self._closing.is_set():
                raise Unreachable("the engine was closed")
            letter = self._call(WAIT + name_of(frame))
        if letter[:1] != REPLY:
            raise Unreachable(letter[1:400].decode(errors="replace") or "no answer")
        self._say("")
        return letter[1:]

    def _call(self, letter: bytes) -> bytes:
        try:
            found = self._proxy(timeout=HOLD + self._silence).ask(letter)
        except Exception as error:
            # What NVFlare raises depends on where it broke; that it broke is what counts.
            raise Unreachable(f"NVFlare could not deliver it: {_short(error)}") from error
        if not isinstance(found, bytes):
            raise Unreachable(f"NVFlare brought a {type(found).__name__} and no bytes")
        self.sent += len(letter)
        self.received += len(found)
        return found

    def _say(self, what: str) -> None:
        if what != self.trouble:
            self.trouble = what
            self._tell(self.site, what or "is there again")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _in_turn(tell: Callable[[str, str], None]) -> Callable[[str, str], None]:
    """The same function for several threads, one after the other; it cannot fail them."""
    lock = threading.Lock()

    def told(who: str, what: str) -> None:
        with lock:
            try:
                tell(who, what)
            except Exception as error:
                LOG.warning("%s: %s (which could not be told: %s)", who, what, error)

    return told


def _log(who: str, what: str) -> None:
    LOG.warning("%s: %s", who, what)
