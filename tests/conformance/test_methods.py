"""What every method must do on every engine: a new method is tried by being registered.

Methods that need a recipe of their own have a row in ``tiny.NEEDS``; variants of a method that
send other things have one in ``tiny.VARIANTS``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.conformance.tiny import (
    NEEDS,
    ROUNDS,
    VARIANTS,
    Case,
    coded,
    experiment,
    paired,
    parties,
    try_out,
)

from motet.core import ConfigError, Kind, Request, SiteError, wire
from motet.core.events import Event
from motet.core.messages import Reply
from motet.core.method import Operation
from motet.core.tree import weights_of
from motet.engines.serial import Serial
from motet.experiment.runner import METRICS, Result, metrics_csv, run
from motet.methods.registry import METHODS

CASES = {**{name: Case(name) for name in METHODS}, **VARIANTS}
PAIRED = [name for name, tried in CASES.items() if paired(tried)]
ENGINES = {
    "serial": [],
    "strict": ["engine.strict=true"],
    "int8": ["engine.strict=true"],
    "fp16": [],
}


def on(case: Case, engine: str) -> list[str]:
    """The settings of an engine, with its codec for what this method sends."""
    if engine not in ("int8", "fp16"):
        return ENGINES[engine]
    return [*ENGINES[engine], coded(case.name, representations=engine, weights=engine)]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@cache
def plain(case: Case) -> Result:
    """The reference: in memory, one site after the other."""
    return try_out(case)


def told(result: Result, *left_out: str) -> list[Event]:
    """All events of a run without their times."""
    return [
        {key: value for key, value in event.items() if key not in ("time", *left_out)}
        for event in result.events
        if event["event"] not in ("started", "checkpoint", "resumed")
    ]


def has(case: Case, field: str) -> bool:
    return field in type(experiment(case).method).model_fields


def of_kind(result: Result, kind: str) -> list[Event]:
    return [event for event in result.events if event["event"] == kind]


@pytest.mark.usefixtures("rng_untouched")
@pytest.mark.parametrize("engine", ENGINES)
def test_it_runs_and_reports(case: Case, engine: str) -> None:
    result = try_out(case, *on(case, engine))
    assert of_kind(result, "failed") == []
    assert [event["round"] for event in of_kind(result, "round")] == list(range(ROUNDS))
    assert of_kind(result, "finished")
    metrics = of_kind(result, "metric")
    # Without a model at the hub, on the sites.
    reported = {event["round"] for event in metrics}
    assert reported >= set(range(ROUNDS))
    for event in metrics:
        for name, (value, n) in event["metrics"].items():
            assert 0 <= value <= (600 if name == "rsum" else 100), (event["party"], name)
            assert n > 0


def test_frames_change_nothing(case: Case) -> None:
    strict = try_out(case, *on(case, "strict"))
    assert told(strict) == told(plain(case))
    assert strict.hash == plain(case).hash


def test_a_second_run_is_the_same_whatever_the_global_generators_say(case: Case) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again = try_out(case)
    assert told(again) == told(plain(case))


def test_another_seed_is_another_run(case: Case) -> None:
    assert told(try_out(case, "seed=1")) != told(plain(case))


class Backwards(Serial):
    """Lets the sites run in the opposite order."""

    def send(self, requests: Sequence[Request]) -> None:
        super().send(list(reversed(requests)))


def test_the_order_of_the_sites_changes_nothing(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("motet.experiment.runner.Serial", Backwards)
    turned = try_out(case)
    ordered = [sorted(map(json.dumps, told(result))) for result in (turned, plain(case))]
    assert ordered[0] == ordered[1]


@pytest.mark.usefixtures("rng_untouched")
def test_one_loop_for_several_sites_gives_nearly_the_same(case: Case) -> None:
    together = try_out(case, "engine.name=coalesced")
    assert of_kind(together, "failed") == []
    one = plain(case)
    assert [event["event"] for event in told(together) if event["event"] != "fits"] == [
        event["event"] for event in told(one)
    ]
    for found, wanted in zip(of_kind(together, "metric"), of_kind(one, "metric"), strict=True):
        assert (found["party"], found["point"]) == (wanted["party"], wanted["point"])
        for name, (value, n) in wanted["metrics"].items():
            # A row between two classes may fall to the other side.
            assert found["metrics"][name][0] == pytest.approx(value, abs=100 / n, rel=1e-4)
    if one.model is not None and together.model is not None:
        weights = weights_of(together.model)
        for name, value in weights_of(one.model).items():
            spread = float((weights[name] - value).double().norm())
            assert spread <= 1e-5 * float(value.double().norm()), name


@pytest.mark.parametrize("engine", ["serial", "int8"])
def test_it_sends_only_what_it_declares(case: Case, engine: str) -> None:
    operations: dict[str, Operation] = experiment(case).method.operations()
    for event in of_kind(try_out(case, *on(case, engine)), "replied"):
        operation = operations[event["op"]]
        assert set(event["up"]) <= {"frame", *map(str, operation.sends.values())}, event
        assert set(event["down"]) <= {"frame", *map(str, operation.takes.values())}, event


class Weighing(Serial):
    """Looks at what travels: the bytes that are told must be those of real frames."""

    def recv(self, timeout: float | None = None) -> Reply | None:
        request = self._queue[0] if self._queue else None
        reply = super().recv(timeout)
        if reply is not None and request is not None and reply.value is not None:
            message = {
                key: getattr(request, key) for key in ("op", "tag", "round", "shared", "own")
            }
            assert reply.down == len(wire.encode(message))
            assert reply.up == len(wire.encode(reply.value))
        return reply


@pytest.mark.parametrize("engine", ENGINES)
def test_bytes_are_those_of_real_frames(
    case: Case, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("motet.experiment.runner.Serial", Weighing)
    result = try_out(case, *on(case, engine))
    for event in of_kind(result, "replied"):
        for way in ("down", "up"):
            parts = sum(count for kind, count in event[way].items() if kind != "frame")
            assert parts < event[way]["frame"]


def kinds_of(case: Case) -> list[str]:
    """What the method sends up, but for metrics."""
    operations = experiment(case).method.operations().values()
    kinds = {kind for operation in operations for kind in operation.sends.values()}
    return sorted(str(kind) for kind in kinds - {Kind.METRIC})


def protections(case: Case) -> dict[str, list[str]]:
    """Name -> settings of what protects the kinds that this method sends."""
    listed = ", ".join(kinds_of(case))
    noise = f"kinds: [{listed}], clip: 1.0, noise: 0.01"
    return {
        "robust": [f"protect.robust={{name: median, kinds: [{listed}]}}"],
        "secure sum": [f"protect.secure_sum={{kinds: [{listed}], dropouts: 1, weights: uniform}}"],
        "central": [f"protect.privacy={{mode: central, {noise}}}"],
        "local": [f"protect.privacy={{mode: local, {noise}}}"],
        "rows": ["protect.privacy={mode: rows, clip: 1.0, noise: 0.01}"],
        "qsgd": ["protect.compress={" + ", ".join(f"{k}: qsgd" for k in kinds_of(case)) + "}"],
        "poisoned": ["attack={name: sign-flip, share: 0.34, factor: 1}"],
    }


def tried(case: Case, name: str) -> tuple[Result | None, str]:
    """A run under this protection, or why there is none."""
    try:
        return try_out(case, *protections(case)[name]), ""
    except (ConfigError, SiteError) as error:
        return None, str(error)


@pytest.mark.parametrize(
    "name", ["robust", "secure sum", "central", "local", "rows", "qsgd", "poisoned"]
)
def test_protection_works_or_is_refused_with_a_reason(case: Case, name: str) -> None:
    """Whatever a recipe asks for, a method runs under it or says in a sentence why not."""
    result, refusal = tried(case, name)
    if result is None:
        # A site that refuses what would leave it unprotected stops the run, with its reason.
        reasons = ("protect", "leave", "choose another", "a sum needs", "write")
        assert any(word in refusal for word in reasons), refusal
        return
    assert of_kind(result, "finished")
    assert [event["error"] for event in of_kind(result, "failed")] == []


@pytest.mark.parametrize(("engine", "share"), [("fp16", 0.5), ("int8", 0.375)])
def test_codecs_save_what_they_promise(case: Case, engine: str, share: float) -> None:
    """Rows of 8 numbers: 8 codes and one scale of 4 bytes in place of 32 bytes."""

    def volume(result: Result) -> float:
        events = of_kind(result, "replied")
        return sum(event["up"].get("representations", 0) for event in events)

    packed = try_out(case, *on(case, engine))
    assert volume(packed) == share * volume(plain(case))


def killed(case: Case, folder: Path, count: int) -> bool:
    """A run in a process of its own that is killed after so many events; whether it was."""

    def child() -> None:
        left = iter(range(count - 1, -1, -1))

        def listener(_: Event) -> None:
            if next(left, 1) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try_out(case, folder=folder, listeners=[listener])

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL


def test_a_killed_run_goes_on(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    folder = tmp_path / "run"
    last = len(plain(case).events)
    assert killed(case, folder, max(last // 3, 5))
    assert killed(case, folder, last // 2)
    result = try_out(case, folder=folder)
    assert result.hash == plain(case).hash
    assert (folder / METRICS).read_text() == metrics_csv(plain(case).events)
    assert told(result, "hash") == told(plain(case), "hash")


# One of each kind of federation.
DEAD = ("pair-1", "site-1")


class Broken(Serial):
    """One site answers the wanted operations with an error."""

    operations: frozenset[str] = frozenset()

    def recv(self, timeout: float | None = None) -> Reply | None:
        request = self._queue[0] if self._queue else None
        if request is None or request.site not in DEAD or request.op not in self.operations:
            return super().recv(timeout)
        self._queue.popleft()
        return Reply(request.site, request.tag, error=f"site {request.site} is down")


def break_site(case: Case, monkeypatch: pytest.MonkeyPatch, *spared: str) -> None:
    names = frozenset(experiment(case).method.operations()) - set(spared)
    engine = type("BrokenHere", (Broken,), {"operations": names})
    monkeypatch.setattr("motet.experiment.runner.Serial", engine)


def test_a_site_that_cannot_be_evaluated_stops_nothing(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``fed.report`` is content with the answers that come."""
    others = [name for name in experiment(case).method.operations() if name != "evaluate"]
    break_site(case, monkeypatch, *others)
    result = try_out(case)
    assert result.hash == plain(case).hash
    parties_told = {event["party"] for event in of_kind(result, "metric")}
    assert not parties_told.intersection(DEAD)
    asked = [event for event in of_kind(plain(case), "replied") if event["op"] == "evaluate"]
    assert bool(of_kind(result, "failed")) == any(event["site"] in DEAD for event in asked)


