"""The hub's end of ``motet.agent.nursery``: starts and ends agent processes on this machine."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from motet.core.errors import StoreError

_LOCK = threading.RLock()
_THERE: dict[str, Nursery] = {}
_INHERITED: list[Nursery] = []


class Nursery:
    """One process that has loaded everything, and from which agents are forked.

    Fresh, and never a fork of this one, whose threads a fork would lose. Its agents end when this
    process ends, however that comes about.
    """

    def __init__(self, target: str) -> None:
        ours, theirs = socket.socketpair()
        lifeline, self._held = os.pipe()
        paths = [path or os.getcwd() for path in sys.path]
        fds = (theirs.fileno(), lifeline)
        module = [sys.executable, "-P", "-m", "motet.agent.nursery"]
        self._process = subprocess.Popen(
            [*module, *map(str, fds), target],
            pass_fds=fds,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            # An interrupt from the keyboard is the hub's to deal with.
            start_new_session=True,
        )
        theirs.close()
        os.close(lifeline)
        self._control = ours
        self._lines = ours.makefile("rw", encoding="utf-8")

    def tell(self, **command: Any) -> dict[str, Any]:
        """The answer to a command; raises StoreError when the nursery is gone."""
        with _LOCK, suppress(OSError):
            self._lines.write(json.dumps(command) + "\n")
            self._lines.flush()
            line = self._lines.readline()
            if line:
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise StoreError("the process that starts agents has ended")

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def start(self, scratch: Path, setup: Path, at: Path, log: Path) -> int:
        """The process id of a new agent, which can be connected to at once.

        scratch: removed when this process is killed.
        """
        paths = {"scratch": scratch, "setup": setup, "at": at, "log": log}
        found = self.tell(do="start", **{name: str(path) for name, path in paths.items()})
        if "error" in found:
            raise StoreError(f"no agent can be started: {found['error']}")
        return int(found["pid"])

    def end(self, pid: int, *, now: bool) -> int | None:
        """Ends an agent; its exit code, a signal with a minus; None when it cannot be told."""
        try:
            code = self.tell(do="end", pids=[pid], now=now)["codes"].get(str(pid))
            return None if code is None else int(code)
        except StoreError:
            # Its parent is gone, so that it belongs to the system, which knows how it ended.
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            return None

    def close(self) -> None:
        """Ends it with all its agents."""
        self.let_go()
        self._process.wait()

    def let_go(self) -> None:
        """Closes this process's ends, by which the nursery knows that it is there."""
        for end in (self._lines, self._control):
            with suppress(OSError):
                end.close()
        held, self._held = self._held, -1
        if held >= 0:
            os.close(held)


def nursery(target: str) -> Nursery:
    """The nursery of a target in this process; it is started when it is first wanted."""
    with _LOCK:
        found = _THERE.get(target)
        if found is not None and not found.alive():
            found.let_go()
            found = None
        if found is None:
            found = _THERE[target] = Nursery(target)
        return found


@atexit.register
def close_all() -> None:
    """Ends all nurseries of this process."""
    with _LOCK:
        while _THERE:
            _THERE.popitem()[1].close()


def _forget() -> None:
    """A fork of this process has its own; those of its parent must not live as long as it does."""
    global _LOCK
    _LOCK = threading.RLock()
    for found in _THERE.values():
        found.let_go()
        _INHERITED.append(found)
    _THERE.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
