"""The simulated clock: what takes how long, who arrives first, and what a resumed run finds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError
from tests.core.toys import NAMES, Averaging, Backwards, Dead, federation, specs

from motet.core import ConfigError, Engine, Federation, Reply, Request, weights_of
from motet.core.messages import timed
from motet.engines.clock import ClientProfile, ClientProfiles, Clocked, Stragglers
from motet.engines.serial import Serial

ROWS = {"ada": 6, "ben": 7, "cleo": 8, "dan": 9, "eve": 10}


def clock(seed: int = 0, wrap: Any = lambda engine: engine, **profile: Any) -> Clocked:
    engine = wrap(Serial(specs(), Averaging(), seed=0))
    return Clocked(engine, ClientProfiles(**{"speed": 2.0, **profile}), seed=seed)


def ask(
    engine: Engine, sites: Sequence[str] = NAMES, tag: str = "0.0.1", op: str = "train"
) -> None:
    weights = weights_of(specs()[0].build())  # type: ignore[misc]
    shared = {"weights": weights} if op == "train" else {}
    engine.send([Request(name, op, tag, 0, shared) for name in sites])


def answers(engine: Clocked, timeout: float | None = None) -> list[tuple[str, float]]:
    """Sites in the order in which they arrive, each with the time."""
    found = []
    while (reply := engine.recv(timeout)) is not None:
        found.append((reply.site, engine.now()))
    return found


def test_work_takes_rows_over_speed() -> None:
    engine = clock()
    ask(engine)
    assert answers(engine) == [(name, rows / 2) for name, rows in ROWS.items()]


def test_bytes_take_time_both_ways_and_each_message_its_latency() -> None:
    engine = clock(speed=None, bandwidth=0.001, latency=0.25)
    ask(engine, ["ben"])
    reply = engine.recv()
    assert reply is not None
    assert engine.now() == pytest.approx((reply.down + reply.up) / 1000 + 0.5)


def test_a_method_says_how_many_rows_its_steps_read() -> None:
    engine = Clocked(
        Serial(specs(), Averaging(), seed=0),
        ClientProfiles(speed=1.0),
        seed=0,
        work=lambda op, rows: {"train": 3 * rows}[op],
    )
    ask(engine, ["ada"])
    assert answers(engine) == [("ada", 18.0)]


def test_evaluation_and_saving_take_no_time() -> None:
    engine = clock(latency=5.0)
    ask(engine, tag="0.0.1", op="evaluate")
    ask(engine, ["ada"])
    engine.send([Request("ben", "@save", "@save1", 0, own={"version": 1, "pinned": []})])
    assert answers(engine, 0.0) == [*((name, 0.0) for name in NAMES), ("ben", 0.0)]
    assert answers(engine) == [("ada", 13.0)]


def test_a_site_does_one_thing_after_the_other() -> None:
    engine = clock()
    ask(engine, ["ada"], "0.0.1")
    ask(engine, ["ada"], "0.0.2")
    assert answers(engine) == [("ada", 3.0), ("ada", 6.0)]


def test_a_question_that_was_answered_takes_no_work_again() -> None:
    engine = clock(latency=0.5)
    ask(engine, ["ada"])
    assert answers(engine) == [("ada", 4.0)]
    ask(engine, ["ada"])
    assert answers(engine) == [("ada", 5.0)]


def test_waiting_is_what_time_passes_with() -> None:
    engine = clock()
    assert engine.recv() is None
    assert engine.now() == 0.0
    assert engine.recv(7.0) is None
    ask(engine, ["ada", "eve"])
    assert engine.now() == 7.0
    assert answers(engine, 1.0) == []
    assert engine.now() == 8.0
    assert answers(engine, 2.0) == [("ada", 10.0), ("eve", 12.0)]
    assert engine.now() == 14.0


def test_the_order_in_which_the_work_is_done_has_no_say() -> None:
    plain, turned = clock(jitter=0.5), clock(jitter=0.5, wrap=Backwards)
    for engine in (plain, turned):
        ask(engine, ["ada", "ben"])
        ask(engine, ["cleo", "dan"], "0.0.2")
    assert answers(plain) == answers(turned)


def test_equal_arrivals_come_in_the_order_of_asking() -> None:
    engine = clock(speed=None, wrap=Backwards)
    ask(engine, ["eve", "ada", "cleo"])
    assert [name for name, _ in answers(engine)] == ["eve", "ada", "cleo"]


def test_what_got_lost_never_arrives() -> None:
    class Deaf(Dead):
        def recv(self, timeout: float | None = None) -> Reply | None:
            return self.inner.recv(timeout)

    engine = clock(wrap=lambda inner: Deaf(inner, "ada"))
    ask(engine, ["ada", "ben"])
    assert answers(engine) == [("ben", 3.5)]


@pytest.mark.parametrize(
    ("time", "opens"), [(0, 10), (10, 10), (15, 15), (20, 30), (39.5, 39.5), (40, 110), (250, 310)]
)
def test_a_site_begins_in_its_windows(time: float, opens: float) -> None:
    profile = ClientProfile(day=100.0, windows=((30.0, 40.0), (10.0, 20.0)))
    assert profile.opens(time) == opens


def test_work_outlasts_its_window() -> None:
    engine = clock(day=10.0, windows=[(8.0, 9.0)])
    ask(engine, ["ada"], "0.0.1")
    ask(engine, ["ada"], "0.0.2")
    assert answers(engine) == [("ada", 11.0), ("ada", 21.0)]


def test_some_days_a_site_is_not_there() -> None:
    days = []
    for seed in range(300):
        engine = clock(seed=seed, speed=None, day=1.0, chance=0.25)
        ask(engine, ["ada"])
        days.append(answers(engine)[0][1])
    assert days[:40] != days[40:80]
    # (1 - p) / p days of waiting on average: 3, with a standard error of 0.2.
    assert statistics.fmean(days) == pytest.approx(3.0, abs=0.7)
    with pytest.raises(ConfigError, match="did not come by .* raise clients.chance"):
        ClientProfile(chance=0.01).opens(0.0, lambda day: False)


def test_jitter_is_an_answer_s_own() -> None:
    engine = clock(jitter=0.5)
    ask(engine, ["ada"], "0.0.1")
    ask(engine, ["ada"], "0.0.2")
    (_, first), (_, both) = answers(engine)
    assert first not in (3.0, both - first)
    logs = []
    for seed in range(300):
        engine = clock(seed=seed, jitter=0.5)
        ask(engine, ["ada"])
        logs.append(math.log(answers(engine)[0][1] / 3.0))
    assert statistics.stdev(logs) == pytest.approx(0.5, abs=0.07)


def test_stragglers_are_an_exact_share_and_exactly_so_much_slower() -> None:
    sites = [f"site-{number}" for number in range(20)]
    profiles = ClientProfiles(speed=5.0, stragglers=Stragglers(share=0.3, factor=10))
    found = profiles.of(sites, 0)
    slow = [site for site, profile in found.items() if profile.speed == 0.5]
    assert len(slow) == 6
    assert all(profile.speed in (0.5, 5.0) for profile in found.values())
    others = {
        tuple(s for s, p in profiles.of(sites, seed).items() if p.speed == 0.5) for seed in (1, 2)
    }
    assert len({*others, tuple(slow)}) == 3


def test_speeds_spread_by_site() -> None:
    sites = [f"site-{number}" for number in range(400)]
    speeds = [p.speed for p in ClientProfiles(speed=5.0, spread=0.4).of(sites, 0).values()]
    logs = [math.log(speed / 5.0) for speed in speeds if speed]
    assert statistics.stdev(logs) == pytest.approx(0.4, abs=0.05)
    assert ClientProfiles(speed=None, spread=0.4).of(["a"], 0)["a"].speed is None


def test_single_sites_and_populations_have_profiles_of_their_own() -> None:
    only = {"image": ClientProfile(speed=1.0), "image-2": ClientProfile(speed=2.0)}
    found = ClientProfiles(speed=3.0, only=only).of(["image-1", "image-2", "text-1"], 0)
    assert [profile.speed for profile in found.values()] == [1.0, 2.0, 3.0]
    with pytest.raises(ConfigError, match="clients.only names 'video', which is neither"):
        ClientProfiles(only={"video": ClientProfile()}).of(["image-1"], 0)


@pytest.mark.parametrize("windows", [[(5.0, 5.0)], [(-1.0, 2.0)], [(1.0, 11.0)]])
def test_a_window_is_part_of_its_day(windows: list[tuple[float, float]]) -> None:
    with pytest.raises(ValidationError, match="is no part of a day of 10 seconds"):
        ClientProfile(day=10.0, windows=tuple(windows))


def test_a_kept_clock_goes_on() -> None:
    plain = clock(jitter=0.3, latency=0.5)
    ask(plain)
    first = plain.recv()
    assert first is not None
    kept = plain.kept()
    rest = answers(plain)

    again = clock(jitter=0.3, latency=0.5)
    # What a resumed run repeats before its rounds is forgotten.
    ask(again, ["dan"])
    again.put_back(kept)
    assert again.now() == kept["time"]
    ask(again, [name for name in NAMES if name != first.site])
    assert answers(again) == rest
    ask(again, ["eve"], "0.1.1")
    ask(plain, ["eve"], "0.1.1")
    assert answers(again) == answers(plain)


def test_an_answer_that_was_there_is_there_at_once() -> None:
    engine = clock()
    ask(engine, ["ada"])
    answers(engine, 9.0)
    fresh = clock()
    fresh.put_back(engine.kept())
    ask(fresh, ["ada"])
    assert answers(fresh, 0.0) == [("ada", 12.0)]


def test_it_is_found_under_wrappers() -> None:
    class Around:
        def __init__(self, engine: Any) -> None:
            self.engine = engine

    engine = clock()
    assert timed(Around(Around(engine))) is engine
    assert timed(Around(Serial(specs(), Averaging(), seed=0))) is None


def test_a_closed_clock_has_forgotten() -> None:
    engine = clock()
    ask(engine)
    engine.close()
    assert engine.recv() is None


def run(**profile: Any) -> Federation:
    fed = federation(
        Averaging(rounds=3, cohort=5),
        wrap=lambda engine: Clocked(engine, ClientProfiles(**profile), seed=0),
    )
    fed.start()
    return fed


def test_rounds_of_any_method_take_as_long_as_their_slowest_site() -> None:
    fed = run(speed=2.0)
    ends = [event["seconds"] for event in fed.events.memory if event["event"] == "round"]
    assert ends == [0.0, 5.0, 10.0]
    assert fed.events.memory[-2]["seconds"] == 15.0
    assert all("seconds" in event for event in fed.events.memory if event["event"] == "metric")


def test_the_clock_changes_nothing_but_times() -> None:
    plain = federation(Averaging(rounds=3, cohort=5))
    plain.start()
    assert plain.events.memory[-1]["hash"] == run(speed=0.5).events.memory[-1]["hash"]
    assert "seconds" not in plain.events.memory[-1]


def test_a_timeout_is_one_of_simulated_seconds() -> None:
    fed = federation(
        Averaging(), wrap=lambda engine: Clocked(engine, ClientProfiles(speed=2.0), seed=0)
    )
    weights = weights_of(fed.model)
    replies = fed.all.ask(Averaging().train, quorum=0, timeout=4.0, weights=weights)
    assert list(replies) == ["ada", "ben", "cleo"]
    assert replies.failed["eve"] == "no answer within 4 s"
