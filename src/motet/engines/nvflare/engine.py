"""An engine whose letters go through NVFlare's proxies to the agents of real sites."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from motet.agent.messages import as_now
from motet.core import wire
from motet.core.errors import SiteError
from motet.core.messages import Reply, Request, Traits
from motet.engines.nvflare.line import SILENCE, JobEndedError, Line, Proxy

LOG = logging.getLogger("motet.nvflare")


class NvflareEngine:
    """Asks sites through NVFlare, all at the same time, and asks anew what got lost on the way.

    proxies: NVFlare's, by the site's name, which is the one in its certificate and Motet's own.
    recipe: its digest, which the sites must share. wait: seconds until all must have said hello.
    patience: seconds for which a site may be away before its reply is given up. aborted: whether
    NVFlare ends the job. tell: called with a site's name and what is wrong there, "" for nothing
    any more. Raises SiteError
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
        self._replies: SimpleQueue[Reply | JobEndedError] = SimpleQueue()
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
        for request, down in as_now(requests):
            self._lines[request.site].put(request, down)
            self._open += 1

    def recv(self, timeout: float | None = None) -> Reply | None:
        """The next reply; None when none came in time, or when nothing is asked any more.

        Raises JobEndedError when NVFlare ends the job, as it does when one of its processes dies.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self._open:
            left = 1.0 if end is None else min(1.0, end - time.monotonic())
            try:
                reply = self._replies.get(timeout=max(left, 0.0))
            except Empty:
                if self._aborted():
                    raise JobEndedError("NVFlare ended the job") from None
                if end is not None and time.monotonic() >= end:
                    return None
                continue
            self._open -= 1
            if isinstance(reply, JobEndedError):
                raise reply
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
    LOG.warning("%s: %s", who, what or "is there again")
