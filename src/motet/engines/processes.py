"""Sites in processes of their own on this machine: real agents, real sockets, all cores."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue

from motet.agent.client import Client
from motet.agent.messages import as_now, ask, read_reply
from motet.agent.protocol import ProtocolError
from motet.core import wire
from motet.core.errors import ConfigError, MotetError, SiteError
from motet.core.messages import Reply, Request, Traits
from motet.engines.nursery import nursery

# How often the same question is put to a process that dies over it.
ATTEMPTS = 4
LAST_WORDS = 400


@dataclass(frozen=True)
class Share:
    """The sites of one process, and the file from which it sets them up."""

    sites: tuple[str, ...]
    setup: bytes


class Processes:
    """Hosts sites in agent processes, asks them at the same time, and replaces those that die.

    traits: all sites. shares: which process has which. target: "module:function", which makes
    hosts of a set-up file. recipe: its digest. A process that dies is started anew and asked again
    under the same tag, which has its effect once, since agents keep what they answered.
    """

    def __init__(
        self,
        traits: Mapping[str, Traits],
        shares: Iterable[Share],
        *,
        target: str,
        recipe: str,
    ) -> None:
        if not hasattr(socket, "AF_UNIX") or not hasattr(os, "fork"):
            raise ConfigError("engine.name: processes needs Unix sockets and fork; write serial")
        self._traits = dict(traits)
        self._replies: SimpleQueue[Reply] = SimpleQueue()
        self._open = 0
        # Short, since the path of a socket may not be long.
        self.scratch = Path(tempfile.mkdtemp(prefix="motet-"))
        self.agents: list[Agent] = []
        try:
            for number, share in enumerate(shares):
                agent = Agent(number, share, target, self.scratch, recipe, self._replies)
                self.agents.append(agent)
        except BaseException:
            self.close()
            raise
        self._agent_of = {site: agent for agent in self.agents for site in agent.sites}

    def sites(self) -> Mapping[str, Traits]:
        """All sites by name."""
        return self._traits

    def send(self, requests: Sequence[Request]) -> None:
        """Hands the requests to the processes of their sites, as they are now.

        Raises WireError, and sends nothing, for a payload that cannot travel.
        """
        for request, down in as_now(requests):
            self._agent_of[request.site].put(request, down)
            self._open += 1

    def recv(self, timeout: float | None = None) -> Reply | None:
        """The next reply; None when none came in time, or when nothing is asked any more."""
        if not self._open:
            return None
        try:
            reply = self._replies.get(timeout=None if timeout is None else max(timeout, 0.0))
        except Empty:
            return None
        self._open -= 1
        return reply

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes that went to the sites and came from them over sockets, so far."""
        each = [agent.traffic for agent in self.agents]
        return sum(sent for sent, _ in each), sum(received for _, received in each)

    def close(self) -> None:
        """Ends all processes and removes their files."""
        for agent in self.agents:
            agent.close()
        for agent in self.agents:
            agent.join()
        self.agents = []
        self._open = 0
        shutil.rmtree(self.scratch, ignore_errors=True)


class Agent:
    """One agent process as the hub sees it: a thread asks it one thing after the other."""

    def __init__(
        self,
        number: int,
        share: Share,
        target: str,
        scratch: Path,
        recipe: str,
        replies: SimpleQueue[Reply],
    ) -> None:
        self.sites = share.sites
        self.pid: int | None = None
        self.starts = 0
        self._folder = scratch / str(number)
        self._folder.mkdir()
        self._setup = self._folder / "setup"
        self._setup.write_bytes(share.setup)
        self._target = target
        self._recipe = recipe
        self._replies = replies
        self._client: Client | None = None
        self._gone = (0, 0)
        self._clock = 0.0
        self._closing = threading.Event()
        self._requests: SimpleQueue[tuple[Request, int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"agent {number}", daemon=True)
        self._thread.start()

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received over its sockets so far."""
        client = self._client
        now = (0, 0) if client is None else (client.sent, client.received)
        return self._gone[0] + now[0], self._gone[1] + now[1]

    def put(self, request: Request, down: int) -> None:
        """Queues a request, whose frame is counted as ``down`` bytes."""
        self._requests.put((request, down))

    def _run(self) -> None:
        while (errand := self._requests.get()) is not None:
            request, down = errand
            try:
                reply = self._ask(request)
            except MotetError as error:
                reply = Reply(request.site, request.tag, error=str(error))
            except Exception as error:
                # The hub must not wait for ever, whatever went wrong here.
                told = f"site {request.site}: the engine failed: {type(error).__name__}: {error}"
                reply = Reply(request.site, request.tag, error=told)
            up = 0 if reply.value is None else wire.frame_size(reply.value)
            self._replies.put(replace(reply, down=down, up=up))

    def _ask(self, request: Request) -> Reply:
        ends: list[str] = []
        while len(ends) < ATTEMPTS and not self._closing.is_set():
            try:
                client = self._connected()
                # A clock that is set back must not make a question older than the one before.
                self._clock = max(time.time(), self._clock)
                frame = wire.encode(ask(request, self._recipe, sent=self._clock))
                reply = wire.decode(client.exchange(frame))
            except OSError as error:
                ends.append(self._end(str(error)))
                continue
            return read_reply(reply, request)
        about = f"site {request.site}, round {request.round}, operation {request.op}"
        if self._closing.is_set():
            raise SiteError(f"{about}: the engine was closed")
        raise SiteError(f"{about}: its process ended {len(ends)} times over it: {ends[-1]}")

    def _connected(self) -> Client:
        if self._client is None:
            at = self._folder / f"socket-{self.starts}"
            self.starts += 1
            self.pid = nursery(self._target).start(
                self._folder.parent, self._setup, at, self._folder / "log"
            )
            if self._closing.is_set():
                raise ProtocolError("the engine is being closed")
            self._client = Client(at)
        return self._client

    def _end(self, reason: str) -> str:
        """Makes sure that the process is no more; how it ended, with its last words."""
        pid, self.pid = self.pid, None
        self._gone = self.traffic
        client, self._client = self._client, None
        if client is not None:
            client.close()
        code = None if pid is None else nursery(self._target).end(pid, now=True)
        if code is not None:
            reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{reason}{self._last_words()}"

    def _last_words(self) -> str:
        with suppress(OSError):
            text = (self._folder / "log").read_text("utf-8", errors="replace").strip()
            if text:
                return f", after {text.splitlines()[-1][-LAST_WORDS:]!r}"
        return ""

    def close(self) -> None:
        """Asks the process to end, whatever it is doing."""
        self._closing.set()
        self._requests.put(None)

    def join(self) -> None:
        """Waits until it has ended."""
        pid = self.pid
        if pid is not None:
            nursery(self._target).end(pid, now=False)
        self._thread.join()
        self._end("closed")
