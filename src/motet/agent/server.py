"""The agent's server: many connections, one piece of work at a time, and an end that is clean."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType

from motet.agent.host import Host
from motet.agent.messages import Question, answered, read_question, refused
from motet.agent.protocol import (
    MAX_FRAME,
    PATIENCE,
    OversizeError,
    ProtocolError,
    address,
    receive_frame,
    send_frame,
)
from motet.core import wire
from motet.core.errors import ConfigError, MotetError, SiteError, StoreError
from motet.core.messages import Request
from motet.core.tree import Tree

MAX_CONNECTIONS = 32
# Seconds in which replies that are on their way must have left when the agent ends.
GRACE = 5.0


class Stopping(BaseException):
    """Raised in whatever is under way when the agent is to stop; it has no effect then."""


@dataclass
class _Job:
    host: Host
    question: Question
    request: Request
    done: threading.Event = field(default_factory=threading.Event)
    frame: bytes | None = None


class Server:
    """Answers what comes through a listening socket until it is told to stop.

    Operations run in the thread that calls ``serve``, one after the other; hello and status are
    answered at once. limit: the largest question that is read. hosts: of different names.
    """

    def __init__(
        self, hosts: Sequence[Host], listener: socket.socket, *, limit: int = MAX_FRAME
    ) -> None:
        self.hosts: Mapping[str, Host] = {host.name: host for host in hosts}
        self.limit = limit
        self._listener = listener
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._stopped = threading.Event()
        self._told_to_stop = False
        self._ending = False
        self._talks: dict[threading.Thread, socket.socket] = {}
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def serve(self) -> None:
        """Returns when the agent was told to stop; for the main thread, since it takes signals."""
        accepting = threading.Thread(target=self._accept, daemon=True)
        accepting.start()
        with self._signals():
            with suppress(Stopping):
                while (job := self._next()) is not None:
                    job.frame = self._work(job)
                    job.done.set()
            self._end(accepting)
        for host in self.hosts.values():
            host.close()

    def _end(self, accepting: threading.Thread) -> None:
        """Leaves no thread behind.

        One that is inside torch when the interpreter ends is torn out of it, and takes the process
        down with an abort.
        """
        self._ending = True
        self._stopped.set()
        with suppress(OSError):
            os.unlink(self._listener.getsockname())
        # Wakes who waits in accept; closing alone does not.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        accepting.join()
        end = time.monotonic() + GRACE
        for thread, connection in list(self._talks.items()):
            # Wakes who waits for a question; a reply that is on its way still goes out.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
            thread.join(max(end - time.monotonic(), 0.0))

    def _next(self) -> _Job | None:
        while True:
            # A signal that comes just before the wait begins would not end it.
            with suppress(Empty):
                return self._jobs.get(timeout=0.5)

    def stop(self) -> None:
        """Has ``serve`` return after what is under way."""
        self._stopped.set()
        self._jobs.put(None)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def leave(number: int, frame: FrameType | None) -> None:
            if not self._ending:
                self._ending = True
                raise Stopping

        before = {
            number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _work(self, job: _Job) -> bytes:
        try:
            return job.host.answer(job.request, job.question)
        except MotetError as error:
            return wire.encode(refused(job.host.name, job.request.tag, str(error)))
        except Exception:
            # A mistake of ours: told at the site, since its text may quote private values.
            traceback.print_exc()
            told = f"site {job.host.name}: the agent failed; its log says where"
            return wire.encode(refused(job.host.name, job.request.tag, told))

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if self._free.acquire(blocking=False):
                thread = threading.Thread(target=self._talk, args=[connection], daemon=True)
                self._talks[thread] = connection
                thread.start()
            else:
                connection.close()

    def _talk(self, connection: socket.socket) -> None:
        try:
            with connection:
                while True:
                    try:
                        frame = receive_frame(connection, self.limit)
                    except OversizeError as error:
                        # What follows cannot be told apart from a next frame.
                        self._send(connection, wire.encode(refused("", "", str(error))))
                        return
                    reply = None if frame is None else self._reply(frame)
                    if reply is None:
                        return
                    self._send(connection, reply)
                    if self._told_to_stop:
                        self.stop()
        except OSError as error:
            # The other end is gone; what was done for it is kept, for when it asks again.
            if isinstance(error, ProtocolError):
                sys.stderr.write(f"a connection was dropped: {error}\n")
        finally:
            self._free.release()
            self._talks.pop(threading.current_thread(), None)

    def _send(self, connection: socket.socket, frame: bytes) -> None:
        connection.settimeout(PATIENCE)
        send_frame(connection, frame)
        connection.settimeout(None)

    def _reply(self, frame: bytes) -> bytes | None:
        """The reply to a frame; None when the agent stops before there is one."""
        question = None
        try:
            question = read_question(wire.decode(frame, max_bytes=self.limit))
            host = self._host(question.site)
            if question.request is None:
                return wire.encode(self._about(question, host))
            request = host.admit(question, self._stopped.wait)
        except MotetError as error:
            site, tag = ("", "") if question is None else (question.site, question.tag)
            return wire.encode(refused(site, tag, str(error)))
        job = _Job(host, question, request)
        self._jobs.put(job)
        while not job.done.wait(0.2):
            if self._stopped.is_set():
                return None
        return job.frame

    def _host(self, name: str) -> Host:
        if not name and len(self.hosts) == 1:
            return next(iter(self.hosts.values()))
        if name not in self.hosts:
            raise SiteError(f"here is {', '.join(sorted(self.hosts))}, and no site {name!r}")
        return self.hosts[name]

    def _about(self, question: Question, host: Host) -> Tree:
        if question.type == "hello":
            return host.hello()
        if question.type == "stop":
            # Only once the answer is on its way.
            self._told_to_stop = True
            return answered(host.name, "", {})
        return answered(host.name, "", {**host.status(), "process": os.getpid()})


def listen(path: Path) -> socket.socket:
    """A listening socket that nobody but its owner can connect to.

    One that a killed agent left behind is replaced. Raises ConfigError when an agent listens there,
    or for a path that is too long; StoreError where no socket can be made.
    """
    try:
        name = address(path)
    except ValueError as error:
        raise ConfigError(f"socket: {error}") from None
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and _somebody(name):
            raise ConfigError(f"an agent listens at {path} already; stop it first: motet status")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            listener.bind(name)
        finally:
            os.umask(mask)
        listener.listen(4 * MAX_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise StoreError(f"cannot listen at {path}: {error.strerror or error}") from error
    except BaseException:
        listener.close()
        raise
    return listener


def _somebody(name: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(name)
        except OSError:
            return False
        return True


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps a second agent out of a site's folder; the lock goes with the process."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another agent is at work in {folder}; stop it, or give state another folder"
            ) from None
        yield
