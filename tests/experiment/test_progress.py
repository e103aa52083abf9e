from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from rich.console import Console

from motet.experiment.progress import ArmsProgress, Progress

# Errors of a site's door name it, others do not.
ERRORS = ("out [of] memory", "site pair-2, round 1, operation train: pair-2: out [of] memory")


def event(kind: str, time: float = 0.0, **fields: Any) -> dict[str, Any]:
    return {"event": kind, "time": time, **fields}


def a_run() -> list[dict[str, Any]]:
    """Two rounds with traffic, metrics, a failure, a log and all else that a run tells."""
    events = [event("started", 90.0)]
    for number in range(2):
        at = 100.0 + 20 * number
        ways = {"down": {"frame": 2000, "weights": 1900}, "up": {"frame": 1000}}
        values = {"rsum": [50.0 + number, 10], "i2t_r1": [3.0, 10]}
        events += [
            event("checkpoint", at, round=number, version=number + 1),
            event("round", at, round=number, loop=0, of=2),
            event("replied", at, round=number, site="pair-1", op="train", tag="0", **ways),
            event("failed", at, round=number, site="pair-2", op="train", error=ERRORS[number]),
            event("log", at, round=number, loss=0.123456, note="fine"),
            event("metric", at, round=number, party="hub", point="hub", metrics=values),
        ]
    return [*events, event("checkpoint", 140.0, round=2, version=3), event("finished", 140.0)]


def paper() -> Console:
    return Console(file=io.StringIO(), width=100)


def screen() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_elsewhere_than_on_a_terminal_there_is_one_line_per_round() -> None:
    console = paper()
    with Progress(console) as progress:
        for one in a_run():
            progress(one)
    assert text(console).splitlines() == [
        "round 1: pair-2 failed in train: out [of] memory",
        "round 1: loss 0.1235  note fine",
        "round 1/2  rsum 50.0  3.0 kB  20 s  failed: pair-2",
        "round 2: pair-2 failed in train: out [of] memory",
        "round 2: loss 0.1235  note fine",
        "round 2/2  rsum 51.0  6.0 kB  20 s  failed: pair-2",
    ]


def test_quiet_tells_failures_alone() -> None:
    for console in (paper(), screen()):
        progress = Progress(console, quiet=True)
        for one in a_run():
            progress(one)
        assert text(console).splitlines() == [
            "round 1: pair-2 failed in train: out [of] memory",
            "round 2: pair-2 failed in train: out [of] memory",
        ]


def test_a_stopped_run_does_not_count_its_last_round() -> None:
    console = paper()
    progress = Progress(console)
    for one in [*a_run()[:-2], event("stopped", 139.0, round=1, error="no")]:
        progress(one)
    assert "round 1/2" in text(console)
    assert "round 2/2" not in text(console)


def drawn(progress: Progress | ArmsProgress, now: float) -> list[str]:
    progress.clock = lambda: now
    console = paper()
    console.print(progress.draw())
    return [line.rstrip() for line in text(console).splitlines()]


def test_three_lines_are_drawn_at_any_time() -> None:
    progress = Progress(screen())
    shown = []
    for one in a_run():
        progress(one)
        shown.append(drawn(progress, one["time"] + 4))
    progress.close()
    assert {len(lines) for lines in shown[2:]} == {3}
    first, second, last = shown[2], shown[8], shown[-1]
    assert first[0].startswith("round 1 of 2 ")
    assert "time left not known yet" in first[0]
    assert second[0].startswith("round 2 of 2 ")
    assert second[0].endswith("24 s  about 16 s left")
    assert last[0].startswith("2 rounds ")
    assert last[1] == "rsum 51.0  best rsum 51.0"
    assert last[2] == "4.0 kB down  2.0 kB up  1 answer  failed: pair-2"


def test_a_narrow_terminal_does_not_get_more_lines() -> None:
    progress = Progress(Console(file=io.StringIO(), width=30, force_terminal=True))
    for one in a_run():
        progress(one)
    console = Console(file=io.StringIO(), width=30)
    console.print(progress.draw())
    assert len(text(console).splitlines()) == 3


def test_on_a_terminal_what_is_printed_or_logged_stays_above_the_drawing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    console = screen()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress(console) as progress:
        for one in a_run():
            progress(one)
            if one["event"] == "round":
                # As logging does, which looks for the stream anew every time.
                sys.stderr.write("a picture was skipped\n")
                sys.stdout.write("printed\n")
    told = text(console)
    assert told.count("a picture was skipped\n") == 2
    assert told.count("printed\n") == 2
    assert told.count("failed in train: out [of] memory") == 2
    assert told.count("loss 0.1235") == 2
    assert told.rstrip().endswith("\x1b[?25h"), "the cursor stays hidden"


def test_the_end_of_a_run_ends_the_drawing() -> None:
    for end in (event("finished", 140.0), event("stopped", 140.0, round=1, error="no")):
        console = screen()
        progress = Progress(console)
        for one in [*a_run()[:-1], end]:
            progress(one)
        assert "\x1b[?25h" in text(console)


def test_an_error_leaves_a_terminal_as_it_was() -> None:
    console = screen()
    progress = Progress(console)

    def fail() -> None:
        with progress:
            progress(a_run()[2])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "\x1b[?25h" in text(console)
    assert console._live_stack == []


def test_a_resumed_run_counts_what_took_effect_before() -> None:
    events = a_run()
    killed = [one for one in events if one["event"] != "finished"][:-2]
    console = paper()
    progress = Progress(console, before=killed)
    again = next(i for i, one in enumerate(events) if one.get("version") == 2)
    progress(event("resumed", 500.0, version=2, round=1, loop=0))
    for one in events[again + 1 :]:
        progress({**one, "time": one["time"] + 400})
    assert progress.standing.down == 4000, "the interrupted round was counted twice"
    assert text(console).splitlines()[-1].startswith("round 2/2  rsum 51.0  6.0 kB  20 s")


def test_a_comparison_tells_every_run() -> None:
    console = paper()
    with ArmsProgress(console, of=4) as progress:
        for done in (3, 4):
            values = {"rsum": 10.0 + done, "pair-1/rsum": 99.0, "MB up": 1.0}
            progress({"done": done, "of": 4, "arm": "mean", "seed": done, "values": values})
    assert text(console).splitlines() == [
        "3/4  mean  seed 3  rsum 13.0",
        "4/4  mean  seed 4  rsum 14.0",
    ]


def test_a_comparison_on_a_terminal_reckons_without_what_was_there() -> None:
    console = screen()
    progress = ArmsProgress(console, of=8)
    assert drawn(progress, progress._began)[0].startswith("0 of 8 runs ")
    for done in (5, 6):
        values = {"accuracy": 20.0}
        progress({"done": done, "of": 8, "arm": "mean", "seed": 1, "values": values})
    lines = drawn(progress, progress._began + 20)
    progress.close()
    assert lines[0].startswith("6 of 8 runs ")
    assert lines[0].endswith("20 s  about 20 s left")
    assert lines[1] == "mean  seed 1  accuracy 20.0"
    assert "\x1b[?25h" in text(console)
