"""One site as a hub sees it through NVFlare: asked one thing after the other, and asked anew."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, Protocol

from motet.agent.messages import about, ask, read_hello, read_reply
from motet.core import wire
from motet.core.errors import MotetError, SiteError, WireError
from motet.core.messages import Reply, Request, Traits
from motet.core.tree import Tree
from motet.engines.nvflare.letters import HOLD, PENDING, QUESTION, REPLY, WAIT, name_of

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


class Undelivered(Unreachable):
    """NVFlare itself did not reach the site's process."""


class JobEndedError(Exception):
    """NVFlare's job ends; no MotetError, since the run has not stopped: another job goes on."""


class Line:
    """One site as the hub sees it: a thread asks it one thing after the other."""

    def __init__(
        self,
        site: str,
        proxy: Proxy,
        recipe: str,
        replies: SimpleQueue[Reply | JobEndedError],
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
            tree = self._exchange(lambda: about("hello", self.site, self._recipe), wait)
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
            if isinstance(error, Undelivered) and request.op.startswith("@"):
                # A checkpoint needs all sites, and NVFlare lets nobody into a job that runs. In
                # the next one, which begins when all are there, the site takes part again.
                self._replies.put(JobEndedError(f"{where}: {error}"))
                return
            told = f"{where}: not reached for {self._patience:g} s: {error}"
            reply = Reply(request.site, request.tag, error=told, lost=True)
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
            raise Undelivered(f"NVFlare could not deliver it: {_short(error)}") from error
        if not isinstance(found, bytes):
            raise Unreachable(f"NVFlare brought a {type(found).__name__} and no bytes")
        self.sent += len(letter)
        self.received += len(found)
        return found

    def _say(self, what: str) -> None:
        if what != self.trouble:
            self.trouble = what
            self._tell(self.site, what)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
