"""FedProx: local training that is held near the hub's weights."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from motet.core import (
    Batch,
    Federation,
    Kind,
    Site,
    Tree,
    at_site,
    load,
    parameters_of,
    weights_of,
)
from motet.methods.local import Sampled, Weighting, weight_key
from motet.nn.gradients import add_proximal_gradient


class FedProx(Sampled):
    """FedAvg whose sites pay for their squared distance to the weights that they were sent.

    Paper: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous
    Networks", MLSys 2020, algorithm 2.

    Travels: the model's weights down and up.

    Use: sites take very different numbers of steps, or drift apart with FedAvg.

    Avoid: a small mu changes little, a large one slows everything down.

    Deviations: sites are drawn uniformly and, by default, weighed by their rows; the paper draws
    by rows and weighs alike.
    """

    weighting: Weighting = "samples"
    mu: float = Field(0.01, ge=0, le=100, description="weight of the proximal term")

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            averaged = {"weights": weight_key(self.weighting)}
            replies = self.ask(fed, self.train, averaged=averaged, weights=weights_of(fed.model))
            load(fed.model, replies.mean("weights"))
            fed.report()

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        site.load(weights)
        received = parameters_of(site.model)

        def hold(model: nn.Module, batch: Batch) -> None:
            add_proximal_gradient(model, received, self.mu)

        self.local.train(site, adjust=hold if self.mu else None)
        return {"weights": weights_of(site.model), "samples": len(site.data)}
