"""The two ends of every comparison: nobody talks, and everything in one place."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from motet.core import Facts, Federation, Method, Site, Tree, at_site
from motet.core.errors import ConfigError
from motet.methods.parts import Private, Quorum, ServerTask


class ServerOnly(Method):
    """The server trains on the public pairs alone: the reference for every gain.

    Paper: "LOCAL" of Yu et al., "Multimodal Federated Learning via Contrastive Representation
    Ensemble", ICLR 2023, for the server's side.

    Travels: nothing.

    Use: to see what the sites add at all.
    """

    needs_public: ClassVar[bool] = True
    needs_hub_model: ClassVar[bool] = True

    rounds: int = Field(30, ge=1, description="rounds of training and evaluation")
    server: ServerTask = ServerTask()

    def run(self, fed: Federation) -> None:
        for number in fed.rounds(self.rounds):
            self.server.train(fed, fed.public, number / self.rounds, first=number == 0)
            fed.report()


class ModalLocal(Method):
    """Every site trains on its own rows alone: the reference for what a site gains or loses.

    Paper: "LOCAL" of Yu et al., ICLR 2023, for the clients' side.

    Travels: nothing.

    Use: to see whether a federated method helps or harms the sites' own models.
    """

    rounds: int = Field(30, ge=1, description="rounds of training and evaluation")
    cohort: int = Field(10, ge=1, description="sites that train per round")
    quorum: Quorum = None
    private: Private = Private()

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            fed.sample(self.cohort).ask(self.train, quorum=self.quorum)
            fed.report(sites=fed.all)

    @at_site(keeps="model")
    def train(self, site: Site) -> Tree:
        for epoch in range(self.private.epochs):
            self.private.train(site, epoch)
        return {}


class ModalCentral(Method):
    """The server's model trained on all rows pooled: the upper bound that no federation has.

    Paper: the centralised reference of every federated paper.

    Travels: everything, before the start; this is a simulation and never deployed.

    Use: to see how much there is to gain.
    """

    pools_private_rows: ClassVar[bool] = True

    rounds: int = Field(30, ge=1, description="rounds of training and evaluation")
    server: ServerTask = ServerTask()

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if not facts.hub_rows:
            raise ConfigError(
                "modal-central needs sites that hold all modalities of the server's model"
            )

    def run(self, fed: Federation) -> None:
        for number in fed.rounds(self.rounds):
            self.server.train(fed, fed.data, number / self.rounds, first=number == 0)
            fed.report()
