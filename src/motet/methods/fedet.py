"""FedET for representations: confidence-weighted consensus, with a pull to who disagrees."""

from __future__ import annotations

from collections.abc import Sequence
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
from motet.nn.functional import disagreement_weights, variance_weights, weighted_rows


class FedET(Method):
    """Ensemble knowledge transfer from small, different clients to a large server.

    Paper: Cho, Manoel, Joshi, Sim, Dimitriadis, "Heterogeneous Ensemble Knowledge Transfer for
    Training Large Models in Federated Learning", IJCAI 2022, arXiv 2204.12703.

    Travels: the server's representations of the public set down, a site's own up.

    Use: clients are small and of mixed confidence, the server is large.

    Avoid: confidence does not show in the outputs' variance (unit embeddings hardly differ in it).

    Deviations: representations stand in place of class probabilities. The confidence is the
    variance over the d components; there are no labels to agree on, so disagreement is 1 - cosine
    to the consensus.
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
    diversity: float = Field(0.05, ge=0, lt=1, description="share of the disagreeing clients")

    def run(self, fed: Federation) -> None:
        for number in fed.rounds(self.rounds):
            self.server.train(fed, fed.public, number / self.rounds, first=number == 0)
            ours = encode_all(fed, fed.public)
            replies = fed.sample(self.cohort).ask(self.transfer, quorum=self.quorum, **ours)
            sent = {name: list(replies.having(name).values()) for name in OTHER}
            targets = {name: self.target(rows) for name, rows in sent.items() if rows}
            self.distil.train(fed, fed.public, targets, self.server.loss)
            fed.report(sites=fed.all)

    def target(self, sent: Sequence[Tensor]) -> Tensor:
        """Clients' rows, each [P, d], as the server's target [P, d].

        Two squared distances with weights 1 - diversity and diversity have the same gradient as
        one distance to their targets' mean with these weights.
        """
        consensus = weighted_rows(sent, variance_weights(sent))
        diverse = weighted_rows(sent, disagreement_weights(sent, consensus))
        return (1 - self.diversity) * consensus + self.diversity * diverse

    @at_site(sends=REPRESENTATIONS, keeps="model", optional=REPRESENTATIONS)
    def transfer(self, site: Site, image: Tensor, text: Tensor) -> Tree:
        return revisit(site, {"image": image, "text": text}, self.digest, self.private)
