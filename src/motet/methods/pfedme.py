"""pFedMe: personal models are proximal points of the local model, whose average is shared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import Field, model_validator
from torch import nn

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
    scaled,
    weights_of,
)
from motet.core.optim import Optimizer
from motet.methods.local import LocalSGD, Weighting, classify, weight_key
from motet.methods.personal import Personal
from motet.nn.gradients import add_proximal_gradient


class PFedMe(Personal):
    """Sites descend on the Moreau envelope of their loss; its proximal point is the personal model.

    Paper: Dinh, Tran, Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS
    2020, algorithm 1.

    Travels: the model's weights down and up.

    Use: personal models that stay close to a global one are wanted, which is reported too.

    Avoid: local work is dear (every local round takes ``inner`` steps).

    Deviations: ``local.steps`` are the paper's R local rounds, ``local.lr`` the rate of the
    personal steps. Buffers are averaged as they are, whatever beta.
    """

    weighting: Weighting = "uniform"
    local: LocalSGD = LocalSGD(lr=0.01, steps=20, batch=20)
    inner: int = Field(5, ge=1, description="K, steps towards the proximal point of a batch")
    lam: float = Field(15.0, gt=0, description="lambda, pull of the personal to the local model")
    eta: float = Field(0.005, gt=0, description="learning rate of the local model")
    beta: float = Field(1.0, gt=0, le=2, description="how far the hub goes to the sites' mean")

    @model_validator(mode="after")
    def _local_model_stays_short_of_the_personal(self) -> Self:
        if self.eta * self.lam >= 1:
            raise ValueError(
                f"eta * lam is {self.eta * self.lam:g}: the local model would jump over the "
                "personal one; keep the product below 1"
            )
        return self

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            start = parameters_of(fed.model)
            averaged = {"weights": weight_key(self.weighting)}
            replies = self.ask(fed, self.train, averaged=averaged, weights=weights_of(fed.model))
            load(fed.model, replies.mean("weights"))
            moved = towards(start, parameters_of(fed.model), self.beta)
            load(fed.model, moved, partial=True)
            self.tell(fed, received=weights_of(fed.model))

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        site.load(weights)
        model = site.model
        local = parameters_of(model)

        def pull(model: nn.Module, batch: Batch) -> None:
            add_proximal_gradient(model, local, self.lam)

        def repeated() -> Iterator[Batch]:
            nonlocal local
            for batch in self.local.batches(site, site.data):
                for _ in range(self.inner):
                    yield batch
                local = envelope_step(local, parameters_of(model), self.eta, self.lam)

        spec = SGD(self.local.rate(site.round), self.local.momentum, self.local.weight_decay)
        optimizer = Optimizer(model, spec, self.local.clip)
        site.fit(classify, repeated(), optimizer, adjust=pull)
        site.state["model"] = weights_of(model)
        return {"weights": {**site.state["model"], **local}, "samples": len(site.data)}


def envelope_step(local: Tree, personal: Tree, eta: float, lam: float) -> Tree:
    """w - eta * lambda * (w - theta): a step down the Moreau envelope, leaf by leaf.

    The envelope's gradient at w is lambda * (w - theta) for the proximal point theta.
    """
    return plus(local, minus(local, personal), -eta * lam)


def towards(start: Tree, mean: Tree, beta: float) -> Tree:
    """(1 - beta) * w + beta * mean, leaf by leaf; exactly the mean where beta is 1."""
    return plus(scaled(start, 1 - beta), mean, beta)
