"""Moon: the contrast, the model that a site keeps, and plain training without them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.methods.labelled import federation, go, recipe

from motet.core import Method
from motet.methods import moon
from motet.methods.moon import model_contrast, projected

ALL = "method.cohort=3"


def method(**more: Any) -> dict[str, Any]:
    local = {"lr": 0.1, "batch": 8, "epochs": 1, "momentum": 0.0}
    return {"name": "moon", "rounds": 3, "projection": 6, "local": local, **more}


def test_the_contrast_is_the_formula() -> None:
    z, near, far = (torch.randn(5, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))

    def similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))

    up, down = (torch.exp(similarity(z, other) / 0.5) for other in (near, far))
    wanted = -torch.log(up / (up + down)).mean()
    torch.testing.assert_close(model_contrast(z, near, far, 0.5), wanted)


def test_equal_models_give_log_2_and_no_gradient() -> None:
    z = torch.randn(5, 4, requires_grad=True)
    other = torch.randn(5, 4)
    value = model_contrast(z, other, other, 0.5)
    assert float(value.detach()) == pytest.approx(math.log(2))
    (gradient,) = torch.autograd.grad(value, z)
    assert float(gradient.abs().max()) < 1e-7


def test_the_pull_is_towards_the_hub_and_off_the_last_model() -> None:
    z = torch.tensor([[1.0, 1.0]], requires_grad=True)
    hub = torch.tensor([[1.0, 0.0]], requires_grad=True)
    last = torch.tensor([[0.0, 1.0]], requires_grad=True)
    model_contrast(z, hub, last, 0.5).backward()
    assert z.grad is not None
    assert z.grad[0, 0] < 0 < z.grad[0, 1]
    assert hub.grad is None, "frozen models are learned from, not trained"
    assert last.grad is None


def test_without_mu_or_a_last_model_training_is_plain() -> None:
    assert go(method(rounds=1), ALL).hash == go(method(rounds=1, mu=0.0), ALL).hash
    assert go(method(rounds=2), ALL).hash != go(method(rounds=2, mu=0.0), ALL).hash


def test_a_site_keeps_its_own_model_through_rounds_of_absence() -> None:
    fed = federation(method(rounds=4), "method.cohort=1")
    seen: list[tuple[str, Any]] = []
    doors: dict[str, Any] = fed.engine._doors  # type: ignore[attr-defined]

    def report(*args: object, **more: object) -> None:
        for name, door in doors.items():
            seen.append((name, door._kept["state"].get("last")))

    fed.report = report  # type: ignore[method-assign]
    fed.start()
    for name in doors:
        kept = [last for site, last in seen if site == name]
        had = False
        for last in kept:
            assert not (had and last is None)
            had = had or last is not None


def test_z_is_what_the_class_layer_reads() -> None:
    fed = federation(method())
    batch = next(fed.prepared(fed.public).batches(4))
    model: Any = fed.model.eval()
    output = model(batch)
    z = projected(model, output)
    assert z.shape == (4, 6)
    torch.testing.assert_close(model.head.classes(z), output.logits)


def test_both_old_models_are_gone_through_with_their_own_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """z_global comes from what was received, z_last from what this site had trained."""
    found: list[tuple[torch.Tensor, ...]] = []
    contrast = moon.model_contrast

    def kept(z: torch.Tensor, near: torch.Tensor, far: torch.Tensor, tau: float) -> torch.Tensor:
        found.append((z.detach(), near, far))
        return contrast(z, near, far, tau)

    monkeypatch.setattr(moon, "model_contrast", kept)
    go(method(rounds=2, mu=0.001), ALL)
    z, near, far = found[0]
    # The first step of the second round starts at the received weights.
    torch.testing.assert_close(z, near)
    assert not torch.allclose(near, far)
    assert not near.requires_grad
    assert not far.requires_grad


def test_the_papers_values_are_the_defaults() -> None:
    assert isinstance(recipe("moon").method, Method)
    found: Any = recipe("moon").method
    assert (found.mu, found.tau, found.projection) == (5.0, 0.5, 256)
