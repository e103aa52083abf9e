"""Ditto: beside the global model a personal one, pulled towards it."""

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
from motet.methods.local import Weighting, weight_key
from motet.methods.personal import Personal
from motet.nn.gradients import add_proximal_gradient


class Ditto(Personal):
    """Federated averaging, beside which every site trains a personal model close to the global.

    Paper: Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through
    Personalization", ICML 2021, algorithm 1.

    Travels: the global model's weights down and up, as in FedAvg; the personal model never.

    Use: a global model and personal ones are wanted; some sites are odd or not to be trusted.

    Avoid: sites cannot afford twice the local work and a second model.

    Deviations: a site that joins late starts its personal model from the initial weights.
    """

    weighting: Weighting = "samples"
    lam: float = Field(
        1.0, ge=0, description="lambda, pull of the personal model to the global one; 0 for none"
    )

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            averaged = {"weights": weight_key(self.weighting)}
            replies = self.ask(fed, self.train, averaged=averaged, weights=weights_of(fed.model))
            load(fed.model, replies.mean("weights"))
            self.tell(fed, received=weights_of(fed.model))

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        initial = weights_of(site.model)
        site.load(weights)
        centre = parameters_of(site.model)
        self.local.train(site)
        trained = weights_of(site.model)

        def pull(model: nn.Module, batch: Batch) -> None:
            add_proximal_gradient(model, centre, self.lam)

        load(site.model, site.state.get("model", initial))
        # Towards the model as it came, not as this site has just changed it.
        self.local.train(site, key="personal", adjust=pull)
        site.state["model"] = weights_of(site.model)
        return {"weights": trained, "samples": len(site.data)}
