"""The event stream: whole lines, in order, without what a resumed run did anew."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from motet.core import ConfigError, Events, StoreError, read_events


def kinds(path: Path) -> list[str]:
    return [event["event"] for event in read_events(path)]


def test_events_are_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    heard: list[Any] = []
    events = Events(path)
    events.listen(heard.append)
    events.add("round", round=3, name="ä")
    assert [json.loads(line) for line in path.read_text().splitlines()] == heard
    assert {**heard[0], "time": 0} == {"event": "round", "time": 0, "round": 3, "name": "ä"}
    events.close()
    again = Events(path)
    again.add("finished")
    again.close()
    assert kinds(path) == ["round", "finished"]
    assert events.memory == []


def test_without_a_file_they_are_kept_in_memory() -> None:
    events = Events()
    events.add("round", round=1)
    events.close()
    assert [event["round"] for event in events.memory] == [1]


@pytest.mark.parametrize("tail", ["", '{"event": "rou', "\x00\x00", '{"event": "round"}'])
def test_a_torn_line_is_cut_when_the_run_goes_on(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "started"}\n' + tail)
    events = Events(path)
    events.add("finished")
    events.close()
    assert kinds(path) == ["started", "finished"]


def test_a_torn_line_is_passed_over_by_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "started"}\n{"event": "rou')
    assert kinds(path) == ["started"]


def write(path: Path, *events: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def test_what_a_resumed_run_does_anew_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    checkpoints = [{"event": "checkpoint", "version": version} for version in (1, 2, 3)]
    write(
        path,
        checkpoints[0],
        {"event": "metric", "n": 1},
        checkpoints[1],
        {"event": "metric", "n": 2},
        {"event": "resumed", "version": 2},
        {"event": "metric", "n": 3},
        checkpoints[2],
        {"event": "metric", "n": 4},
        {"event": "resumed", "version": 2},
        {"event": "metric", "n": 5},
    )
    assert [event["n"] for event in read_events(path) if "n" in event] == [1, 5]


def test_a_checkpoint_that_was_not_noted_drops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(
        path,
        {"event": "checkpoint", "version": 1},
        {"event": "metric"},
        {"event": "resumed", "version": 2},
    )
    assert kinds(path) == ["checkpoint", "metric", "resumed"]


def test_a_run_that_began_anew_counts_from_there(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, {"event": "started"}, {"event": "metric"}, {"event": "started"}, {"event": "log"})
    assert kinds(path) == ["started", "log"]


class Full:
    """A disk that takes some bytes of what it is given."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.name = file.name

    def write(self, data: bytes) -> int:
        return int(self.file.write(data[:7]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_takes_a_whole_line_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events = Events(path)
    events.add("started")
    events._file, real = Full(events._file), events._file  # type: ignore[assignment]
    with pytest.raises(StoreError, match=r"cannot write .*events.jsonl: No space left on device"):
        events.add("round")
    events._file = real
    events.add("finished")
    events.close()
    assert kinds(path) == ["started", "finished"]
    assert path.read_bytes().count(b"\n") == 2


def test_a_device_without_room_is_a_sentence_and_no_traceback() -> None:
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("no such device here")
    script = (
        "from pathlib import Path\n"
        "from motet.core import Events, StoreError\n"
        "import motet.core.events as module\n"
        "module._drop_torn_line = lambda path: None\n"
        "events = Events(Path('/dev/full'))\n"
        "try:\n    events.add('started')\n"
        "except StoreError as error:\n    print(error)\n"
        "finally:\n    events.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"cannot write /dev/full: {os_error()}\n"
    assert (done.returncode, done.stderr) == (0, "")


def os_error() -> str:
    return OSError(errno.ENOSPC, "No space left on device").strerror or ""


def test_what_is_no_json_names_the_event() -> None:
    with pytest.raises(ConfigError, match="event 'log' cannot be written down.*Tensor"):
        Events().add("log", loss=torch.ones(1))
