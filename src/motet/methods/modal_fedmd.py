"""FedMD for representations: digest the consensus on the public set, then revisit."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from motet.core import Federation, Method, Site, Tree, at_site
from motet.methods.parts import (
    OTHER,
    REPRESENTATIONS,
    Digest,
    Distil,
    Private,
    Quorum,
    ServerTask,
    encode_all,
    revisit,
)


class ModalFedMD(Method):
    """Heterogeneous federated learning by a plain consensus on public data.

    Paper: Li, Wang, "FedMD: Heterogenous Federated Learning via Model Distillation", 2019,
    arXiv 1910.03581.

    Travels: the consensus for the public set down, a site's own representations up.

    Use: the simplest public-set exchange, as a baseline.

    Avoid: sites are very unequal; the consensus weighs all alike.

    Deviations: representations stand in place of class scores and the squared distance in place
    of the absolute error, a server model is distilled from the same consensus, and the first
    consensus is the server's own: unlike class scores, embeddings have no common meaning at first.
    """

    needs_public: ClassVar[bool] = True
    needs_hub_model: ClassVar[bool] = True

    rounds: int = Field(30, ge=1, description="communication rounds")
    cohort: int = Field(10, ge=1, description="sites asked per round")
    quorum: Quorum = None
    server: ServerTask = ServerTask()
    distil: Distil = Distil()
    digest: Digest = Digest()
    private: Private = Private()

    def run(self, fed: Federation) -> None:
        for number in fed.rounds(self.rounds):
            self.server.train(fed, fed.public, number / self.rounds, first=number == 0)
            if number == 0:
                fed.state["consensus"] = encode_all(fed, fed.public)
            consensus = fed.state["consensus"]
            sites = fed.sample(self.cohort)
            replies = sites.ask(self.transfer, quorum=self.quorum, **consensus)
            sent = {name: replies.mean(name) for name in OTHER if replies.having(name)}
            fed.state["consensus"] = {**consensus, **sent}
            self.distil.train(fed, fed.public, sent, self.server.loss)
            fed.report(sites=fed.all)

    @at_site(sends=REPRESENTATIONS, keeps="model", optional=REPRESENTATIONS)
    def transfer(self, site: Site, image: Tensor, text: Tensor) -> Tree:
        return revisit(site, {"image": image, "text": text}, self.digest, self.private)
