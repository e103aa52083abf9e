"""FedDyn held against its algorithm box, and in its limits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.methods import labelled
from tests.methods.plain import WHOLE, Plain, cohorts, flat, watched
from torch import Tensor

from motet.core import mean
from motet.core.wire import digest
from motet.methods.feddyn import constant_drift


def feddyn(rounds: int = 5, cohort: int = 2, **more: Any) -> dict[str, Any]:
    plain = {"weight_decay": 0.0, "clip": None}
    local = {**WHOLE, **plain, "steps": 3, **more.pop("local", {})}
    return {"name": "feddyn", "rounds": rounds, "cohort": cohort, "local": local, **more}


def reference(plain: Plain, rounds: list[list[str]], alpha: float, decay: float) -> Tensor:
    """Algorithm 1 of the paper, with the sites' gradients and the hub's h, on flat vectors."""
    w = plain.start
    h = torch.zeros_like(w)
    linear = {name: torch.zeros_like(w) for name in plain.gradients}
    for sites in rounds:
        ends = []
        for name in sites:
            x = w.clone()
            for _ in range(3):
                slope = plain.gradients[name](x) + decay * x - linear[name] + alpha * (x - w)
                x = x - 0.1 * slope
            linear[name] = linear[name] - alpha * (x - w)
            ends.append(x)
        h = h - alpha * torch.stack([x - w for x in ends]).sum(dim=0) / len(plain.gradients)
        w = torch.stack(ends).mean(dim=0) - h / alpha
    return w


@pytest.mark.parametrize(("alpha", "decay"), [(0.1, 0.0), (0.5, 0.0), (0.1, 0.05)])
def test_it_is_the_papers_algorithm(alpha: float, decay: float) -> None:
    method = feddyn(alpha=alpha, local={"weight_decay": decay})
    result = labelled.go(method)
    rounds = cohorts(result)
    assert len({tuple(sites) for sites in rounds}) > 1
    wanted = reference(Plain(method), rounds, alpha, decay)
    torch.testing.assert_close(flat(result), wanted, atol=1e-5, rtol=1e-4)


def test_the_hub_holds_the_mean_of_all_sites_dual_vectors() -> None:
    for moment in watched(labelled.federation(feddyn(cohort=1))):
        zero = {name: torch.zeros_like(value) for name, value in moment["hub"]["h"].items()}
        own = [state.get("h", zero) for state in moment["sites"].values()]
        torch.testing.assert_close(moment["hub"]["h"], mean(own, [1, 1, 1]))


def test_a_site_that_is_away_keeps_its_dual_vector() -> None:
    moments = watched(labelled.federation(feddyn(cohort=1)))
    for before, after in pairwise(moments):
        changed = [
            name
            for name, state in after["sites"].items()
            if digest(state) != digest(before["sites"][name])
        ]
        assert len(changed) == 1
        assert after["sites"][changed[0]]


def test_the_mean_is_uniform() -> None:
    sizes = "populations.0.partition={name: by_size, law: square}"
    method = feddyn(rounds=1, cohort=3)
    wanted = reference(Plain(method, sizes), [["site-1", "site-2", "site-3"]], 0.1, 0.0)
    torch.testing.assert_close(flat(labelled.go(method, sizes)), wanted, atol=1e-5, rtol=1e-4)


def test_without_dual_vectors_it_is_a_proximal_term() -> None:
    method = feddyn(rounds=2, cohort=3, alpha=0.7, dual="none")
    plain = Plain(method)
    w = plain.start
    for _ in range(2):
        ends = []
        for gradient in plain.gradients.values():
            x = w
            for _ in range(3):
                x = x - 0.1 * (gradient(x) + 0.7 * (x - w))
            ends.append(x)
        w = torch.stack(ends).mean(dim=0)
    torch.testing.assert_close(flat(labelled.go(method)), w, atol=1e-5, rtol=1e-4)
    assert not any(state for state in watched(labelled.federation(method))[-1]["sites"].values())


def test_the_drift_adds_the_dual_vector_and_the_control_takes_it_away() -> None:
    start, h = {"a": torch.tensor([2.0])}, {"a": torch.tensor([0.5])}
    assert constant_drift(start, h, 0.1)["a"].item() == pytest.approx(0.1 * (0.5 - 2.0))
    assert constant_drift(start, h, 0.1, -1.0)["a"].item() == pytest.approx(0.1 * (-0.5 - 2.0))


def test_the_reversed_control_differs_from_the_second_round_on() -> None:
    once = [
        labelled.go(feddyn(rounds=1, cohort=3, dual=dual)).hash for dual in ("added", "reversed")
    ]
    twice = [
        labelled.go(feddyn(rounds=2, cohort=3, dual=dual)).hash for dual in ("added", "reversed")
    ]
    assert once[0] == once[1]
    assert twice[0] != twice[1]


def test_the_clip_leaves_the_part_that_hangs_on_x_alone() -> None:
    method = feddyn(rounds=1, cohort=3, alpha=0.5, local={"steps": 1, "clip": 1e-4})
    plain = Plain(method)
    ends = []
    for gradient in plain.gradients.values():
        q = gradient(plain.start) - 0.5 * plain.start
        ends.append(plain.start - 0.1 * (q * 1e-4 / q.norm() + 0.5 * plain.start))
    moved = torch.stack(ends).mean(dim=0) - plain.start
    wanted = plain.start + moved + moved
    torch.testing.assert_close(flat(labelled.go(method)), wanted, atol=1e-5, rtol=1e-4)


def test_without_steps_nothing_changes() -> None:
    fed = labelled.federation(feddyn(local={"steps": 0}))
    before = {name: value.clone() for name, value in fed.model.state_dict().items()}
    for moment in watched(fed):
        assert all(torch.equal(moment["weights"][name], value) for name, value in before.items())


def test_the_traffic_is_that_of_fedavg() -> None:
    def sizes(name: str) -> list[tuple[int, int]]:
        method = {**feddyn(rounds=2), "name": name}
        events = labelled.go(method).events
        replies = [event for event in events if event["event"] == "replied"]
        return [(e["down"]["weights"], e["up"]["weights"]) for e in replies if e["op"] == "train"]

    assert sizes("feddyn") == sizes("fedavg")
