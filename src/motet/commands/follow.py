"""Follows a run that another process does at the hub, and says what a person waits for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Protocol

from motet.commands.common import say
from motet.core.errors import SiteError

# Seconds between two looks at whether the run's process is alive, each of which is work for the
# courier, and how often in a row it may end without getting further.
LOOK = 30.0
STARTS = 5
EVENTS = "events.jsonl"


class Control(Protocol):
    """Starts runs at a hub's courier; ``where`` is what that is called."""

    @property
    def where(self) -> str:
        """What has the runs."""

    def start(self, config: Path) -> str:
        """Starts a run of the hub's file; its number."""

    def ended(self, number: str) -> bool:
        """Whether a run is over, well or not."""

    def log_command(self, number: str | None) -> str:
        """What shows a run's own log."""


def follow(control: Control, folder: Path, config: Path) -> None:
    """Has the run of a folder started, and started anew, until it is finished; shows what happens.

    Raises SiteError for a run that stopped, or gets no further.
    """
    seen = Follower(folder)
    seen.look()
    # What stopped it before is no reason not to try again.
    seen.stopped = ""
    starts = 0
    while not seen.over():
        starts += 1
        before = seen.lines
        number = control.start(config)
        say(f"run {number} of {control.where}; ending this command does not end it")
        while not seen.over() and not control.ended(number):
            end = time.monotonic() + LOOK
            while not seen.over() and time.monotonic() < end:
                time.sleep(0.2)
                seen.look()
        seen.look()
        if seen.over():
            break
        starts = 1 if seen.lines > before else starts
        if starts == STARTS:
            raise SiteError(
                f"the run's process ended {STARTS} times and got no further; its last words: "
                f"{control.log_command(number)}"
            )
        say("the run's process ended; it is started again")
    if not seen.finished:
        raise SiteError(seen.stopped)


class Follower:
    """Reads a run's events as they come, and says the ones that a person waits for."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / EVENTS
        self.waiting = waiting_file(folder)
        self.finished = False
        self.stopped = ""
        self.lines = 0
        self._at = 0
        self._told: dict[str, str] = {}

    def over(self) -> bool:
        """Whether nothing more will come of this start."""
        return self.finished or bool(self.stopped)

    def look(self) -> None:
        """Says what is new."""
        if self.waiting.exists():
            self._wait(json.loads(self.waiting.read_text("utf-8")))
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._at += whole
        for line in data[:whole].splitlines():
            self.lines += 1
            self._say(json.loads(line))

    def _wait(self, told: dict[str, str]) -> None:
        for who in {**self._told, **told}:
            if told.get(who) != self._told.get(who):
                say(f"{who}: {told.get(who, 'is there again')}")
        self._told = told

    def _say(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind in ("started", "resumed"):
            self.stopped = ""
        if kind == "started":
            say("started: all sites are there")
        elif kind == "resumed":
            say(f"taken up again in round {event['round']}")
        elif kind == "round":
            say(f"round {event['round'] + 1} of {event['of']}")
        elif kind == "failed":
            say(str(event["error"]))
        elif kind == "metric" and event["party"] == "hub":
            values = ", ".join(
                f"{name} {value:.4g}" for name, (value, _) in event["metrics"].items()
            )
            say(f"hub: {values}")
        elif kind == "stopped":
            self.stopped = str(event["error"])
        elif kind == "finished":
            self.finished = True
            say(f"finished, hash {event['hash']}")


def waiting_file(folder: Path) -> Path:
    """Where a run says who is waited for, and why."""
    return folder.with_name(f"{folder.name}.waiting.json")
