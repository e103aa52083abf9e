"""Sites that are put away and taken up again: nobody can tell from the results."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core.toys import NAMES, Phases, federation, rows, specs, toy

from motet.core import Federation, Kind, Method, Site, SiteSpec, Tree, at_site, weights_of, wire
from motet.core.events import Events, read_events
from motet.core.messages import Reply, Request
from motet.core.mould import Mould
from motet.core.roster import Drawn, Names
from motet.core.store import HubStore
from motet.engines.doors import Doors
from motet.engines.serial import Serial


class Counting(Method):
    """Every site counts its visits, and the hub their sum."""

    rounds: int = 4
    cohort: int = 20

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            replies = fed.sample(self.cohort).ask(self.visit)
            fed.log(visits=replies.mean("visits"))

    @at_site()
    def visit(self, site: Site) -> Tree:
        before = site.state.get("mark", torch.zeros(3))
        mark = before + torch.randn(3, generator=site.rng("mark"))
        site.state = {"visits": site.state.get("visits", 0) + 1, "mark": mark}
        return {"visits": site.state["visits"] + float(mark.sum())}


def plain(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in event.items() if k != "time"} for event in events]


@pytest.mark.parametrize("live", [1, 2, 4])
def test_few_live_sites_give_the_results_of_all(live: int) -> None:
    wanted = federation(Phases())
    wanted.start()
    fed = federation(Phases())
    assert isinstance(fed.engine, Serial)
    doors = fed.engine._doors
    doors.live = live
    fed.start()
    assert plain(fed.events.memory) == plain(wanted.events.memory)
    assert len(doors._doors) == live
    assert doors._scratch is not None
    scratch = doors._scratch
    assert scratch.is_dir()
    fed.engine.close()
    assert not scratch.exists()


@pytest.mark.parametrize("stop", [5, 17, 29])
def test_a_killed_run_with_few_live_sites_goes_on(tmp_path: Path, stop: int) -> None:
    class StopError(Exception):
        pass

    wanted = federation(Phases())
    wanted.start()
    seen = Counter[str]()

    def listen(event: dict[str, object]) -> None:
        seen["events"] += 1
        if seen["events"] == stop:
            raise StopError

    fed = federation(Phases(), folder=tmp_path, listener=listen)
    assert isinstance(fed.engine, Serial)
    fed.engine._doors.live = 1
    with pytest.raises(StopError):
        fed.start()
    fed.events.close()
    again = federation(Phases(), folder=tmp_path)
    assert isinstance(again.engine, Serial)
    again.engine._doors.live = 2
    again.start()
    again.events.close()
    last = read_events(tmp_path / "events.jsonl")[-1]
    assert last["hash"] == wanted.events.memory[-1]["hash"]


def many(count: int) -> Drawn[SiteSpec]:
    return Drawn(Names({"site": count}), lambda name: SiteSpec(name, rows(name, 2)))


def counted(sites: int, live: int | None, folder: Path | None = None, rounds: int = 4) -> Any:
    method = Counting(rounds=rounds)
    engine = Serial(
        many(sites),
        method,
        seed=0,
        live=live,
        folder=None if folder is None else folder / "sites",
    )
    store = None if folder is None else HubStore(folder)
    fed = Federation(engine, method, seed=0, store=store, events=Events(None))
    fed.start()
    told = [event["visits"] for event in fed.events.memory if event["event"] == "log"]
    return fed, told


def test_state_of_many_sites_waits_on_disk() -> None:
    # 40 sites of which 20 are asked in each round: most of them come again.
    wanted = counted(40, None)[1]
    fed, told = counted(40, 5)
    assert told == wanted
    assert len(set(told)) == 4
    assert len(fed.engine._doors._doors) == 5
    assert len(fed.engine._doors._away) > 20


def test_a_million_sites_cost_what_is_asked_of_them(tmp_path: Path) -> None:
    fed, told = counted(10**6, 10, tmp_path, rounds=3)
    asked = {event["site"] for event in fed.events.memory if event["event"] == "replied"}
    assert len(told) == 3
    assert len(asked) == 60
    assert {path.name for path in (tmp_path / "sites").iterdir()} == asked
    assert fed.engine.holding() == asked
    told = [event for event in fed.events.memory if event["event"] == "sites"]
    assert told[0]["sites"] == {}
    assert {name for event in told for name in event["sites"]} == asked
    assert all(event["count"] == 10**6 for event in told)
    sent: list[Request] = []
    again = Serial(many(10**6), fed.method, seed=0, folder=tmp_path / "sites")
    send = again.send

    def noted(requests: Any) -> None:
        sent.extend(requests)
        send(requests)

    again.send = noted  # type: ignore[method-assign]
    hub = Federation(again, fed.method, seed=0, store=HubStore(tmp_path), events=Events(None))
    hub.start()
    # The run is over: sites that hold something are told to go back to it, and no other is asked.
    assert {request.op for request in sent} == {"@restore"}
    assert {request.site for request in sent} == asked


def test_a_repeated_request_is_answered_from_what_was_put_away() -> None:
    for repeats, visits in ((True, 1), (False, 2)):
        engine = Serial(many(3), Counting(), seed=0, live=1, repeats=repeats)
        answers = []
        for site in ("site-1", "site-2", "site-1"):
            engine.send([Request(site, "visit", "tag", 0)])
            reply = engine.recv()
            assert reply is not None
            assert reply.value is not None
            answers.append(reply.value)
        assert (answers[0] == answers[2]) is repeats
        assert engine._doors["site-1"]._kept["state"]["visits"] == visits


def test_a_site_that_holds_nothing_leaves_nothing_behind() -> None:
    class Idle(Method):
        @at_site()
        def nothing(self, site: Site) -> Tree:
            return {}

    engine = Serial(many(3), Idle(), seed=0, live=1, repeats=False)
    for name in engine.sites():
        engine.send([Request(name, "nothing", "tag", 0)])
        assert engine.recv() is not None
    assert engine._doors._away == set()
    assert engine._doors._scratch is None
    assert len(engine._doors) == 3
    assert list(engine._doors) == ["site-1", "site-2", "site-3"]
    assert "site-2" in engine._doors


class Sending(Method):
    """Sites send weights, of which the hub takes the mean."""

    averaged: bool = True

    def run(self, fed: Federation) -> None:
        weights = weights_of(fed.model)
        averaged: Any = {"weights": "samples"} if self.averaged else None
        replies = fed.all.ask(self.train, weights=weights, averaged=averaged)
        fed.state["weights"] = replies.mean("weights", by="samples")

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        noise = torch.randn(4, generator=site.rng("noise"))
        sent = {**weights, "layer.weight": weights["layer.weight"] + noise}
        return {"weights": sent, "samples": len(site.data)}


class Watched(Serial):
    """Counts the replies that somebody holds."""

    alive: weakref.WeakSet[torch.Tensor]
    most = 0

    def recv(self, timeout: float | None = None) -> Reply | None:
        reply = super().recv(timeout)
        if reply is not None and reply.value is not None:
            self.alive.add(reply.value["weights"]["layer.weight"])
        self.most = max(self.most, len(self.alive))
        return reply


def test_answers_that_are_averaged_are_not_held() -> None:
    found = []
    for averaged, most in ((True, 3), (False, 30)):
        mould = Mould(lambda: toy("all"))
        made = [SiteSpec(f"s-{i}", rows(f"s-{i}", 2 + i % 3), None, mould) for i in range(30)]
        method = Sending(averaged=averaged)
        engine = Watched(made, method, seed=0, repeats=False)
        engine.alive = weakref.WeakSet()
        fed = Federation(engine, method, seed=0, build=mould)
        fed.start()
        assert engine.most <= most
        assert averaged or engine.most == most
        found.append(wire.digest(fed.state["weights"]))
    assert found[0] == found[1]


def test_doors_are_made_when_they_are_asked_for() -> None:
    made: list[str] = []

    def make(spec: SiteSpec) -> Any:
        made.append(spec.name)
        return object()

    doors = Doors(specs(), make)
    assert made == []
    assert doors["ben"] is doors["ben"]
    assert made == ["ben"]
    assert set(doors) == set(NAMES)
    assert doors.holding() == {"ben"}
