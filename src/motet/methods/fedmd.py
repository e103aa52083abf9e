"""FedMD: sites of any model learn from the mean of everybody's class scores on public rows."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core import Adam, Batch, Dataset, Federation, Kind, Site, Tree, at_site
from motet.core.learner import Loss
from motet.methods.local import Cohort, classify
from motet.nn.distillation import scores_of, soft_divergence


class FedMD(Cohort):
    """Sites digest the consensus of class scores on the public set, then revisit their own rows.

    Paper: Li, Wang, "FedMD: Heterogenous Federated Learning via Model Distillation", 2019,
    arXiv 1910.03581, algorithm 1.

    Travels: class scores of a random part of the public set, up and down; no weights.

    Use: every site has its own architecture, and labelled public rows of the same classes exist.

    Avoid: public rows are few or of another kind; sites see very different classes.
    """

    one_model: ClassVar[bool] = False
    setting: ClassVar[str] = "fedmd-fashion"
    needs_public: ClassVar[bool] = True

    lr: float = Field(1e-3, gt=0, description="Adam learning rate of the sites")
    batch: int = Field(32, ge=1, description="rows per step")
    public_rows: int = Field(5000, ge=2, description="public rows per round, drawn at random")
    transfer_epochs: int = Field(10, ge=0, description="epochs on the public set before round 0")
    first_epochs: int = Field(10, ge=0, description="epochs on own rows before round 0")
    digest_epochs: int = Field(1, ge=0, description="epochs to match the consensus")
    epochs: int = Field(2, ge=0, description="epochs on own rows afterwards (revisit)")
    match: Literal["absolute", "kl"] = Field(
        "absolute", description="absolute difference of scores (paper), or KL of their softmax"
    )

    def run(self, fed: Federation) -> None:
        for number in fed.rounds(self.rounds):
            order = torch.randperm(len(fed.public), generator=fed.rng("public"))
            rows = order[: self.public_rows].sort().values
            if number == 0:
                fed.all.ask(self.start, quorum=self.quorum)
            group = fed.sample(self.cohort)
            replies = group.ask(self.communicate, quorum=self.quorum, rows=rows)
            consensus = replies.mean("scores")
            group.ask(self.learn, quorum=self.quorum, rows=rows, scores=consensus)
            fed.report(sites=fed.all, hub=False)

    @at_site(keeps="model")
    def start(self, site: Site) -> Tree:
        self._fit(site, classify, site.public, self.transfer_epochs, "transfer")
        self._fit(site, classify, site.data, self.first_epochs, "first")
        return {}

    @at_site(sends={"scores": Kind.LOGITS}, takes={"rows": Kind.CONTROL}, keeps="model")
    def communicate(self, site: Site, rows: Tensor) -> Tree:
        return {"scores": scores_of(site, public_of(site).take(rows))}

    @at_site(takes={"scores": Kind.LOGITS, "rows": Kind.CONTROL}, keeps="model")
    def learn(self, site: Site, rows: Tensor, scores: Tensor) -> Tree:
        public = public_of(site).take(rows)

        def digest(model: nn.Module, batch: Batch) -> Tensor:
            target = scores[public.positions(batch.rows)]
            return score_distance(model(batch).logits, target, self.match)

        self._fit(site, digest, public, self.digest_epochs, "digest")
        self._fit(site, classify, site.data, self.epochs, "revisit")
        return {}

    def _fit(self, site: Site, loss: Loss, data: Dataset, epochs: int, key: str) -> None:
        batches = site.batches(data, self.batch, epochs=epochs, least=2, key=key)
        site.fit(loss, batches, site.optimizer("local", Adam(self.lr)))


def public_of(site: Site) -> Dataset:
    """The public set in the modalities that the site holds."""
    return site.public.only(site.modalities)


def score_distance(scores: Tensor, consensus: Tensor, match: str) -> Tensor:
    """How far class scores [n, classes] are from the consensus: a scalar.

    "absolute": mean absolute difference (section 3.2). "kl": KL of the softmax, temperature 1.
    """
    if match == "kl":
        return soft_divergence(consensus.softmax(dim=1), scores)
    return F.l1_loss(scores, consensus)
