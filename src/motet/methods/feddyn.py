"""FedDyn: a dual vector per site cancels the bias of the proximal term."""

from __future__ import annotations

from typing import Literal

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
    minus,
    parameters_of,
    plus,
    scaled,
    weights_of,
    zeros,
)
from motet.methods.local import LocalSGD, Sampled
from motet.nn.gradients import add_to_gradients


class DualSampled(Sampled):
    """What FedDyn and FedSpeed have in common: the dual vectors, at the sites and at the hub."""

    local: LocalSGD = LocalSGD(lr=0.1, weight_decay=1e-3, clip=10.0)
    dual: Literal["added", "none", "reversed"] = Field(
        "added",
        description="dual vector in the local drift: none leaves a proximal term (an ablation), "
        "reversed has the wrong sign (a control)",
    )

    @property
    def strength(self) -> float:
        """The weight of the drift term."""
        return 0.0

    def gradient(self, model: nn.Module, batch: Batch) -> None:
        """What becomes of the gradient of a batch before the drift is added; here nothing."""

    def run(self, fed: Federation) -> None:
        fed.state["h"] = zeros(parameters_of(fed.model))
        for _ in fed.rounds(self.rounds):
            start = parameters_of(fed.model)
            averaged = {"weights": None}
            replies = self.ask(fed, self.train, averaged=averaged, weights=weights_of(fed.model))
            load(fed.model, replies.mean("weights"))
            if self.dual != "none":
                mean = parameters_of(fed.model)
                # The mean of h over ALL sites; those that were not asked keep theirs.
                share = len(replies) / len(fed.all)
                fed.state["h"] = plus(fed.state["h"], minus(mean, start), share)
                load(fed.model, plus(mean, fed.state["h"]), partial=True)
            fed.report()

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        site.load(weights)
        start = parameters_of(site.model)
        h = site.state.get("h", zeros(start))
        constant = constant_drift(start, h, self.strength, -1.0 if self.dual == "reversed" else 1.0)

        def adjust(model: nn.Module, batch: Batch) -> None:
            self.gradient(model, batch)
            add_to_gradients(model, constant)

        # The part strength * x of the drift is a weight decay, and like one it is not clipped.
        decay = self.local.weight_decay + self.strength
        self.local.model_copy(update={"weight_decay": decay}).train(site, adjust=adjust)
        if self.dual != "none":
            site.state["h"] = plus(h, minus(parameters_of(site.model), start))
        return {"weights": weights_of(site.model)}


class FedDyn(DualSampled):
    """Sites' losses are regularised so that their optima agree with the optimum of all.

    Paper: Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, "Federated Learning Based on
    Dynamic Regularization", ICLR 2021, algorithm 1.

    Travels: the model's weights down and up. The dual vectors stay at the sites.

    Use: sites differ much in their labels and come back now and then; traffic as of FedAvg.

    Avoid: many thousands of sites that take part once, whose dual vectors are then never used.

    Deviations: written with h_i, the sum of a site's changes, in place of the gradient
    -alpha * h_i, and with its mean over all sites at the hub, which is the same. A clip, where one
    is set, acts on gradient and constant part of the drift, as in widely used code.
    """

    alpha: float = Field(0.1, gt=0, description="weight of the dynamic regulariser")

    @property
    def strength(self) -> float:
        """The weight of the drift term."""
        return self.alpha


def constant_drift(start: Tree, h: Tree, strength: float, sign: float = 1.0) -> Tree:
    """The part of the drift strength * (x - w + h) that does not depend on x.

    start: w, parameter name -> tensor. h: the site's dual vector, the sum of its changes so far.
    FedDyn's gradient of -<grad_i, x> + alpha/2 * ||x - w||^2, with grad_i = -alpha * h.
    """
    return scaled(minus(scaled(h, sign), start), strength)
