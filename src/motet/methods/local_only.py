"""The two ends of every comparison on labelled rows: nobody talks, and everything in one place."""

from __future__ import annotations

from typing import ClassVar

from motet.core import ConfigError, Facts, Federation, Site, Tree, at_site
from motet.methods.local import Sampled, check_one_model


class LocalOnly(Sampled):
    """Every site trains on its own rows alone: the reference for what a site gains or loses.

    Paper: the local reference of every paper on personalised federated learning.

    Travels: nothing.

    Use: to see whether a federated method helps or harms the sites' own models.
    """

    one_model: ClassVar[bool] = False

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            self.ask(fed, self.train)
            fed.report(sites=fed.all, hub=False)

    @at_site(keeps="model")
    def train(self, site: Site) -> Tree:
        self.local.train(site)
        return {}


class Central(Sampled):
    """The hub's model is trained on all sites' rows pooled: the bound that no federation has.

    Paper: the centralised reference of every federated paper.

    Travels: everything, before the start; this is a simulation and never deployed.

    Use: to see how much there is to gain. A round has as many steps as those of a cohort.
    """

    pools_private_rows: ClassVar[bool] = True

    def check(self, facts: Facts) -> None:
        check_one_model(self, facts)
        if not facts.hub_rows:
            raise ConfigError("central needs sites that hold all modalities of the server's model")

    def run(self, fed: Federation) -> None:
        sites = len(fed.all)
        steps = min(self.cohort, sites) * self.local.count(len(fed.data) // sites)
        pooled = self.local.model_copy(update={"steps": steps})
        for _ in fed.rounds(self.rounds):
            pooled.train(fed)
            fed.report()