def test_a_dead_site_is_passed_over_or_named(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a quorum a method goes on; one that wants all answers says whose is missing."""
    asked = {event["op"] for event in of_kind(plain(case), "replied")} - {"evaluate"}
    break_site(case, monkeypatch)
    everyone = ["method.cohort=6"] if has(case, "cohort") else []
    if asked:
        with pytest.raises(SiteError, match="5 of 6 sites answered, 6 were wanted: site .*-1 is"):
            try_out(case, *everyone)
        everyone.append("method.quorum=0.5")
    assert of_kind(try_out(case, *everyone), "finished")


@pytest.mark.parametrize("only", ["image", "text"])
@pytest.mark.parametrize("name", PAIRED)
def test_a_round_without_a_modality_does_not_crash(name: str, only: str) -> None:
    """No site at all holds the other modality, so that no sample can."""
    wanted = experiment(CASES[name])
    left = tuple(p for p in wanted.populations if p.modalities == (only,))
    wanted = wanted.model_copy(update={"populations": left})
    if wanted.method.pools_private_rows:
        with pytest.raises(ConfigError, match="needs sites that hold all modalities"):
            run(wanted, parties=parties(wanted))
        return
    result = run(wanted, parties=parties(wanted))
    assert of_kind(result, "finished")
    assert {event["site"].split("-")[0] for event in of_kind(result, "replied")} <= {only}


@pytest.mark.parametrize("public", [0, 1])
def test_a_public_set_that_is_none_is_refused_or_not_needed(case: Case, public: int) -> None:
    if experiment(case).method.needs_public:
        with pytest.raises(ConfigError, match=f"needs a public set .* data.public gives {public}"):
            try_out(case, f"data.public={public}")
    else:
        assert of_kind(try_out(case, f"data.public={public}"), "finished")


def test_the_smallest_public_set_will_do(case: Case) -> None:
    settings = ["method.block=2"] if case.name == "fedgems" else []
    assert of_kind(try_out(case, "data.public=2", *settings), "finished")


def test_a_site_without_rows_is_named(case: Case) -> None:
    wanted = experiment(case)
    made = parties(wanted)
    first, *others = made.sites
    empty = replace(first, data=first.data.take([]))
    made = replace(made, sites=(empty, *others))
    if has(case, "cohort"):
        wanted = wanted.model_copy(
            update={"method": wanted.method.model_copy(update={"cohort": 6})}
        )
    asked = {event["op"] for event in of_kind(plain(case), "replied")} - {"evaluate"}
    if asked:
        told = rf"site {first.name}, round 0.* {first.name} has no rows to"
        with pytest.raises(SiteError, match=told):
            run(wanted, parties=made)
    else:
        assert of_kind(run(wanted, parties=made), "finished")


@pytest.mark.parametrize("name", PAIRED)
def test_rows_that_lack_a_modality_are_no_trouble(name: str) -> None:
    """Some batches of the pair sites hold no whole pair."""
    case = CASES[name]
    settings = ["populations.pair.missing={rows: {image: 0.45, text: 0.45}}"]
    if has(case, "private"):
        settings.append("method.private.batch=2")
    assert of_kind(try_out(case, *settings), "finished")


# An order has no size to blow up; a head alone grows too slowly.
CALM = ("frl", "fedrep")
TRAINED = [
    (name, party)
    for name, tried in CASES.items()
    for party in ("private", "server", "local")
    if has(tried, party) and name not in CALM
]


@pytest.mark.parametrize(("name", "party"), TRAINED)
def test_a_loss_that_blows_up_names_party_and_remedy(name: str, party: str) -> None:
    epochs = getattr(experiment(CASES[name]).method, party).epochs + 2
    at_hub = party == "server" or experiment(CASES[name]).method.pools_private_rows
    who = "hub" if at_hub else r"site [a-z]+-\d, round \d, operation \w+: [a-z]+-\d"
    with pytest.raises(SiteError, match=rf"{who}: the .* (nan|inf|NaN).*lower the learning rate"):
        try_out(CASES[name], f"method.{party}.lr=1.0e+38", f"method.{party}.epochs={epochs}")


def test_every_need_is_that_of_a_method() -> None:
    assert set(NEEDS) <= set(METHODS)
    assert {case.name for case in VARIANTS.values()} <= set(METHODS)
