"""FedRep held against its algorithm: the phases, and what rests in each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods import labelled
from tests.methods.plain import WHOLE, Plain, cohorts
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from motet.core import Federation, freeze, weights_of
from motet.core.groups import frozen_names, group
from motet.core.learner import train_mode
from motet.methods.fedrep import only

HEAD = 36
MODEL = "{width: 8, image: {name: cnn, side: 8, maps: [4, 4], kernel: 3, norm: batch}}"
CNN = (f"server={MODEL}", f"populations.site.models=[{MODEL}]")


def fedrep(rounds: int = 4, cohort: int = 2, **more: Any) -> dict[str, Any]:
    local = {**WHOLE, "steps": 3, **more.pop("local", {})}
    fields = {"head_epochs": 4, **more}
    return {"name": "fedrep", "rounds": rounds, "cohort": cohort, "local": local, **fields}


def reference(plain: Plain, rounds: list[list[str]], lr: float) -> dict[str, Tensor]:
    """Algorithm 1 on flat vectors: four steps on the head, and then three on the base."""
    base = plain.start[:-HEAD]
    heads = dict.fromkeys(plain.gradients, plain.start[-HEAD:])
    for sites in rounds:
        bases = []
        for name in sites:
            x, head = base, heads[name]
            for _ in range(4):
                head = head - lr * plain.gradients[name](torch.cat([x, head]))[-HEAD:]
            for _ in range(3):
                x = x - lr * plain.gradients[name](torch.cat([x, head]))[:-HEAD]
            heads[name] = head
            bases.append(x)
        base = torch.stack(bases).mean(dim=0)
    return {**heads, "base": base}


def finished(method: dict[str, Any], *settings: str) -> tuple[Federation, dict[str, Any]]:
    fed = labelled.federation(method, *settings)
    fed.start()
    return fed, {name: door._kept["state"] for name, door in fed.engine._doors.items()}


def vector(fed: Federation, weights: dict[str, Tensor]) -> Tensor:
    return parameters_to_vector([weights[name] for name, _ in fed.model.named_parameters()])


def test_it_is_the_papers_algorithm() -> None:
    method = fedrep(rounds=5)
    rounds = cohorts(labelled.go(method))
    assert len({tuple(sites) for sites in rounds}) > 1
    fed, states = finished(method)
    wanted = reference(Plain(method), rounds, 0.1)
    close = {"atol": 1e-5, "rtol": 1e-4}
    for name, state in states.items():
        torch.testing.assert_close(vector(fed, state["model"])[-HEAD:], wanted[name], **close)
    found = vector(fed, weights_of(fed.model))[:-HEAD]
    torch.testing.assert_close(found, wanted["base"], **close)


@pytest.mark.parametrize("phase", ["head", "base"])
def test_what_is_not_trained_rests_to_the_bit(phase: str) -> None:
    settings = {"head": {"local": {"steps": 0}}, "base": {"head_epochs": 0}}
    fed, states = finished(fedrep(rounds=1, cohort=3, **settings[phase]), *CNN)
    assert fed._build is not None
    start = weights_of(fed._build())
    moving = group(fed.model, phase)
    moved = set()
    for state in states.values():
        moved |= {name for name, value in state["model"].items() if (value != start[name]).any()}
    assert moved <= moving
    # The biases before a batch norm have no gradient but rounding.
    assert len(moving - moved) <= 2


def test_the_base_alone_travels() -> None:
    result = labelled.go(fedrep(), *CNN)
    assert result.model is not None
    base = weights_of(result.model, group(result.model, "base"))
    assert any("running_mean" in name for name in base)
    size = sum(value.nbytes for value in base.values())
    sent = [event for event in result.events if event.get("op") == "train"]
    assert {event["up"]["weights"] for event in sent} == {size}


def test_the_head_is_trained_in_epochs_whatever_the_steps_of_the_base() -> None:
    steps = {"steps": 1, "epochs": 7, "batch": 4}
    one, seven = (fedrep(rounds=1, head_epochs=2, local={**steps, "epochs": n}) for n in (1, 7))
    first, second = finished(one)[1], finished(seven)[1]
    for name, state in first.items():
        for key, value in state.get("model", {}).items():
            assert torch.equal(second[name]["model"][key], value)


def test_only_leaves_no_trace_and_wakes_nothing_that_was_frozen() -> None:
    model = nn.Sequential(
        nn.Linear(2, 2), nn.BatchNorm1d(2), freeze(nn.Linear(2, 2)), nn.Linear(2, 2)
    )
    frozen = frozen_names(model)
    with only(model, frozenset({"3.weight", "3.bias"})):
        train_mode(model)
        assert [part.training for part in model] == [False, False, False, True]
        assert [p.requires_grad for p in model.parameters()] == [False] * 6 + [True] * 2
    assert frozen_names(model) == frozen == {"2.weight", "2.bias"}
    train_mode(model)
    assert [part.training for part in model] == [True, True, False, True]
    with pytest.raises(ValueError, match="stop"), only(model, frozenset()):
        raise ValueError("stop")
    assert frozen_names(model) == frozen
