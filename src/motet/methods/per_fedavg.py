"""Per-FedAvg: a common start from which one gradient step makes a good personal model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from motet.core import (
    SGD,
    Batch,
    Federation,
    Kind,
    Site,
    Tree,
    at_site,
    load,
    minus,
    parameters_of,
    plus,
    weights_of,
    zeros,
)
from motet.methods.local import LocalSGD, Sampled, Weighting, classify, weight_key
from motet.nn.gradients import add_to_gradients


class PerFedAvg(Sampled):
    """Sites train the hub's model to be good after one gradient step on their own rows.

    Paper: Fallah, Mokhtari, Ozdaglar, "Personalized Federated Learning with Theoretical
    Guarantees: A Model-Agnostic Meta-Learning Approach", NeurIPS 2020, algorithm 1 and section 5.

    Travels: the model's weights down and up.

    Use: new sites with few rows join all the time, and each can take one step before use.

    Avoid: the model is used as it is; without the step it is a poor FedAvg.

    Deviations: ``local.lr`` is the paper's beta. Each local step draws its batches from orders of
    their own, so that they are independent. The step before the evaluation takes one batch.
    """

    weighting: Weighting = "uniform"
    local: LocalSGD = LocalSGD(lr=0.01)
    alpha: float = Field(0.01, ge=0, description="learning rate of the personal step")
    variant: Literal["first-order", "hessian-free", "none"] = Field(
        "first-order",
        description="leave out the second derivatives, or take them from two more gradients; none "
        "trains as FedAvg does (a control)",
    )
    delta: float = Field(1e-3, gt=0, description="length of the step for second derivatives")

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            averaged = {"weights": weight_key(self.weighting)}
            replies = self.ask(fed, self.train, averaged=averaged, weights=weights_of(fed.model))
            load(fed.model, replies.mean("weights"))
            weights = weights_of(fed.model)
            fed.report(sites=fed.all, point="as received", received=weights)
            after = "after adaptation"
            fed.report(sites=fed.all, hub=False, point=after, received=weights, adapt=True)

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        load(site.model, weights)
        firsts = self._batches(site, "first")
        thirds = self._batches(site, "third")

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            if self.variant == "none":
                return classify(model, batch)
            return loss_at(model, adapted(model, next(firsts), self.alpha), batch)

        def curve(model: nn.Module, batch: Batch) -> None:
            found = {name: value.grad for name, value in trained(model) if value.grad is not None}
            gradient = {**zeros(parameters_of(model)), **found}
            product = hessian_product(model, next(thirds), gradient, self.delta)
            add_to_gradients(model, product, -self.alpha)

        hessian = self.variant == "hessian-free"
        self.local.train(site, loss, adjust=curve if hessian else None)
        return {"weights": weights_of(site.model), "samples": len(site.data)}

    def _batches(self, site: Site, key: str) -> Iterator[Batch]:
        return self.local.batches(site, site.data, key)

    @at_site(sends={"metrics": Kind.METRIC}, takes={"received": Kind.WEIGHTS})
    def evaluate(
        self,
        site: Site,
        weights: Tree | None = None,
        received: Tree | None = None,
        adapt: bool = False,
    ) -> Tree:
        load(site.model, received or weights or {}, partial=True)
        if adapt:
            batches = site.batches(site.data, self.local.batch, key="adapt")
            site.fit(classify, islice(batches, 1), SGD(self.alpha))
        return {"metrics": site.evaluate()}


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that are trained."""
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def loss_at(model: nn.Module, values: Tree, batch: Batch) -> Tensor:
    """The batch's loss with these values in place of the model's parameters."""

    def call(batch: Batch) -> Any:
        return functional_call(model, values, (batch,))

    return classify(cast(nn.Module, call), batch)


def gradient_at(model: nn.Module, values: Tree, batch: Batch) -> Tree:
    """The gradient of the batch's loss at these values: name -> tensor of the value's shape."""
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    found = torch.autograd.grad(
        loss_at(model, leaves, batch), list(leaves.values()), materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def adapted(model: nn.Module, batch: Batch, alpha: float) -> Tree:
    """x - alpha * gradient at x: a function of x whose slope is taken to be 1 (first order)."""
    step = gradient_at(model, parameters_of(model), batch)
    return {name: value - alpha * step[name] for name, value in trained(model)}


def hessian_product(model: nn.Module, batch: Batch, vector: Tree, delta: float) -> Tree:
    """The Hessian of the batch's loss at the model's parameters, times the vector.

    By central differences: [g(x + delta v) - g(x - delta v)] / (2 delta).
    """
    x = parameters_of(model)
    ahead = gradient_at(model, plus(x, vector, delta), batch)
    behind = gradient_at(model, plus(x, vector, -delta), batch)
    return {name: value / (2 * delta) for name, value in minus(ahead, behind).items()}
