"""KnFu: label mixes, weights of the others' knowledge, and the two limiting cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.methods.labelled import federation, go

from motet.core import ConfigError
from motet.methods import knfu
from motet.methods.knfu import effectiveness, fusion, label_mix
from motet.nn.distillation import soft_divergence

ALL = "method.cohort=3"
SKEW = "populations.site.partition={name: dirichlet, alpha: 0.2, min_rows: 4}"


def method(**more: Any) -> dict[str, Any]:
    return {"name": "knfu", "rounds": 2, "local": {"lr": 0.1, "batch": 8, "epochs": 1}, **more}


def some(sites: int = 4, rows: int = 6, classes: int = 3, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(sites, rows, classes, generator=rng).softmax(dim=2)


def metrics(result: Any) -> list[Any]:
    return [event["metrics"] for event in result.events if event["event"] == "metric"]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 100))
def test_weights_sum_to_1_and_ones_own_is_never_the_smallest(seed: int, beta: float) -> None:
    weights = effectiveness(label_mix(some(seed=seed)), beta)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4))
    assert bool((weights.diagonal() >= weights.max(dim=1).values - 1e-6).all())


def test_the_receiver_comes_first_in_the_divergence() -> None:
    mix = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    weights = effectiveness(mix, 2.0)
    divergence = (mix[0] * (mix[0] / mix[1]).log()).sum()
    other = torch.exp(-2.0 * divergence)
    torch.testing.assert_close(weights[0], torch.stack([1 / (1 + other), other / (1 + other)]))
    assert not torch.allclose(weights, weights.T)


def test_equal_mixes_give_the_mean() -> None:
    knowledge = some(1).expand(4, -1, -1)
    fused = fusion(knowledge, 10.0)
    torch.testing.assert_close(fused, knowledge.mean(dim=0).expand(4, -1, -1))


def test_beta_between_nothing_and_infinity() -> None:
    knowledge = some()
    mean = knowledge.mean(dim=0).expand(4, -1, -1)
    torch.testing.assert_close(fusion(knowledge, 0.0), mean)
    torch.testing.assert_close(fusion(knowledge, 1e6), knowledge)
    torch.testing.assert_close(fusion(knowledge, 3.0).sum(dim=2), torch.ones(4, 6))


def test_a_mix_is_the_mean_belief() -> None:
    knowledge = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    torch.testing.assert_close(label_mix(knowledge), torch.tensor([[0.75, 0.25]]))
    assert bool((label_mix(torch.eye(3)[:1].expand(1, 5, 3)) > 0).all()), "a class never seen"


def test_beta_0_is_the_uniform_teacher_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = metrics(go(method(beta=0.0), ALL, SKEW))

    def uniform(knowledge: torch.Tensor, beta: float) -> torch.Tensor:
        weights = torch.full((len(knowledge), len(knowledge)), 1 / len(knowledge))
        return torch.einsum("nm,mxc->nxc", weights, knowledge)

    monkeypatch.setattr(knfu, "fusion", uniform)
    assert metrics(go(method(), ALL, SKEW)) == found


def test_without_fine_tuning_it_is_local_training() -> None:
    alone = go(
        {"name": "local-only", "rounds": 2, "local": {"lr": 0.1, "batch": 8, "epochs": 1}},
        ALL,
        SKEW,
    )
    assert metrics(go(method(distil_epochs=0), ALL, SKEW)) == metrics(alone)
    taught = go(method(distil_epochs=20), ALL, SKEW)
    assert metrics(taught) != metrics(alone)


def test_the_teacher_is_constant() -> None:
    teacher = some(1)[0].requires_grad_(True)
    logits = torch.randn(6, 3, requires_grad=True)
    soft_divergence(teacher, logits).backward()
    assert teacher.grad is None
    assert logits.grad is not None
    # The gradient of the divergence is softmax minus teacher, over the rows.
    wanted = (logits.detach().softmax(dim=1) - teacher.detach()) / 6
    torch.testing.assert_close(logits.grad, wanted)


def test_each_site_gets_the_teacher_that_was_made_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Tensor] = []
    fuse = knfu.fusion

    def kept(knowledge: torch.Tensor, beta: float) -> torch.Tensor:
        made.append(fuse(knowledge, beta))
        return made[-1]

    monkeypatch.setattr(knfu, "fusion", kept)
    fed = federation(method(rounds=1), ALL, SKEW)
    seen: dict[str, Any] = {}
    send = fed.engine.send

    def watch(requests: Any) -> None:
        seen.update({r.site: r.own["teacher"] for r in requests if r.op == "distil"})
        send(requests)

    fed.engine.send = watch  # type: ignore[method-assign]
    fed.start()
    assert list(seen) == ["site-1", "site-2", "site-3"]
    for number, teacher in enumerate(seen.values()):
        assert torch.equal(teacher, made[0][number])


def test_sizes_on_the_wire_do_not_depend_on_the_model() -> None:
    result = go(method(), ALL)
    for event in result.events:
        if event["event"] == "replied" and event["op"] in ("train", "distil"):
            way = event["up"] if event["op"] == "train" else event["down"]
            assert way["logits"] == 12 * 4 * 4


def test_it_needs_a_public_set() -> None:
    with pytest.raises(ConfigError, match="KnFu needs a public set"):
        go(method(), "data.public=0")
