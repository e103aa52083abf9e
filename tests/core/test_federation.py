"""The hub: rounds that can be killed at any moment, reports, and bits that nothing can change."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.core.toys import (
    NAMES,
    Averaging,
    Backwards,
    Dead,
    Phases,
    Wrapper,
    cross_entropy,
    federation,
)

from motet.core import (
    Adam,
    ConfigError,
    Federation,
    Method,
    Reply,
    Site,
    SiteError,
    StoreError,
    Tree,
    at_site,
    read_events,
    wire,
)
from motet.core.store import HubStore, Position, Shelf
from motet.core.tree import weights_of

METHODS: dict[str, Method] = {"averaging": Averaging(), "phases": Phases()}


def finish(fed: Federation) -> bytes:
    """Runs to the end: all that the hub has then, as bytes."""
    fed.start()
    fed.events.close()
    return wire.encode({"state": fed.state, "learner": fed.tree()})


def told(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the events say of the run itself: metrics, bytes and logs, without times."""
    kinds = {"metric", "replied", "log", "round"}
    return [
        {key: value for key, value in event.items() if key != "time"}
        for event in events
        if event["event"] in kinds
    ]


def reference(method: Method) -> tuple[bytes, list[dict[str, Any]]]:
    fed = federation(method)
    return finish(fed), told(fed.events.memory)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


@pytest.mark.usefixtures("rng_untouched")
def test_two_runs_in_a_row_are_equal(method: Method) -> None:
    assert reference(method) == reference(method)


def test_another_seed_is_another_run(method: Method) -> None:
    assert finish(federation(method, seed=1)) != reference(method)[0]


@pytest.mark.parametrize("seed", [0, 12345])
def test_the_global_generators_have_no_say(method: Method, seed: int) -> None:
    expected = reference(method)
    numpy_state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        assert reference(method) == expected
    np.random.set_state(numpy_state)  # noqa: NPY002


def test_the_order_in_which_sites_run_has_no_say(method: Method) -> None:
    fed = federation(method, wrap=Backwards)
    state = finish(fed)
    expected, events = reference(method)
    assert state == expected
    by_site = partial(sorted, key=json.dumps)
    assert by_site(told(fed.events.memory)) == by_site(events)


def test_the_wire_has_no_say(method: Method) -> None:
    fed = federation(method, strict=True)
    assert (finish(fed), told(fed.events.memory)) == reference(method)


def test_a_folder_has_no_say(method: Method, tmp_path: Path) -> None:
    fed = federation(method, folder=tmp_path / "run")
    state = finish(fed)
    assert (state, told(read_events(tmp_path / "run" / "events.jsonl"))) == reference(method)


@pytest.mark.usefixtures("rng_untouched")
def test_a_run_that_fails_puts_the_default_generator_back_as_well() -> None:
    """The error holds on to the loop's frame: what is let go of with it must not reach outside."""
    fed = federation(Averaging(), wrap=lambda engine: Dead(engine, *NAMES))
    caught: list[SiteError] = []
    try:
        fed.start()
    except SiteError as error:
        caught.append(error)
    assert caught
    caught.clear()
    gc.collect()


