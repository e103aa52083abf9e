"""Optimisers that can be written down: moments and rate, in place, as if nothing had been."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from motet.core import SGD, Adam, wire
from motet.core.optim import Optimizer

SPECS = [SGD(0.1), SGD(0.1, momentum=0.9, weight_decay=0.01), Adam(0.1), Adam(0.1, 0.01)]


def line(value: float = 1.0) -> nn.Linear:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(value)
        model.bias.fill_(value)
    return model


def steps(model: nn.Module, optimizer: Optimizer, count: int, first: int = 1) -> None:
    for i in range(first, first + count):
        optimizer.step(model(torch.tensor([[1.0, float(i)]])).square().sum())


def values(model: nn.Module) -> list[float]:
    return torch.cat([value.detach().flatten() for value in model.parameters()]).tolist()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_it_goes_on_as_if_it_had_not_stopped(spec: Any) -> None:
    whole, begun, resumed = line(), line(), line(0.0)
    steps(whole, Optimizer(whole, spec), 4)
    optimizer = Optimizer(begun, spec)
    steps(begun, optimizer, 2)
    resumed.load_state_dict(begun.state_dict())
    again = Optimizer(resumed, spec)
    again.load(wire.decode(wire.encode(optimizer.tree())))
    steps(resumed, again, 2, first=3)
    assert values(resumed) == values(whole) != values(begun)


def test_a_saved_tree_shares_nothing() -> None:
    model = line()
    optimizer = Optimizer(model, Adam(0.1))
    steps(model, optimizer, 1)
    tree = optimizer.tree()
    before = tree["moments"]["0"]["exp_avg"].clone()
    steps(model, optimizer, 1)
    assert torch.equal(tree["moments"]["0"]["exp_avg"], before)
    optimizer.load(tree)
    steps(model, optimizer, 1)
    assert torch.equal(tree["moments"]["0"]["exp_avg"], before)


def test_an_empty_tree_is_a_fresh_start() -> None:
    model = line()
    optimizer = Optimizer(model, Adam(0.1))
    steps(model, optimizer, 2)
    optimizer.set_lr(0.5)
    optimizer.load({})
    assert optimizer.tree() == {"moments": {}, "lr": 0.1}


def test_a_rate_that_was_changed_is_kept() -> None:
    model = line()
    optimizer = Optimizer(model, SGD(0.1))
    optimizer.set_lr(0.03)
    other = Optimizer(line(), SGD(0.1))
    other.load(optimizer.tree())
    assert other.inner.param_groups[0]["lr"] == 0.03


def test_retuned_it_keeps_its_moments() -> None:
    model = line()
    optimizer = Optimizer(model, SGD(0.1, momentum=0.9))
    steps(model, optimizer, 1)
    moments = optimizer.tree()["moments"]["0"]["momentum_buffer"]
    optimizer.retune(SGD(0.02, momentum=0.5), clip=None)
    assert torch.equal(optimizer.tree()["moments"]["0"]["momentum_buffer"], moments)
    assert optimizer.inner.param_groups[0]["lr"] == 0.02
    assert optimizer.inner.param_groups[0]["momentum"] == 0.5
    assert optimizer.inner.param_groups[0]["params"][0] is model.weight


def test_gradients_are_clipped_over_all_parameters() -> None:
    model = line()
    optimizer = Optimizer(model, SGD(1.0), clip=0.5)
    optimizer.step(100 * model(torch.tensor([[3.0, 4.0]])).sum())
    moved = [1 - value for value in values(model)]
    assert sum(x * x for x in moved) ** 0.5 == pytest.approx(0.5, rel=1e-4)


def test_frozen_parameters_stay() -> None:
    model = line()
    model.bias.requires_grad_(False)
    steps(model, Optimizer(model, SGD(0.1, weight_decay=0.5)), 2)
    assert model.bias.item() == 1
    assert model.weight[0, 0].item() != 1


def test_gradients_of_an_earlier_step_do_not_add_up() -> None:
    model = line(0.0)
    optimizer = Optimizer(model, SGD(1.0))
    for _ in range(3):
        optimizer.step(model(torch.ones(1, 2)).sum())
    assert model.bias.item() == -3


def deep() -> Any:
    """Tied weights, a frozen layer, two dtypes, buffers, and a layer that no loss reaches."""
    torch.manual_seed(0)
    layers = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 4)
    model: Any = nn.Sequential(*layers)
    model[2].weight = model[0].weight
    model[3].requires_grad_(False)
    model.wide = nn.Linear(4, 2).double()
    model.unused = nn.Parameter(torch.ones(3))
    return model


def loss_of(model: Any, x: torch.Tensor, part: bool) -> torch.Tensor:
    found: torch.Tensor = model[3](model[2](model[1](model[0](x))))
    loss = found.square().mean()
    return loss if part else loss + model.wide(found.double()).sum()


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_brisk_step_is_torchs_own_to_the_bit(
    momentum: float, decay: float, clip: float | None
) -> None:
    ours, theirs = deep(), deep()
    optimizer = Optimizer(ours, SGD(0.1, momentum, decay), clip)
    trained = [value for value in theirs.parameters() if value.requires_grad]
    reference = torch.optim.SGD(trained, lr=0.1, momentum=momentum, weight_decay=decay)
    for step in range(5):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        # In the first step one layer has no gradient, and so no momentum yet.
        optimizer.step(loss_of(ours, x, part=step == 0))
        reference.zero_grad()
        loss_of(theirs, x, part=step == 0).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(trained, clip)
        reference.step()
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
        found, wanted = optimizer.inner.state_dict(), reference.state_dict()
        assert found["state"].keys() == wanted["state"].keys()
        for number, state in wanted["state"].items():
            assert torch.equal(found["state"][number]["momentum_buffer"], state["momentum_buffer"])
    assert not torch.equal(ours[0].weight, deep()[0].weight)
    assert torch.equal(ours.unused, torch.ones(3))


def test_nothing_to_descend_is_no_step() -> None:
    model = line()
    optimizer = Optimizer(model, SGD(0.1, momentum=0.9))
    optimizer.step(torch.zeros((), requires_grad=True))
    assert values(model) == [1, 1, 1]


def test_an_optimiser_is_built_when_it_is_asked_for_and_goes_by_its_last_spec() -> None:
    optimizer = Optimizer(nn.Linear(2, 1), SGD(0.1))
    optimizer.retune(SGD(0.2), None)
    assert optimizer.fresh
    assert optimizer.inner.param_groups[0]["lr"] == 0.2
    assert not optimizer.fresh
