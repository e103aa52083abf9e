"""KnFu: every site distils from its own mix of the others' predictions."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from motet.core import Batch, Federation, Kind, Site, Tree, at_site
from motet.methods.local import LocalSGD, Sampled
from motet.nn.distillation import scores_of, soft_divergence


class KnFu(Sampled):
    """Sites with similar label mixes teach one another; each gets its own fused teacher.

    Paper: Seyedmohammadi, Atapour, Abouei, Mohammadi, "KnFu: Effective Knowledge Fusion", 2024,
    arXiv 2403.11892.

    Travels: class probabilities of the unlabelled public set, up; a different mix of them for
    every site, down. No weights.

    Use: sites have any models and very different labels, where a common teacher does harm.

    Avoid: sites have plenty of rows of their own: training alone is then as good.

    Deviations: no code is public; weights, temperature and epochs are the natural reading of the
    paper's outline.
    """

    one_model: ClassVar[bool] = False
    setting: ClassVar[str] = "knfu-fashion"
    needs_public: ClassVar[bool] = True

    local: LocalSGD = LocalSGD(lr=0.1, epochs=3)
    distil_epochs: int = Field(1, ge=0, description="epochs over the public set per round")
    tau: float = Field(1.0, gt=0, description="temperature of the predictions")
    beta: float = Field(
        10.0, description="how sharply unlike label mixes are left out; 0 weighs all alike"
    )

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            replies = self.ask(fed, self.train)
            knowledge = replies.stack("knowledge")
            fused = fusion(knowledge, self.beta)
            each = {name: {"teacher": fused[i]} for i, name in enumerate(replies)}
            fed.at(replies).ask(self.distil, each=each, quorum=self.quorum)
            fed.report(sites=fed.all, hub=False)

    @at_site(sends={"knowledge": Kind.LOGITS}, keeps="model")
    def train(self, site: Site) -> Tree:
        self.local.train(site)
        scores = scores_of(site, site.public.only(site.modalities))
        return {"knowledge": (scores / self.tau).softmax(dim=1)}

    @at_site(takes={"teacher": Kind.LOGITS}, keeps="model")
    def distil(self, site: Site, teacher: Tensor) -> Tree:
        public = site.public.only(site.modalities)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            mine = teacher[public.positions(batch.rows)]
            return soft_divergence(mine, model(batch).logits, self.tau)

        tuned = self.local.model_copy(update={"epochs": self.distil_epochs, "steps": None})
        tuned.train(site, loss, data=public, key="distil")
        return {}


def fusion(knowledge: Tensor, beta: float) -> Tensor:
    """Every site's fused teacher [sites, rows, classes] from all probabilities of that shape."""
    weights = effectiveness(label_mix(knowledge), beta)
    return torch.einsum("nm,mxc->nxc", weights, knowledge)


def label_mix(knowledge: Tensor) -> Tensor:
    """The estimated label mix (EPD) of each site: [sites, rows, classes] -> [sites, classes].

    What a model believes of an unlabelled, balanced set mirrors the labels that it was trained on.
    """
    mix = knowledge.mean(dim=1) + 1e-8
    return mix / mix.sum(dim=1, keepdim=True)


def effectiveness(mix: Tensor, beta: float) -> Tensor:
    """Weights alpha [sites, sites] of the others' knowledge; each row sums to 1.

    mix: label mixes [sites, classes]. alpha[n, m] is proportional to exp(-beta KL(mix_n || mix_m)),
    the receiver first.
    """
    log = mix.log()
    divergence = (mix.unsqueeze(1) * (log.unsqueeze(1) - log.unsqueeze(0))).sum(dim=2)
    return torch.softmax(-beta * divergence, dim=1)
