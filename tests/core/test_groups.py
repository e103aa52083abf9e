"""Walks over a model's modules: what is trained, and what is in which mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from motet.core.groups import changing_tensors, freeze, is_frozen, trained_parameters
from motet.core.learner import evaluating, train_mode


class Stubborn(nn.Sequential):
    """Keeps its batch norm in eval mode, as people write it."""

    def train(self, mode: bool = True) -> Stubborn:
        super().train(mode)
        for module in self:
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


class Fixed(nn.Linear):
    """Frozen by its class."""

    frozen = True


def model() -> Any:
    """Tied weights, a shared module, frozen ones, and one with a will of its own."""
    shared = nn.Linear(2, 2)
    tied = nn.Linear(2, 2)
    tied.weight = shared.weight
    built = nn.Sequential(
        shared,
        shared,
        tied,
        freeze(nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())),
        Fixed(2, 2),
        Stubborn(nn.BatchNorm1d(2), nn.Linear(2, 2), freeze(nn.Dropout())),
    )
    built.register_parameter("none", None)
    built.register_module("nothing", None)
    built[1].bias.requires_grad_(False)
    return built


def test_trained_parameters_are_torchs_without_the_frozen() -> None:
    built = model()
    wanted = [value for value in built.parameters() if value.requires_grad]
    assert list(map(id, trained_parameters(built))) == list(map(id, wanted))
    built[2].weight = nn.Parameter(torch.ones(2, 2))
    wanted = [value for value in built.parameters() if value.requires_grad]
    assert list(map(id, trained_parameters(built))) == list(map(id, wanted))
    assert any(value is built[2].weight for value in wanted)


def test_train_mode_is_torchs_but_for_the_frozen() -> None:
    built = model()
    for start in (True, False):
        built.train(start)
        train_mode(built)
        modes = {name: module.training for name, module in built.named_modules()}
        off = {"3", "3.0", "3.1", "4", "5.0", "5.2"}
        assert modes == {name: name not in off for name in modes}
    with evaluating(built):
        assert not any(module.training for module in built.modules())
    assert {name: module.training for name, module in built.named_modules()} == modes


def test_a_class_or_a_module_is_frozen() -> None:
    linear = nn.Linear(2, 2)
    assert not is_frozen(linear)
    assert is_frozen(Fixed(2, 2))
    assert is_frozen(freeze(linear))
    linear.frozen = False  # type: ignore[assignment]
    assert not is_frozen(linear)


def test_what_changes_is_the_state_without_the_frozen() -> None:
    built = model()
    state = built.state_dict()
    frozen = {"0.bias", "1.bias"} | {name for name in state if name.startswith("3.")}
    assert changing_tensors(built).keys() == state.keys() - frozen
