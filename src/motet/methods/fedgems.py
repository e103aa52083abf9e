"""FedGEMS for representations: the server keeps a pool of what it got right, and asks the rest."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from motet.core import Federation, Method, Replies, Site, Tree, at_site
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
from motet.nn.functional import retrieval_confidence, selective_ensemble


class FedGEMS(Method):
    """Selective knowledge fusion into a large server model.

    Paper: Cheng, Wu, Xiao, Liu, "FedGEMS: Federated Learning of Larger Server Models via
    Selective Knowledge Fusion", arXiv 2110.11027.

    Travels: the server's representations of the public set down, a site's own up.

    Use: clients are unreliable, and right and wrong can be told on the public set.

    Avoid: the public set is so small that the server gets all of it right at once.

    Deviations: representations stand in place of class scores. A row is right when its partner
    is ranked first among ``block`` rows, and the entropy is that of the same rows' softmax.
    """

    needs_public: ClassVar[bool] = True
    needs_hub_model: ClassVar[bool] = True

    rounds: int = Field(30, ge=1, description="communication rounds")
    cohort: int = Field(10, ge=1, description="sites asked per round")
    quorum: Quorum = None
    server: ServerTask = ServerTask()
    distil: Distil = Distil(weight=0.25, task_weight=0.75)
    digest: Digest = Digest()
    private: Private = Private()
    block: int = Field(128, ge=2, description="public rows that compete in right and entropy")
    tau: float = Field(0.1, gt=0, description="temperature of the entropy's softmax")

    def run(self, fed: Federation) -> None:
        for number in fed.rounds(self.rounds):
            self.server.train(fed, fed.public, number / self.rounds, first=number == 0)
            ours = encode_all(fed, fed.public)
            replies = fed.sample(self.cohort).ask(self.transfer, quorum=self.quorum, **ours)
            targets: dict[str, Tensor] = {}
            known: dict[str, Tensor] = {}
            for name in ours:
                targets[name], known[name] = self.select(fed, name, ours, replies)
            self.distil.train(fed, fed.public, targets, self.server.loss, known)
            fed.report(sites=fed.all)

    def select(
        self, fed: Federation, name: str, ours: Tree, replies: Replies
    ) -> tuple[Tensor, Tensor]:
        """Targets [P, d] of one modality and which rows have one, as 0 or 1 [P].

        Right rows go into the pool. Wrong ones take the pool's row, else the ensemble of the
        clients that are right.
        """
        mine, other = ours[name], ours[OTHER[name]]
        right, _ = retrieval_confidence(mine, other, batch=self.block, tau=self.tau)
        pool = fed.state.setdefault(f"pool {name}", torch.zeros_like(mine))
        pooled = fed.state.setdefault(f"pooled {name}", torch.zeros_like(right))
        pool = torch.where(right[:, None], mine, pool)
        pooled = pooled | right
        fed.state.update({f"pool {name}": pool, f"pooled {name}": pooled})
        sent = list(replies.having(name).values())
        if not sent:
            return pool, (pooled & ~right).float()
        checks = [retrieval_confidence(z, other, batch=self.block, tau=self.tau) for z in sent]
        fused, known = selective_ensemble(
            sent, torch.stack([check[0] for check in checks]), torch.stack([c[1] for c in checks])
        )
        return torch.where(pooled[:, None], pool, fused), (~right & (pooled | known)).float()

    @at_site(sends=REPRESENTATIONS, keeps="model", optional=REPRESENTATIONS)
    def transfer(self, site: Site, image: Tensor, text: Tensor) -> Tree:
        return revisit(site, {"image": image, "text": text}, self.digest, self.private)
