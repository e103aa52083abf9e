"""Federated averaging."""

from __future__ import annotations

from motet.core import Federation, Kind, Site, Tree, at_site, load, weights_of
from motet.methods.local import Sampled, Weighting, weight_key


class FedAvg(Sampled):
    """Sites train the hub's model on their own rows; the hub takes the mean of their weights.

    Paper: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
    Data", AISTATS 2017, algorithm 1.

    Travels: the model's weights down and up.

    Use: the first thing to try, and what every other method must beat.

    Avoid: sites differ much in their labels or take many local steps; models differ.
    """

    weighting: Weighting = "samples"

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            averaged = {"weights": weight_key(self.weighting)}
            replies = self.ask(fed, self.train, averaged=averaged, weights=weights_of(fed.model))
            load(fed.model, replies.mean("weights"))
            fed.report()

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        site.load(weights)
        self.local.train(site)
        return {"weights": weights_of(site.model), "samples": len(site.data)}
