"""FedSpeed held against its card's client step, and in its limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods import labelled
from tests.methods.plain import WHOLE, Plain, cohorts, flat, watched
from torch import Tensor, nn

from motet.core import Batch, ConfigError, Output
from motet.methods.fedspeed import FedSpeed, ascent, mix

BATCHES = {"lr": 0.1, "batch": 8, "steps": 5, "clip": 0.5, "weight_decay": 0.01, "decay": 0.9}


def fedspeed(rounds: int = 4, cohort: int = 2, **more: Any) -> dict[str, Any]:
    local = {**WHOLE, "steps": 3, **more.pop("local", {})}
    return {"name": "fedspeed", "rounds": rounds, "cohort": cohort, "local": local, **more}


def clipped(q: Tensor, clip: float | None) -> Tensor:
    return q if clip is None or q.norm() <= clip else q * clip / q.norm()


def reference(plain: Plain, rounds: list[list[str]], made: FedSpeed) -> Tensor:
    """The card's steps, with clip and weight decay, on flat vectors."""
    w = plain.start
    h = {name: torch.zeros_like(w) for name in plain.gradients}
    for number, sites in enumerate(rounds):
        ends = []
        for name in sites:
            x = w
            for _ in range(3):
                first = plain.gradients[name](x)
                second = plain.gradients[name](x + made.rho * first / (first.norm() + 1e-7))
                g = (1 - made.alpha) * first + made.alpha * second
                q = clipped(g + made.mu * (h[name] - w), made.local.clip)
                x = x - made.local.rate(number) * (q + (made.local.weight_decay + made.mu) * x)
            h[name] = h[name] + (x - w)
            ends.append(x)
        w = torch.stack(ends).mean(dim=0) + torch.stack(list(h.values())).mean(dim=0)
    return w


@pytest.mark.parametrize("alpha", [1.0, 0.4])
@pytest.mark.parametrize("local", [{}, {"clip": 0.3, "weight_decay": 0.02, "decay": 0.8}])
def test_it_is_the_cards_algorithm(alpha: float, local: dict[str, Any]) -> None:
    method = fedspeed(alpha=alpha, rho=0.5, mu=0.3, local=local)
    result = labelled.go(method)
    rounds = cohorts(result)
    assert len({tuple(sites) for sites in rounds}) > 1
    made = result.experiment.method
    assert isinstance(made, FedSpeed)
    wanted = reference(Plain(method), rounds, made)
    torch.testing.assert_close(flat(result), wanted, atol=1e-5, rtol=1e-4)


def test_alpha_0_is_feddyn_to_the_bit() -> None:
    ours = labelled.go(fedspeed(alpha=0.0, mu=0.3, local=BATCHES))
    theirs = fedspeed(local=BATCHES)
    assert ours.hash == labelled.go({**theirs, "name": "feddyn", "alpha": 0.3}).hash
    assert ours.hash != labelled.go(fedspeed(alpha=1.0, mu=0.3, local=BATCHES)).hash


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_without_step_drift_and_dual_it_is_fedavg_to_the_bit(alpha: float) -> None:
    ours = fedspeed(rho=0.0, mu=0.0, alpha=alpha, dual="none", local=BATCHES)
    local = {**WHOLE, **BATCHES}
    other = {"name": "fedavg", "rounds": 4, "cohort": 2, "local": local, "weighting": "uniform"}
    assert labelled.go(ours).hash == labelled.go(other).hash


def test_the_hub_counts_the_dual_vectors_of_all_sites() -> None:
    moments = watched(labelled.federation(fedspeed(cohort=1)))
    away = [state for state in moments[0]["sites"].values() if not state]
    assert len(away) == 2
    for moment in moments:
        held = [state["h"]["head.weight"] for state in moment["sites"].values() if state]
        torch.testing.assert_close(moment["hub"]["h"]["head.weight"], sum(held) / 3)


def test_the_ascent_step_has_length_rho_over_all_parameters_together() -> None:
    step = ascent([torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])], 0.5)
    assert step[0].tolist() == pytest.approx([0.3, 0.0])
    assert step[1].item() == pytest.approx(0.4)
    assert not any(part.isnan().any() for part in ascent([torch.zeros(2)], 0.5))


def test_the_mix() -> None:
    assert mix([torch.tensor([1.0])], [torch.tensor([3.0])], 0.25)[0].item() == 1.5


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)
        self.unused = nn.Linear(1, 1)

    def forward(self, batch: Batch) -> Output:
        return Output(logits=self.head(self.norm(batch.inputs["image"])))


def test_the_second_pass_leaves_weights_statistics_and_unused_parameters_alone() -> None:
    rng = torch.Generator().manual_seed(3)
    rows = torch.arange(6)
    image = torch.randn(6, 3, generator=rng)
    batch = Batch({"image": image}, {"image": rows >= 0}, rows % 2, rows)
    model = Normed()
    made = FedSpeed(rho=1.0)
    nn.functional.cross_entropy(model(batch).logits, rows % 2).backward()
    first = model.head.weight.grad
    assert first is not None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    old = first.clone()
    made.gradient(model, batch)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.unused.weight.grad is None
    assert model.head.weight.grad is not None
    assert not torch.allclose(model.head.weight.grad, old)


def test_no_drift_with_dual_vectors_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.dual: none"):
        labelled.go(fedspeed(mu=0.0))


def test_the_papers_defaults() -> None:
    made = FedSpeed()
    assert (made.mu, made.rho, made.alpha, made.cohort) == (0.1, 0.1, 1.0, 10)
    assert made.local.model_dump() == {
        "lr": 0.1,
        "epochs": 5,
        "steps": None,
        "batch": 50,
        "momentum": 0.0,
        "weight_decay": 1e-3,
        "clip": 10.0,
        "decay": 0.998,
    }
