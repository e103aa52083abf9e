"""Per-FedAvg held against its algorithm, its second derivatives, and its limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.methods import labelled
from tests.methods.plain import Plain, cohorts, flat
from torch import Tensor, nn

from motet.core import Batch, Output, weights_of
from motet.methods.local import LocalSGD
from motet.methods.per_fedavg import adapted, gradient_at, hessian_product, loss_at

LOCAL = {"lr": 0.1, "batch": 96, "steps": 3}


def per_fedavg(rounds: int = 4, cohort: int = 2, **more: Any) -> dict[str, Any]:
    fields = {"alpha": 0.3, "local": LOCAL, **more}
    return {"name": "per-fedavg", "rounds": rounds, "cohort": cohort, **fields}


@pytest.mark.parametrize("variant", ["first-order", "hessian-free"])
@pytest.mark.parametrize("image", ["pixel-mlp", "cnn"])
def test_without_the_inner_step_it_is_fedavg_to_the_bit(variant: str, image: str) -> None:
    model = f"{{width: 8, image: {{name: {image}, side: 8}}}}"
    models = (f"server={model}", f"populations.site.models=[{model}]")
    method = per_fedavg(alpha=0.0, variant=variant, local=labelled.LOCAL)
    other = {"name": "fedavg", "rounds": 4, "cohort": 2, "local": labelled.LOCAL}
    ours = labelled.go(method, *models)
    assert ours.hash == labelled.go({**other, "weighting": "uniform"}, *models).hash


def test_without_a_variant_it_is_fedavg_to_the_bit() -> None:
    method = per_fedavg(variant="none", local=labelled.LOCAL)
    other = {"name": "fedavg", "rounds": 4, "cohort": 2, "local": labelled.LOCAL}
    assert labelled.go(method).hash == labelled.go({**other, "weighting": "uniform"}).hash


def reference(
    plain: Plain, rounds: list[list[str]], product: Callable[[str, Tensor, Tensor], Tensor]
) -> Tensor:
    """Algorithm 1 on flat vectors; product: site, point, vector -> Hessian times vector."""
    w = plain.start
    for sites in rounds:
        sent = []
        for name in sites:
            x = w
            for _ in range(3):
                g = plain.gradients[name](x - 0.3 * plain.gradients[name](x))
                x = x - 0.1 * (g - 0.3 * product(name, x, g))
            sent.append(x)
        w = torch.stack(sent).mean(dim=0)
    return w


def test_the_first_order_variant_is_the_papers() -> None:
    method = per_fedavg(rounds=5)
    result = labelled.go(method)
    rounds = cohorts(result)
    wanted = reference(Plain(method), rounds, lambda name, x, g: torch.zeros_like(g))
    torch.testing.assert_close(flat(result), wanted, atol=1e-5, rtol=1e-4)


def test_the_hessian_free_variant_is_the_papers() -> None:
    method = per_fedavg(rounds=3, variant="hessian-free", delta=0.01)
    plain = Plain(method)

    def product(name: str, x: Tensor, g: Tensor) -> Tensor:
        # Another width of the difference: both must be near the Hessian.
        gradient = plain.gradients[name]
        return (gradient(x + 0.02 * g) - gradient(x - 0.02 * g)) / 0.04

    result = labelled.go(method)
    wanted = reference(plain, cohorts(result), product)
    first = reference(plain, cohorts(result), lambda name, x, g: torch.zeros_like(g))
    off = float((flat(result) - wanted).norm())
    assert off < 0.01 * float((wanted - first).norm())


class Curved(nn.Module):
    """A small network in double precision, with one parameter that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(1)
        self.a = nn.Parameter(torch.randn(3, 4, generator=rng, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(4, 2, generator=rng, dtype=torch.float64))
        self.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, batch: Batch) -> Output:
        return Output(logits=torch.tanh(batch.inputs["x"] @ self.a) @ self.b)


def some_batch() -> Batch:
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(6, 3, generator=rng, dtype=torch.float64)
    present = {"x": torch.ones(6, dtype=torch.bool)}
    return Batch({"x": x}, present, torch.arange(6) % 2, torch.arange(6))


def test_central_differences_are_the_hessian_product() -> None:
    model, batch = Curved(), some_batch()
    a, b = model.a.detach(), model.b.detach()

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return loss_at(model, {"a": a, "b": b}, batch)

    vector = (torch.ones_like(a), -torch.ones_like(b))
    _, wanted = torch.autograd.functional.hvp(loss, (a, b), vector)
    tree = {"a": vector[0], "b": vector[1], "idle": torch.ones(2, dtype=torch.float64)}
    found = hessian_product(model, batch, tree, 1e-4)
    torch.testing.assert_close(found["a"], wanted[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found["b"], wanted[1], atol=1e-6, rtol=1e-5)
    assert not found["idle"].any()


def test_the_inner_step_goes_down_the_gradient_and_has_slope_one() -> None:
    model, batch = Curved(), some_batch()
    before = weights_of(model)
    step = gradient_at(model, before, batch)
    found = adapted(model, batch, 0.5)
    for name, value in before.items():
        assert torch.equal(found[name], value - 0.5 * step[name])
    (slope,) = torch.autograd.grad(found["a"].sum(), model.a)
    assert torch.equal(slope, torch.ones_like(slope))
    for name, value in weights_of(model).items():
        assert torch.equal(value, before[name])


def test_each_gradient_of_a_step_has_rows_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str | int, list[list[int]]] = {}
    batches = LocalSGD.batches

    def watched(self: LocalSGD, learner: Any, data: Any, key: str | int = "private") -> Any:
        for batch in batches(self, learner, data, key):
            drawn.setdefault(key, []).append(batch.rows.tolist())
            yield batch

    monkeypatch.setattr(LocalSGD, "batches", watched)
    local = {"lr": 0.1, "batch": 8, "epochs": 2}
    labelled.go(per_fedavg(rounds=1, cohort=1, variant="hessian-free", local=local))
    assert set(drawn) == {"first", "private", "third"}
    assert len({len(rows) for rows in drawn.values()}) == 1
    assert len({str(rows) for rows in drawn.values()}) == 3


def test_a_site_takes_one_step_before_the_second_test() -> None:
    method = per_fedavg()
    fed = labelled.federation(method)
    fed.start()
    site = fed.engine._doors["site-1"].site
    w = torch.cat([value.flatten() for value in weights_of(fed.model).values()])
    for adapt, wanted in (
        (False, w),
        (True, w - 0.3 * Plain(method).gradients["site-1"](w)),
    ):
        site.load_tree({})
        fed.method.evaluate(site, received=weights_of(fed.model), adapt=adapt)
        found = torch.cat([value.flatten() for value in weights_of(site.model).values()])
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_the_points_are_named_and_equal_without_a_step() -> None:
    events = [e for e in labelled.go(per_fedavg(alpha=0.0)).events if e["event"] == "metric"]
    by_point: dict[str, list[Any]] = {}
    for event in events:
        by_point.setdefault(event["point"], []).append(event["metrics"])
    assert set(by_point) == {"hub", "as received", "after adaptation"}
    assert by_point["as received"] == by_point["after adaptation"]
    assert len(by_point["hub"]) == 4
