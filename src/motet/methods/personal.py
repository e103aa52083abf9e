"""What personalised methods share: a model of its own at every site, and two points to test it."""

from __future__ import annotations

from typing import Any

from torch import nn

from motet.core import (
    Federation,
    Kind,
    Site,
    Tree,
    at_site,
    load,
    weights_of,
)
from motet.core.groups import group
from motet.methods.local import Sampled, Weighting, weight_key


class Personal(Sampled):
    """Every site keeps its own model in its state, under "model"."""

    def kept(self, model: nn.Module) -> frozenset[str]:
        """Names of the parameters and buffers that never come from anywhere else; here none."""
        return frozenset()

    def take(self, site: Site, received: Tree | None) -> None:
        """Puts the site's model together from its own last one and what it was sent."""
        own = site.state.get("model", {})
        kept = self.kept(site.model)
        load(site.model, merged(own, received or {}, kept), partial=True)

    def tell(self, fed: Federation, *, hub: bool = True, **received: Any) -> None:
        """Reports both test points: sites' models as they trained them, and as they received them.

        hub: whether the hub's model is one to use. received: payload of ``evaluate``.
        """
        fed.report(sites=fed.all, hub=hub)
        fed.report(sites=fed.all, hub=False, point="as received", **received)

    @at_site(sends={"metrics": Kind.METRIC}, takes={"received": Kind.WEIGHTS})
    def evaluate(
        self, site: Site, weights: Tree | None = None, received: Tree | None = None
    ) -> Tree:
        self.take(site, weights if received is None else received)
        return {"metrics": site.evaluate()}


class PartlyShared(Personal):
    """Part of the model is averaged as in FedAvg, and the rest stays at the sites."""

    weighting: Weighting = "samples"

    def shared(self, model: nn.Module) -> Tree:
        """The weights that travel."""
        return weights_of(model, group(model, "all") - self.kept(model))

    def fit(self, site: Site) -> None:
        """One round's training of the site's model."""
        self.local.train(site)

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            averaged = {"weights": weight_key(self.weighting)}
            replies = self.ask(fed, self.train, averaged=averaged, weights=self.shared(fed.model))
            mean = replies.mean("weights")
            load(fed.model, mean, partial=True)
            whole = len(mean) == len(weights_of(fed.model))
            self.tell(fed, hub=whole, received=self.shared(fed.model))

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        self.take(site, weights)
        self.fit(site)
        site.state["model"] = weights_of(site.model)
        return {"weights": self.shared(site.model), "samples": len(site.data)}


def merged(own: Tree, received: Tree, kept: frozenset[str]) -> Tree:
    """What was received, but for the entries in ``kept`` that a site already has of its own."""
    news = {name: value for name, value in received.items() if not (name in kept and name in own)}
    return {**own, **news}
