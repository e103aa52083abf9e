"""FedBuff: limiting cases, algorithm 1 written out, staleness, and who waits for whom."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.labelled import go, recipe, rows
from tests.methods.plain import WHOLE, Plain, flat

from motet.core import ConfigError, SiteError, Tree
from motet.experiment.runner import Result
from motet.experiment.spec import parse_experiment
from motet.methods.fedbuff import Staleness, hinge, moved, polynomial

# All sites take the same time, whatever their rows.
EQUAL = "clients={speed: null, latency: 1}"
BATCH_NORM = [
    "server={width: 8, image: {name: cnn, side: 8, maps: [2], kernel: 3, norm: batch}}",
    "populations.site.models=[{width: 8, image: {name: cnn, side: 8, maps: [2], kernel: 3, "
    "norm: batch}}]",
]


def method(name: str = "fedbuff", rounds: int = 4, **fields: Any) -> dict[str, Any]:
    local = fields.pop("local", {"lr": 0.1, "batch": 8})
    return {"name": name, "rounds": rounds, "local": local, **fields}


def of(result: Result, kind: str) -> list[dict[str, Any]]:
    return [event for event in result.events if event["event"] == kind]


def curve(result: Result) -> list[tuple[int, Any]]:
    return [(event["round"], event["metrics"]) for event in of(result, "metric")]


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
@pytest.mark.parametrize("settings", [[], BATCH_NORM], ids=["mlp", "batch norm"])
@pytest.mark.parametrize("count", [2, 3])
def test_with_equal_speeds_and_k_equal_to_m_it_is_fedavg(
    count: int, settings: list[str], weighting: str
) -> None:
    """To the bit: nobody is ever stale, and the mean is the same function."""
    shared = {"cohort": count, "weighting": weighting}
    uneven = "populations.site.partition={name: by_size}"
    buff = go(method(buffer=count, **shared), EQUAL, uneven, *settings)
    avg = go(method("fedavg", **shared), EQUAL, uneven, *settings)
    assert buff.hash == avg.hash
    assert curve(buff) == curve(avg)
    times = [[event["seconds"] for event in of(result, "round")] for result in (buff, avg)]
    assert times[0] == times[1]
    assert all(event["staleness"] == 0 for event in of(buff, "log"))


def test_one_site_and_a_buffer_of_one_is_training_in_one_place() -> None:
    wanted = method(rounds=3, buffer=1, cohort=1, local={**WHOLE, "steps": 2})
    plain = Plain(wanted, "populations.site.count=1")
    x = plain.start
    for _ in range(6):
        x = x - 0.1 * plain.gradients["site-1"](x)
    found = flat(go(wanted, "populations.site.count=1"))
    torch.testing.assert_close(found, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("lr", "a"), [(1.0, 0.5), (0.4, 1.0)])
def test_it_is_the_algorithm_of_the_paper(lr: float, a: float) -> None:
    """Three sites that take 1, 2.3 and 5.1 seconds, all at work, and a buffer of two updates."""
    wanted = method(
        rounds=6,
        buffer=2,
        cohort=3,
        lr=lr,
        staleness={"name": "polynomial", "a": a},
        local={**WHOLE, "steps": 3},
    )
    pace = {"site-1": 1.0, "site-2": 2.3, "site-3": 5.1}
    plain = Plain(wanted)
    size = {site: min(WHOLE["batch"], plain.sizes[site]) for site in pace}
    only = {site: {"speed": 3 * size[site] / seconds} for site, seconds in pace.items()}

    def change(site: str, w: torch.Tensor) -> torch.Tensor:
        x = w
        for _ in range(3):
            x = x - 0.1 * plain.gradients[site](x)
        return x - w

    w, version, buffer = plain.start, 0, []
    work = {site: (seconds, w, 0) for site, seconds in pace.items()}
    ages = []
    while version < 6:
        site = min(work, key=lambda name: work[name][0])
        now, start, began = work.pop(site)
        ages.append(version - began)
        buffer.append(change(site, start) / (1 + version - began) ** a)
        if len(buffer) == 2:
            w = w + lr * torch.stack(buffer).mean(dim=0)
            version, buffer = version + 1, []
        work[site] = (now + pace[site], w, version)
    result = go(wanted, f"clients.only={only}")
    torch.testing.assert_close(flat(result), w, rtol=0, atol=1e-6)
    assert max(ages) >= 2
    assert sum(event["staleness"] for event in of(result, "log")) * 2 == sum(ages)


def test_an_update_that_is_not_stale_counts_whole() -> None:
    for name in ("constant", "polynomial", "hinge"):
        assert Staleness(name=name)(0) == 1.0


def test_staleness_is_what_the_papers_say() -> None:
    assert polynomial(3, 0.5) == 0.5
    assert Staleness()(8) == pytest.approx(1 / math.sqrt(9))
    assert [hinge(tau, 2.0, 3) for tau in (2, 3, 4, 6)] == [1.0, 1.0, 1 / 3, 1 / 7]
    assert Staleness(name="hinge", a=2.0, b=3)(4) == 1 / 3
    assert Staleness(name="constant", a=9.0)(50) == 1.0
    for rule in (Staleness(), Staleness(name="hinge")):
        assert all(rule(tau) >= rule(tau + 1) > 0 for tau in range(20))


def test_the_server_s_rate_is_the_way_to_the_mean() -> None:
    weights: Tree = {"w": torch.tensor([1.0, 2.0]), "seen": torch.tensor(3)}
    mean: Tree = {"w": torch.tensor([3.0, 2.1]), "seen": torch.tensor(4)}
    assert torch.equal(moved(weights, mean, 1.0)["w"], mean["w"])
    assert moved(weights, mean, 0.5)["w"].tolist() == pytest.approx([2.0, 2.05])
    assert set(moved(weights, mean, 0.5)) == {"w"}


SLOW = (
    "populations.site.count=6",
    "clients={speed: null, latency: 1, only: {site-6: {speed: null, latency: 50}}}",
)


def test_nobody_waits_for_a_slow_site() -> None:
    buff = go(method(rounds=20, buffer=3, cohort=6), *SLOW)
    avg = go(method("fedavg", rounds=20, cohort=6), *SLOW)
    took = [of(result, "round")[-1]["seconds"] for result in (buff, avg)]
    assert took[1] == 19 * 100
    assert took[0] < 60
    sites = {event["site"] for event in of(buff, "replied")}
    assert "site-6" not in sites


def test_so_many_are_at_work_and_nobody_twice() -> None:
    result = go(method(rounds=8, buffer=4, cohort=2), *SLOW)
    working: set[str] = set()
    most = 0
    for event in result.events:
        if event["event"] == "posted":
            assert not working & set(event["sites"])
            working |= set(event["sites"])
            most = max(most, len(working))
        elif event["event"] == "replied":
            working.remove(event["site"])
    assert most == 2
    assert [len(batch) for batch in answers_by_model(result)] == [4] * 8


def answers_by_model(result: Result) -> list[list[str]]:
    """The sites whose answers made each model."""
    found: list[list[str]] = []
    for event in result.events:
        if event["event"] == "round":
            found.append([])
        elif event["event"] == "replied":
            found[-1].append(event["site"])
    return found


def test_more_answers_than_sites_make_a_model_too() -> None:
    result = go(method(rounds=2, buffer=7, cohort=3), EQUAL)
    assert [len(batch) for batch in answers_by_model(result)] == [7, 7]


def test_a_site_that_is_gone_stops_the_run_or_is_left_out_until_the_next_model() -> None:
    gone = ["faults={dead: {site-2: [0, null]}}", EQUAL, "engine.timeout=5"]
    told = r"1 of 2 sites answered, 2 were wanted: no answer within 5 s"
    with pytest.raises(SiteError, match=told):
        go(method(rounds=4, buffer=3, cohort=3), *gone)
    result = go(method(rounds=12, buffer=3, cohort=3, quorum=0.5), *gone)
    failed = [(event["site"], event["seconds"]) for event in of(result, "failed")]
    # Asked again once the next model is there, after six.
    assert failed[:2] == [("site-2", 5.0), ("site-2", 11.0)]
    assert {site for site, _ in failed} == {"site-2"}
    assert of(result, "finished")


def test_a_network_that_loses_everything_ends_the_run() -> None:
    with pytest.raises(SiteError, match="0 of 3 sites answered, 1.5 were wanted: no answer"):
        go(method(buffer=3, cohort=3, quorum=0.5), EQUAL, "faults={drop: 1.0}")


def test_lost_answers_are_asked_for_again() -> None:
    storm = ["faults={drop: 0.2, corrupt: 0.2, duplicate: 0.2, reorder: 0.2}", "engine.retries=9"]
    calm = go(method(rounds=6, buffer=2, cohort=2), EQUAL)
    result = go(method(rounds=6, buffer=2, cohort=2), EQUAL, *storm)
    assert of(result, "failed") == []
    assert of(result, "asked again")
    assert [len(batch) for batch in answers_by_model(result)] == [2] * 6
    assert of(calm, "asked again") == []


def test_a_second_run_is_the_same_also_in_a_folder(tmp_path: Path) -> None:
    wanted = method(rounds=4, buffer=2, cohort=3)
    settings = ["clients={speed: 40, jitter: 0.5, bandwidth: 0.1}"]
    plain = go(wanted, *settings)
    kept = go(wanted, *settings, folder=tmp_path / "run")
    assert kept.hash == plain.hash
    assert curve(kept) == curve(plain)


def test_without_profiles_all_sites_are_equally_fast() -> None:
    result = go(method(rounds=1, buffer=3, cohort=3))
    assert recipe(method()).clients is None
    ends = {event["seconds"] for event in of(result, "replied")}
    assert max(ends) == pytest.approx(len(rows()) // 5 / 100, abs=0.2)


def test_central_privacy_is_refused_with_a_reason() -> None:
    private = "protect.privacy={mode: central, kinds: [weights], clip: 1.0, noise: 1.0}"
    with pytest.raises(ConfigError, match="collects answers one by one, and protect lets the hub"):
        go(method(rounds=1, buffer=3, cohort=3), private)


def test_a_median_makes_the_new_model_where_the_recipe_says_so() -> None:
    robust = "protect.robust={name: median, share: 0.3}"
    wanted = method(rounds=2, buffer=3, cohort=3)
    assert go(wanted, robust, EQUAL).hash != go(wanted, EQUAL).hash
    avg = go(method("fedavg", rounds=2, cohort=3), robust, EQUAL)
    assert go(wanted, robust, EQUAL).hash == avg.hash


def test_the_recipe_s_profiles_are_checked() -> None:
    values = recipe(method()).plain()
    with pytest.raises(ConfigError, match=r"clients\.speed"):
        parse_experiment({**values, "clients": {"speed": 0}})
