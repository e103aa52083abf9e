from __future__ import annotations

from typing import Any

import pytest

from motet.experiment.standing import Standing, chief, duration, size_of


def event(kind: str, time: float = 0.0, **fields: Any) -> dict[str, Any]:
    return {"event": kind, "time": time, **fields}


def begin(number: int, time: float, of: int = 4, loop: int = 0) -> dict[str, Any]:
    return event("round", time, round=number, loop=loop, of=of)


def replied(down: int, up: int) -> dict[str, Any]:
    told = event("replied", round=0, site="a", op="train", tag="0")
    return {**told, "down": {"frame": down}, "up": {"frame": up}}


def metric(party: str, **values: float) -> dict[str, Any]:
    pairs = {name: [value, 10] for name, value in values.items()}
    return event("metric", round=0, party=party, point="x", metrics=pairs)


def standing(*events: dict[str, Any]) -> Standing:
    at = Standing()
    for one in events:
        at.add(one)
    return at


def test_bytes_and_answers_add_up_and_answers_start_anew_each_round() -> None:
    at = standing(begin(0, 1), replied(10, 1), replied(20, 2), begin(1, 2), replied(30, 3))
    assert (at.down, at.up, at.answers) == (60, 6, 1)


def test_figures_are_the_hubs_last_and_best() -> None:
    at = standing(metric("hub", rsum=20, r1=1), metric("hub", rsum=10, r1=2), metric("a", rsum=90))
    assert at.figures() == "rsum 10.0"
    assert at.best == {"rsum": 20, "r1": 2}


def test_without_a_hub_figures_are_the_mean_of_this_rounds_sites() -> None:
    at = standing(
        begin(0, 1),
        metric("a", accuracy=99),
        begin(1, 2),
        metric("a", accuracy=10),
        metric("b", accuracy=20),
    )
    assert at.figures() == "sites' accuracy 15.0"
    assert Standing().figures() == ""


def test_failures_are_counted_per_round() -> None:
    failed = event("failed", site="b", round=0, op="train", error="no")
    at = standing(begin(0, 1), failed, failed, {**failed, "site": "a"})
    assert at.troubles() == "failed: a, b x2"
    at.add(begin(1, 2))
    assert at.troubles() == ""


def test_the_time_left_goes_by_the_mean_round() -> None:
    at = standing(begin(0, 100))
    assert at.left(105) is None
    at.add(begin(1, 110))
    assert at.left(110) == 30
    assert at.left(116) == 24
    assert at.left(500) == 20, "a long round takes no more than itself off"
    at.add(begin(2, 130))
    assert at.left(130) == 30


def test_a_resumed_run_counts_its_own_rounds_alone() -> None:
    at = standing(begin(0, 0), begin(1, 1000))
    at.new_start()
    at.add(begin(1, 5000))
    assert at.left(5001) is None
    at.add(begin(2, 5010))
    assert at.left(5010) == 20


def test_a_second_loop_has_its_own_time() -> None:
    at = standing(begin(0, 0), begin(1, 10), begin(0, 100, of=2, loop=1))
    assert at.left(100) is None
    at.add(begin(1, 105, of=2, loop=1))
    assert at.left(105) == 5


def test_the_end() -> None:
    at = standing(begin(0, 0), begin(1, 10), begin(2, 20), begin(3, 30), event("finished", 40))
    assert at.done
    assert at.left(40) == 0


def test_chief_metrics() -> None:
    assert chief({"r1": 0, "cat@10": 0, "rsum": 0}) == ["rsum", "cat@10"]
    assert chief({"a": 0, "b": 0, "c": 0, "d": 0}) == ["a", "b", "c"]
    assert chief({}) == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (1000, "1.0 kB"),
        (4149, "4.1 kB"),
        (12_340_000, "12.3 MB"),
        (999_900, "1.0 MB"),
        (3_210_000_000, "3.2 GB"),
    ],
)
def test_sizes(count: int, words: str) -> None:
    assert size_of(count) == words
