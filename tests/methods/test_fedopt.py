"""The hub's optimisers held against their formulas, and in their limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.methods import labelled
from tests.methods.plain import WHOLE, Plain, cohorts, flat, watched
from torch import Tensor

from motet.methods.fedopt import FedAdagrad, FedAdam, FedAvgM, FedYogi

NAMES = ("fedavgm", "fedadagrad", "fedadam", "fedyogi")
SIZES = "populations.0.partition={name: by_size, law: square}"


def method(name: str, rounds: int = 4, cohort: int = 2, **more: Any) -> dict[str, Any]:
    local = {**WHOLE, "steps": 3, **more.pop("local", {})}
    return {"name": name, "rounds": rounds, "cohort": cohort, "local": local, **more}


def reference(plain: Plain, rounds: list[list[str]], name: str) -> Tensor:
    """The papers' server steps with their default settings, on flat vectors."""
    w = plain.start
    m = torch.zeros_like(w)
    v = torch.full_like(w, 1e-6)
    for sites in rounds:
        ends = []
        for site in sites:
            x = w
            for _ in range(3):
                x = x - 0.1 * plain.gradients[site](x)
            ends.append(plain.sizes[site] * x)
        delta = torch.stack(ends).sum(dim=0) / sum(plain.sizes[site] for site in sites) - w
        if name == "fedavgm":
            m = 0.9 * m + delta
            w = w + m
            continue
        b1 = 0.0 if name == "fedadagrad" else 0.9
        m = b1 * m + (1 - b1) * delta
        if name == "fedadagrad":
            v = v + delta**2
        elif name == "fedadam":
            v = 0.99 * v + 0.01 * delta**2
        else:
            v = v - 0.01 * delta**2 * torch.sign(v - delta**2)
        w = w + 0.1 * m / (v.sqrt() + 1e-3)
    return w


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_papers_algorithm(name: str) -> None:
    result = labelled.go(method(name), SIZES)
    wanted = reference(Plain(method(name), SIZES), cohorts(result), name)
    torch.testing.assert_close(flat(result), wanted, atol=1e-4, rtol=1e-3)


def test_uniform_weights() -> None:
    ours = method("fedavgm", beta=0.0, weighting="uniform")
    other = method("fedavg", weighting="uniform")
    torch.testing.assert_close(flat(labelled.go(ours, SIZES)), flat(labelled.go(other, SIZES)))
    assert labelled.go(other, SIZES).hash != labelled.go(method("fedavg"), SIZES).hash


def test_without_momentum_fedavgm_is_fedavg() -> None:
    ours = labelled.go(method("fedavgm", beta=0.0), SIZES)
    torch.testing.assert_close(flat(ours), flat(labelled.go(method("fedavg"), SIZES)))


def test_half_a_step() -> None:
    once = method("fedavgm", rounds=1, lr=0.5)
    start = Plain(once).start
    whole = flat(labelled.go({**once, "lr": 1.0}))
    torch.testing.assert_close(flat(labelled.go(once)), start + 0.5 * (whole - start))


def test_one_site_under_fedavgm_is_central_momentum_per_round() -> None:
    one = "populations.0.count=1"
    plain = Plain(method("fedavgm"), one)
    x, m = plain.start, torch.zeros_like(plain.start)
    for _ in range(4):
        m = 0.9 * m - 0.1 * plain.gradients["site-1"](x)
        x = x + m
    ours = labelled.go(method("fedavgm", cohort=1, local={"steps": 1}), one)
    torch.testing.assert_close(flat(ours), x)


def step(made: Any, *deltas: float) -> list[float]:
    state = made.start({"a": torch.zeros(1)})
    moved = []
    for delta in deltas:
        state, change = made.step(state, {"a": torch.tensor([delta])})
        moved.append(change["a"].item())
    return moved


def test_there_is_no_bias_correction_and_v_starts_at_tau_squared() -> None:
    root = math.sqrt(0.99 * 1e-6 + 0.01 * 4.0)
    assert step(FedAdam(), 2.0)[0] == pytest.approx(0.1 * 0.1 * 2.0 / (root + 1e-3))
    assert step(FedAdam(), 0.0) == [0.0]
    start = FedAdam(tau=0.5).start({"a": torch.zeros(1)})
    assert start["v"]["a"].item() == 0.25
    assert start["m"]["a"].item() == 0.0


def test_adagrad_only_slows_down() -> None:
    moved = step(FedAdagrad(), 1.0, 1.0, 1.0)
    assert moved == pytest.approx([0.1 / (math.sqrt(n + 1e-6) + 1e-3) for n in (1, 2, 3)])


def test_yogi_rises_and_falls_by_the_square() -> None:
    v = torch.tensor([1.0, 0.0])
    delta = torch.tensor([0.5, 2.0])
    made = FedYogi(b2=0.9)
    assert made.second(v, delta).tolist() == pytest.approx([1 - 0.1 * 0.25, 0.1 * 4.0])


def test_momentum_adds_up() -> None:
    assert step(FedAvgM(beta=0.5, lr=2.0), 1.0, 1.0, 0.0) == pytest.approx([2.0, 3.0, 1.5])


@pytest.mark.parametrize("name", NAMES)
def test_without_steps_nothing_changes(name: str) -> None:
    fed = labelled.federation(method(name, local={"steps": 0}))
    before = {key: value.clone() for key, value in fed.model.state_dict().items()}
    for moment in watched(fed):
        assert all(torch.equal(moment["weights"][key], value) for key, value in before.items())


@pytest.mark.parametrize("name", NAMES)
def test_buffers_are_averaged_and_stay_out_of_the_optimiser(name: str) -> None:
    model = {"width": 8, "image": {"name": "cnn", "side": 8, "maps": [4], "norm": "batch"}}
    fed = labelled.federation(
        method(name, rounds=1, cohort=3), f"server={model}", f"populations.0.models=[{model}]"
    )
    buffers = {key for key, _ in fed.model.named_buffers()}
    assert buffers
    moment = watched(fed)[0]
    assert not buffers & set(moment["hub"]["optimizer"]["m"])
    other = labelled.go(
        method("fedavg", rounds=1, cohort=3), f"server={model}", f"populations.0.models=[{model}]"
    )
    assert other.model is not None
    for key, value in other.model.named_buffers():
        assert torch.equal(moment["weights"][key], value)
