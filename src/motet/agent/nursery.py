"""A process that has loaded everything once, and from which simulated sites' agents are forked.

``python -m motet.agent.nursery CONTROL LIFELINE TARGET``, with two open file descriptors: a socket
on which commands come as lines of JSON, and a pipe that closes when whoever started it is gone.
TARGET, "module:function", gives the hosts of a set-up file; modules that this one lists as PRELOAD
are imported as well. No operation of torch runs here, so that no thread of its is lost in a fork.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from motet.agent.host import Host
from motet.agent.server import Server, listen

# Seconds in which an agent that was asked to end must have ended.
GRACE = 5.0


class Nursery:
    """Does what comes over the control socket until that is closed."""

    def __init__(
        self, control: socket.socket, lifeline: int, target: Callable[[Path], Sequence[Host]]
    ) -> None:
        self.control = control
        self.lifeline = lifeline
        self.target = target
        self.children: set[int] = set()
        self.scratch: set[Path] = set()

    def run(self) -> None:
        """Returns when the other end is gone, having ended all agents and removed their files."""
        # Whoever asked may be killed before it is answered.
        with suppress(OSError), self.control.makefile("rw", encoding="utf-8") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    break
                command = json.loads(line)
                answer = getattr(self, f"do_{command.pop('do')}")(**command)
                lines.write(json.dumps(answer) + "\n")
                lines.flush()
        self.do_end(list(self.children), now=True)
        for folder in self.scratch:
            shutil.rmtree(folder, ignore_errors=True)

    def do_start(self, scratch: str, setup: str, at: str, log: str) -> Mapping[str, Any]:
        """Forks an agent that listens at a socket before this returns.

        scratch: a folder that nobody needs any more when whoever asks for this is gone.
        """
        self.scratch.add(Path(scratch))
        try:
            listener = listen(Path(at))
            pid = os.fork()
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        if not pid:
            self._be_an_agent(Path(setup), listener, Path(log))
        listener.close()
        self.children.add(pid)
        return {"pid": pid}

    def do_end(self, pids: Sequence[int], now: bool) -> Mapping[str, Any]:
        """Ends agents, and tells how each of them ended: exit code, or signal with a minus."""
        own = [pid for pid in pids if pid in self.children]
        for pid in own:
            os.kill(pid, signal.SIGKILL if now else signal.SIGTERM)
        end = time.monotonic() + GRACE
        codes: dict[str, int] = {}
        while len(codes) < len(own):
            for pid in own:
                if str(pid) not in codes:
                    found, status = os.waitpid(pid, os.WNOHANG)
                    if found:
                        codes[str(pid)] = os.waitstatus_to_exitcode(status)
                        self.children.discard(pid)
                    elif time.monotonic() > end:
                        os.kill(pid, signal.SIGKILL)
            if len(codes) < len(own):
                time.sleep(0.002)
        return {"codes": codes}

    def _be_an_agent(self, setup: Path, listener: socket.socket, log: Path) -> NoReturn:
        code = 1
        try:
            self.control.close()
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(out, 1)
            os.dup2(out, 2)
            threading.Thread(target=self._end_with_the_hub, daemon=True).start()
            Server(self.target(setup), listener).serve()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stderr.flush()
            # The rest of the interpreter's end belongs to the process that was forked.
            os._exit(code)

    def _end_with_the_hub(self) -> None:
        os.read(self.lifeline, 1)
        os._exit(0)


def main(control: str, lifeline: str, target: str) -> None:
    """Runs a nursery with descriptors and a target as on the command line."""
    name, _, function = target.partition(":")
    module = import_module(name)
    for wanted in getattr(module, "PRELOAD", ()):
        with suppress(ImportError):
            import_module(wanted)
    found = getattr(module, function)
    gc.collect()
    # What is there now is never collected, so that agents go on sharing its memory.
    gc.freeze()
    Nursery(socket.socket(fileno=int(control)), int(lifeline), found).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
