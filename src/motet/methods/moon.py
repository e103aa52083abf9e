"""Moon: a contrast between models holds local representations near the hub's."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from motet.core import Batch, Federation, Kind, Output, Site, Tree, at_site, load, weights_of
from motet.core.learner import evaluating
from motet.methods.local import LocalSGD, Sampled, classify
from motet.methods.parts import labels_of


class Moon(Sampled):
    """Sites pull their representations to the hub's model's and away from their own last model's.

    Paper: Li, He, Song, "Model-Contrastive Federated Learning", CVPR 2021, algorithm 1.

    Travels: the model's weights down and up. A site keeps its last local model.

    Use: sites differ in their labels, models have rich representations, sites come back often.

    Avoid: small models, or sites that take part once: without a last model there is no contrast.

    Deviations: a site that takes part for the first time has no last model and trains plainly; in
    the paper the hub's model stands in, whose contrast is constant.
    """

    setting: ClassVar[str] = "moon-fashion"

    local: LocalSGD = LocalSGD(lr=0.01, momentum=0.9, weight_decay=1e-5, batch=64, epochs=10)
    mu: float = Field(5.0, ge=0, description="weight of the contrast")
    tau: float = Field(0.5, gt=0, description="temperature of the contrast")
    projection: int = Field(256, ge=2, description="outputs of the projection head")

    def transform(self, model: nn.Module) -> nn.Module:
        """Puts a projection head of two layers between embedding and class head."""
        found: Any = model
        width, classes = found.head.in_features, found.head.out_features
        projection = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.projection)
        )
        layers = {"projection": projection, "classes": nn.Linear(self.projection, classes)}
        found.head = nn.Sequential(OrderedDict(layers))
        return model

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            averaged = {"weights": "samples"}
            replies = self.ask(fed, self.train, averaged=averaged, weights=weights_of(fed.model))
            load(fed.model, replies.mean("weights"))
            fed.report()

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        site.load(weights)
        last: Tree = site.state.get("last", {})

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            output = model(batch)
            with evaluating(model), torch.no_grad():
                z_global = projected(model, functional_call(model, weights, (batch,)), weights)
                z_last = projected(model, functional_call(model, last, (batch,)), last)
            contrast = model_contrast(projected(model, output), z_global, z_last, self.tau)
            return F.cross_entropy(output.logits, labels_of(batch)) + self.mu * contrast

        self.local.train(site, loss if last and self.mu else classify)
        site.state["last"] = weights_of(site.model)
        return {"weights": site.state["last"], "samples": len(site.data)}


def projected(model: Any, output: Output, weights: Tree | None = None) -> Tensor:
    """The projections z [n, projection] of an output, by the model's weights or by these."""
    own = {} if weights is None else under(weights, "head.projection.")
    z: Tensor = functional_call(model.head.projection, own, (output.aux["embedding"],))
    return z


def under(weights: Tree, prefix: str) -> Tree:
    """The weights of the submodule with this prefix, by their names within it."""
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def model_contrast(z: Tensor, z_global: Tensor, z_last: Tensor, tau: float) -> Tensor:
    """Mean of -log(e^(cos(z, z_global) / tau) / (that + e^(cos(z, z_last) / tau))): a scalar.

    z, z_global, z_last: [n, d], of the local, the hub's and the last local model; gradients flow
    through z alone. Moon, equation 3.
    """
    near = F.cosine_similarity(z, z_global.detach(), dim=1) / tau
    far = F.cosine_similarity(z, z_last.detach(), dim=1) / tau
    return F.softplus(far - near).mean()
