"""Models that go from site to site are as good as new."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tests.core.toys import Toy, toy

from motet.core.errors import WireError
from motet.core.learner import Learner
from motet.core.mould import Mould
from motet.core.optim import Adam
from motet.core.tree import weights_of
from motet.core.wire import digest


def spoil(model: Toy) -> None:
    model.eval()
    model.layer.bias.requires_grad_(False)
    model.layer.weight.grad = torch.ones_like(model.layer.weight)
    model.seen += 3
    with torch.no_grad():
        for value in model.parameters():
            value.add_(1)


def test_a_model_that_was_given_back_is_as_good_as_new() -> None:
    mould = Mould(lambda: toy("ada"))
    first = mould()
    spoil(first)
    mould.give_back(first)
    again = mould()
    assert again is first
    assert digest(weights_of(again)) == digest(weights_of(toy("ada"))) == digest(mould.initial)
    assert all(module.training for module in again.modules())
    assert all(value.requires_grad and value.grad is None for value in again.parameters())
    assert mould() is not first


def test_initial_weights_are_there_before_a_model_is() -> None:
    built: list[Toy] = []

    def build() -> Toy:
        built.append(toy("ada"))
        return built[-1]

    mould = Mould(build)
    assert digest(mould.initial) == digest(weights_of(toy("ada")))
    assert mould() is built[0]
    assert len(built) == 1


def test_a_learner_lets_go_of_what_can_be_had_again() -> None:
    mould = Mould(lambda: toy("ada"))
    learner = Learner("ada", 0, mould)
    model = learner.model
    learner.optimizer("local", Adam(0.1))
    learner.release()
    assert learner.tree() == {"optimizers": {}}
    assert Learner("ben", 0, mould).model is model
    assert learner.model is not model


def test_a_learner_keeps_a_model_of_its_own() -> None:
    learner = Learner("ada", 0, lambda: toy("ada"))
    model = learner.model
    learner.release()
    assert learner.model is model


def test_a_used_model_gets_the_weights_that_are_given_or_its_initial_ones() -> None:
    mould = Mould(lambda: toy("ada"))
    found = Learner("ada", 0, mould)
    ones = {name: torch.ones_like(value) for name, value in mould.initial.items()}
    found.load(ones)
    assert digest(weights_of(found.model)) == digest(ones)
    found.release()
    with pytest.raises(WireError, match="weights do not fit"):
        found.load({})
    assert digest(weights_of(found.model)) == digest(mould.initial)
    found.load(ones)
    found.load_tree({})
    assert digest(found.tree()["model"]) == digest(mould.initial)


def test_a_model_with_parts_that_are_not_its_own_is_not_used_again() -> None:
    mould = Mould(lambda: toy("ada"))
    spoilt = mould()
    spoilt.layer = torch.nn.Linear(4, 5)
    spoilt.layer.requires_grad_(False)
    mould.give_back(spoilt)
    again = mould()
    assert again.layer.out_features == 3
    assert all(value.requires_grad for value in again.parameters())
    assert digest(weights_of(again)) == digest(mould.initial)


def test_a_model_that_is_kept_by_nobody_goes() -> None:
    mould = Mould(lambda: toy("ada"))
    found = weakref.ref(mould())
    gc.collect()
    assert found() is None
    assert mould().training
