"""The one append-only stream of what happened; command line, report and tests all read it."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, TypeAlias

from motet.core.errors import ConfigError, StoreError

Event: TypeAlias = dict[str, Any]


class Events:
    """Appends events to a file (one JSON object a line) and tells whoever listens.

    path: the file, or None to keep events in memory alone (``memory``).
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._lines: list[str] = []
        self._read: list[Event] = []
        self._listeners: list[Callable[[Event], None]] = []
        self._file = None if path is None else _open(path)

    @property
    def memory(self) -> list[Event]:
        """The events so far as a file would give them back; empty where they go to a file."""
        self._read += map(json.loads, self._lines)
        self._lines.clear()
        return self._read

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Calls ``listener`` with every event from now on."""
        self._listeners.append(listener)

    def add(self, kind: str, /, **fields: Any) -> None:
        """Appends one event of plain values; raises StoreError when the disk will not take it."""
        event: Event = {"event": kind, "time": round(time.time(), 3), **fields}
        try:
            line = json.dumps(event) + "\n"
        except TypeError as error:
            raise ConfigError(f"event {kind!r} cannot be written down: {error}") from None
        if self._file is None:
            self._lines.append(line)
        else:
            _append(self._file, line)
        for listener in self._listeners:
            listener(event)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def _open(path: Path) -> FileIO:
    _drop_torn_line(path)
    # Without a buffer: what a full disk refused must not be tried again when the file is closed.
    return path.open("ab", buffering=0)


def _append(file: FileIO, line: str) -> None:
    """Writes the whole line or nothing."""
    data = line.encode()
    size = os.fstat(file.fileno()).st_size
    try:
        if file.write(data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        with suppress(OSError):
            file.truncate(size)
        raise StoreError(f"cannot write {file.name}: {error.strerror or error}") from error


def _drop_torn_line(path: Path) -> None:
    """A killed process may leave half a line at the end: cut it, so that the next one stands."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)
            os.fsync(file.fileno())


def read_events(path: Path) -> list[Event]:
    """All events of a run in order, without those that a later resume ran anew.

    A "resumed" event names the checkpoint from which the run went on: what was written after
    that checkpoint did not take effect, and is left out. A "started" event tells of a run that
    was killed before its first checkpoint and began anew.
    """
    events: list[Event] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event["event"] == "started":
            events = []
        elif event["event"] == "resumed":
            events = _until_checkpoint(events, event["version"])
        events.append(event)
    return events


def _until_checkpoint(events: list[Event], version: int) -> list[Event]:
    # A kill between saving and noting it leaves no such line: then nothing came after it.
    for i, event in enumerate(events):
        if event["event"] == "checkpoint" and event["version"] == version:
            return events[: i + 1]
    return events
