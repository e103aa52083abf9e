"""How a contender is told to play a round, and how it tells what that took.

A contender is a process of its own. It builds everything, says that it is ready, and plays a round
for every line that it reads, so that contenders take turns and no start-up is in the figures.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.profiles import shares
from benchmarks.works import Plan, Work, save_weights, work_named


class Gate:
    """Between rounds a contender waits here."""

    def __init__(self) -> None:
        # What libraries print must not come between the lines of the protocol.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._path = ""
        self._start = (0.0, 0.0)
        self._profile: cProfile.Profile | None = None

    def ready(self, **facts: Any) -> None:
        """Tells that rounds may begin, and with which versions."""
        self._say({"ready": True, **facts})

    def begin(self) -> None:
        """Waits for the next round's line, and starts the clock; ends the process at the last."""
        words = sys.stdin.readline().split()
        if not words or words[0] == "end":
            self.leave()
        if words[0] == "profile":
            self._profile = cProfile.Profile()
        self._path = words[1] if words[0] == "round" and len(words) > 1 else ""
        self._start = (time.perf_counter(), time.process_time())
        if self._profile is not None:
            self._profile.enable()

    def finish(self, weights: Callable[[], Any]) -> None:
        """Stops the clock, writes the weights where they are asked for, and tells."""
        told: dict[str, Any] = {}
        if self._profile is not None:
            self._profile.disable()
            told["profile"] = shares(self._profile)
            self._profile = None
        seconds = time.perf_counter() - self._start[0]
        cpu = time.process_time() - self._start[1]
        if self._path:
            save_weights(Path(self._path), weights())
        self._say({"seconds": seconds, "cpu": cpu, **told})

    def leave(self) -> NoReturn:
        """Ends at once: nothing that is left to do matters to anyone."""
        self._out.flush()
        os._exit(0)

    def _say(self, what: dict[str, Any]) -> None:
        self._out.write(json.dumps(what) + "\n")
        self._out.flush()


def arguments() -> tuple[Work, Plan, argparse.Namespace]:
    """The work, its plan and the further options of a contender's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", default="serial")
    options = parser.parse_args()
    return work_named(options.work, options.quick), Plan(options.folder), options