def fails(fed: Federation, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        fed.start()
    fed.events.close()


def kill(method: Method, folder: Path, die: Callable[[], None]) -> bool:
    """A run in a process of its own that calls ``die`` at every event; whether it was killed."""

    def child() -> None:
        federation(method, folder=folder, listener=lambda _: die()).start()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def after(count: int) -> Callable[[], None]:
    """Kills its process when it is called for this time."""
    calls = iter(range(count - 1, -1, -1))

    def die() -> None:
        if next(calls, 1) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return die


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it wrote: only a power cut would need the sync."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def check_resumed(method: Method, folder: Path, expected: tuple[bytes, Any], when: str) -> None:
    state = finish(federation(method, folder=folder))
    assert state == expected[0], f"other state after a kill at {when}"
    assert told(read_events(folder / "events.jsonl")) == expected[1], f"events after {when}"


@pytest.mark.usefixtures("quick_disk")
def test_a_kill_after_any_event_changes_nothing(method: Method, tmp_path: Path) -> None:
    expected = reference(method)
    events = 0
    while kill(method, tmp_path / str(events), after(events + 1)):
        check_resumed(method, tmp_path / str(events), expected, f"event {events}")
        events += 1
    assert events > 30


def test_a_kill_at_any_write_changes_nothing(
    method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two files of a checkpoint, and in the midst of each."""
    expected = reference(method)
    writes = 0
    while True:
        folder = tmp_path / str(writes)
        die = after(writes + 1)
        monkeypatch.setattr(os, "fsync", lambda handle, die=die: die())
        if not kill(method, folder, lambda: None):
            break
        monkeypatch.setattr(os, "fsync", lambda handle: None)
        check_resumed(method, folder, expected, f"write {writes}")
        assert not list(folder.rglob("sites/**/*.part"))
        writes += 3
    assert writes > 30


@pytest.mark.usefixtures("quick_disk")
def test_kills_upon_kills_change_nothing(method: Method, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    expected = reference(method)
    kills = sum(kill(method, folder, after(count)) for count in (9, 2, 14, 5, 17, 30, 11, 3, 40))
    assert kills > 3
    check_resumed(method, folder, expected, "many events")


def test_a_finished_run_is_finished(method: Method, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = finish(federation(method, folder=folder))
    asked: list[str] = []

    class Watch(Wrapper):
        def send(self, requests: Any) -> None:
            asked.extend(request.op for request in requests)
            super().send(requests)

    assert finish(federation(method, folder=folder, wrap=Watch)) == first
    assert "train" not in asked
    assert told(read_events(folder / "events.jsonl")) == reference(method)[1]


@pytest.mark.usefixtures("quick_disk")
def test_checkpoints_do_not_pile_up(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finish(federation(Phases(rounds=6), folder=folder))
    held = {path.name: len(list(path.iterdir())) for path in (folder / "sites").iterdir()}
    # Two, and the one with which the first loop ended.
    assert all(count <= 3 for count in held.values())
    assert len(list((folder / "hub").iterdir())) == 3
    assert HubStore(folder).position() == Position(14, 1, 6, ((7, 6),))


class Breaking(Method):
    """Leaves its first loop early, and needs what it found there."""

    def run(self, fed: Federation) -> None:
        for number in fed.rounds(9):
            fed.fit(cross_entropy, fed.batches(fed.public, 2), fed.optimizer("hub", Adam(0.1)))
            fed.log(number=number)
            if number == 2:
                break
        best = weights_of(fed.model)
        for _ in fed.rounds(2):
            fed.fit(cross_entropy, fed.batches(fed.public, 2), fed.optimizer("hub", Adam(0.1)))
            fed.state["best"] = best
            fed.log(draw=float(torch.rand(())))


@pytest.mark.usefixtures("quick_disk")
def test_a_loop_may_be_left_early(tmp_path: Path) -> None:
    expected = reference(Breaking())
    events = 0
    while kill(Breaking(), tmp_path / str(events), after(events + 1)):
        check_resumed(Breaking(), tmp_path / str(events), expected, f"event {events}")
        events += 1
    assert events > 10


class Nested(Method):
    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(2):
            for _ in fed.rounds(2):
                pass


def test_a_loop_in_a_loop_is_refused() -> None:
    with pytest.raises(ConfigError, match="a rounds loop within another"):
        federation(Nested()).start()


class Lonely(Method):
    """Keeps rounds alone."""

    rounds: int = 3

    def run(self, fed: Federation) -> None:
        seen = [(number, fed.round) for number in fed.rounds(self.rounds)]
        fed.log(seen=seen, after=fed.round)


def test_rounds_are_numbered_and_saved(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fed = federation(Lonely(), folder=folder)
    finish(fed)
    events = read_events(folder / "events.jsonl")
    assert [event["event"] for event in events] == [
        "started",
        "sites",
        *["checkpoint", "round"] * 3,
        "checkpoint",
        "log",
        "finished",
    ]
    assert events[-2]["seen"] == [[0, 0], [1, 1], [2, 2]]
    assert events[-2]["after"] == 3
    assert [event["of"] for event in events if event["event"] == "round"] == [3, 3, 3]


def test_no_rounds_are_a_loop_too(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in range(2):
        finish(federation(Lonely(rounds=0), folder=folder))
    kinds = [event["event"] for event in read_events(folder / "events.jsonl")]
    assert kinds == ["started", "sites", "checkpoint", "resumed", "log", "finished"]


class NoRoom(Wrapper):
    """A site whose disk is full."""

    def recv(self, timeout: float | None = None) -> Reply | None:
        reply = super().recv(timeout)
        if reply is not None and reply.site == "ada" and reply.tag == "@save1":
            return Reply("ada", reply.tag, error="cannot write state: No space left on device")
        return reply


def test_a_site_that_cannot_save_stops_the_run(tmp_path: Path) -> None:
    """Otherwise a resumed run would go on from a state that the site never wrote."""
    fed = federation(Phases(), folder=tmp_path / "run", wrap=NoRoom)
    fails(fed, StoreError, "site ada: cannot write state: No space left on device")
    assert HubStore(tmp_path / "run").position() is None


def test_a_site_that_cannot_restore_stops_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    kill(Phases(), folder, after(40))
    (state, *_) = sorted((folder / "sites" / "ada").iterdir(), reverse=True)
    state.write_bytes(b"damaged")
    fails(federation(Phases(), folder=folder), StoreError, "site ada: cannot read the checkpoint")


def test_a_site_that_never_answers_a_save_stops_the_run(tmp_path: Path) -> None:
    class Silent(Wrapper):
        def send(self, requests: Any) -> None:
            super().send([request for request in requests if request.op != "@save"])

    fed = federation(Phases(), folder=tmp_path / "run", wrap=Silent)
    fails(fed, StoreError, "no answer to @save from ada, ben, cleo, dan, eve")


def test_a_late_answer_is_not_taken_for_a_save(tmp_path: Path) -> None:
    class Late(Wrapper):
        def recv(self, timeout: float | None = None) -> Reply | None:
            if late:
                return late.pop()
            reply = super().recv(timeout)
            if reply is not None and reply.tag == "@save1" and reply.site == "eve":
                late.append(Reply("eve", "@save1", error="the disk is full"))
                return Reply("eve", "-1.-1.1", value={})
            return reply

    late: list[Reply] = []
    fed = federation(Phases(), folder=tmp_path / "run", wrap=Late)
    fails(fed, StoreError, "site eve: the disk is full")


class Counting(Method):
    """Sites count the rounds that they were asked in, in their state and in their model."""

    rounds: int = 4

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            replies = fed.all.ask(self.count, quorum=0)
            fed.state[f"round {fed.round}"] = {site: dict(replies[site]) for site in replies}

    @at_site(keeps="model")
    def count(self, site: Site) -> Tree:
        site.state = {"rounds": site.state.get("rounds", 0) + 1}
        return {"rounds": site.state["rounds"]}


class Away(Wrapper):
    """Ada cannot be reached in some rounds, for anything."""

    def __init__(self, engine: Any, *, rounds: tuple[int, ...], restoring: int = 0) -> None:
        super().__init__(engine)
        self.rounds = rounds
        self.restoring = restoring
        self.lost: list[Reply] = []

    def send(self, requests: Any) -> None:
        for request in requests:
            gone = request.site == "ada" and request.round in self.rounds
            if request.site == "ada" and request.op == "@restore" and self.restoring:
                self.restoring -= 1
                gone = True
            if gone:
                self.lost.append(Reply("ada", request.tag, error="not reached", lost=True))
            else:
                self.inner.send([request])

    def recv(self, timeout: float | None = None) -> Reply | None:
        return self.lost.pop() if self.lost else super().recv(timeout)


def test_a_site_that_is_away_at_a_checkpoint_is_saved_at_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fed = federation(Counting(), folder=folder, wrap=lambda engine: Away(engine, rounds=(1, 2)))
    fed.start()
    fed.events.close()
    assert [fed.state[f"round {number}"].get("ada") for number in range(4)] == [
        {"rounds": 1}, None, None, {"rounds": 2},
    ]  # fmt: skip
    events = read_events(folder / "events.jsonl")
    told = [(e["round"], e["op"]) for e in events if e["event"] == "failed"]
    # Round 1 begins with a checkpoint, at which it is away already.
    assert told == [(1, "@save"), (1, "count"), (2, "@save"), (2, "count")]
    assert Shelf(folder / "sites" / "ada").load(99)["state"] == {"rounds": 2}  # type: ignore[index]


def test_a_site_that_is_away_at_a_resume_goes_back_before_it_is_asked(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    whole = finish(federation(Counting(), folder=tmp_path / "whole"))
    seen: list[int] = []

    def die(event: Any) -> None:
        seen.append(event["event"] == "round")
        if sum(seen) == 3:
            raise KeyboardInterrupt

    fed = federation(Counting(), folder=folder, listener=die)
    with pytest.raises(KeyboardInterrupt):
        fed.start()
    fed.events.close()
    # Away once, it goes back when it is asked; for longer, it is not asked before it did.
    fed = federation(Counting(), folder=folder, wrap=lambda e: Away(e, rounds=(), restoring=1))
    assert finish(fed) == whole


def test_a_site_that_did_not_go_back_is_not_asked(tmp_path: Path) -> None:
    fed = federation(
        Counting(), folder=tmp_path / "run", wrap=lambda e: Away(e, rounds=(), restoring=3)
    )
    fed.start()
    fed.events.close()
    assert [fed.state[f"round {number}"].get("ada") for number in range(4)] == [
        None, None, {"rounds": 1}, {"rounds": 2},
    ]  # fmt: skip


def test_without_its_checkpoint_a_run_does_not_pretend(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    kill(Averaging(), folder, after(20))
    newest = sorted((folder / "hub").iterdir())[-1]
    newest.unlink()
    fails(federation(Averaging(), folder=folder), StoreError, "has no checkpoint of version")


class Reporting(Method):
    """Reports, and nothing else."""

    def run(self, fed: Federation) -> None:
        stranger = {name: torch.zeros_like(value) for name, value in weights_of(fed.model).items()}
        fed.report(stranger, sites=fed.at(["ben"]), point="as received", bonus=3)
        fed.state["hub"] = weights_of(fed.model)

    @at_site(sends={"metrics": "metric"}, keeps="model")  # type: ignore[dict-item]
    def evaluate(self, site: Site, bonus: int = 0) -> Tree:  # type: ignore[override]
        return {"metrics": {"bonus": [bonus, 1]}}


def test_a_report_names_party_and_point() -> None:
    fed = federation(Reporting())
    fed.start()
    metrics = [event for event in fed.events.memory if event["event"] == "metric"]
    assert [(event["party"], event["point"]) for event in metrics] == [
        ("hub", "hub"),
        ("ben", "as received"),
    ]
    assert metrics[0]["metrics"]["score"] == [pytest.approx(1 / 3), 8]
    assert metrics[1]["metrics"] == {"bonus": [3, 1]}
    assert not fed.state["hub"]["layer.weight"].any()


def test_a_site_that_cannot_be_evaluated_does_not_stop_the_run() -> None:
    class Reports(Method):
        def run(self, fed: Federation) -> None:
            fed.report(sites=fed.all)
            fed.report(sites=fed.at([]))

    fed = federation(Reports(), wrap=lambda engine: Dead(engine, "cleo"))
    fed.start()
    parties = [event["party"] for event in fed.events.memory if event["event"] == "metric"]
    assert parties == ["hub", "ada", "ben", "dan", "eve", "hub"]
    failed = [event for event in fed.events.memory if event["event"] == "failed"]
    assert [event["error"] for event in failed] == ["site cleo is down"]


def test_a_hub_without_model_or_test_rows_reports_on_sites_alone() -> None:
    class Reports(Method):
        def run(self, fed: Federation) -> None:
            fed.report(sites=fed.all)

    for lacking in ("_build", "test", "_evaluate"):
        fed = federation(Reports())
        setattr(fed, lacking, None)
        fed.start()
        metrics = [event for event in fed.events.memory if event["event"] == "metric"]
        assert [event["party"] for event in metrics] == list(NAMES)


def test_what_the_hub_lacks_is_named() -> None:
    fed = federation(Averaging())
    fed._public = None
    with pytest.raises(ConfigError, match="needs a public set; give the recipe data.public"):
        _ = fed.public
    with pytest.raises(ConfigError, match="needs rows at the hub"):
        _ = fed.data


def test_a_log_takes_plain_values() -> None:
    with pytest.raises(ConfigError, match="event 'log' cannot be written down"):
        federation(Averaging()).log(loss=torch.ones(1))


def test_the_hub_s_batches_belong_to_the_round() -> None:
    class Batches(Method):
        def run(self, fed: Federation) -> None:
            orders = [
                [batch.rows.tolist() for batch in fed.batches(fed.public, 5)] for _ in fed.rounds(4)
            ]
            draws = [float(torch.rand(())) for _ in fed.rounds(4)]
            fed.log(orders=orders, draws=draws)

    fed = federation(Batches())
    fed.start()
    (log,) = [event for event in fed.events.memory if event["event"] == "log"]
    assert len({str(order) for order in log["orders"]}) > 2
    assert len(set(log["draws"])) == 4
