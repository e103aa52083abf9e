"""Federated averaging."""

from __future__ import annotations

from motet.core import Facts, Federation, Kind, Replies, Site, Tree, at_site, load, weights_of
from motet.methods.aggregate import Aggregate
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
    aggregate: Aggregate = Aggregate()

    def check(self, facts: Facts) -> None:
        super().check(facts)
        self.aggregate.check(facts, self.cohort)

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            sent = weights_of(fed.model)
            replies = self.ask(fed, self.train, weights=sent)
            load(fed.model, self.combine(replies, sent))
            fed.report()

    def combine(self, replies: Replies, sent: Tree) -> Tree:
        """The sites' weights as one, by the rule of ``aggregate``."""
        return self.aggregate.combine(replies, "weights", sent, weight_key(self.weighting))

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        load(site.model, weights)
        self.local.train(site)
        return {"weights": weights_of(site.model), "samples": len(site.data)}
