"""FedSGD: one gradient step per round, taken at the hub."""

from __future__ import annotations

import torch
from pydantic import Field

from motet.core import Federation, Kind, Site, Tree, at_site, load, parameters_of, plus, weights_of
from motet.core.learner import train_mode
from motet.methods.local import Cohort, classify


class FedSGD(Cohort):
    """Sites send the gradient of all their rows; the hub takes one step along the mean.

    Paper: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
    Data", AISTATS 2017, section 2, the baseline of federated averaging.

    Travels: the model's weights down, one gradient up.

    Use: as the exact reference: with all sites it is gradient descent on the pooled rows.

    Avoid: rounds are dear; one step each is little. Batch norm, whose statistics stay at the
    start's.
    """

    lr: float = Field(0.1, gt=0, description="learning rate of the hub")

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            replies = self.ask(fed, self.gradient, weights=weights_of(fed.model))
            mean = replies.mean("gradients", by="samples")
            load(fed.model, plus(parameters_of(fed.model), mean, -self.lr), partial=True)
            fed.report()

    @at_site(sends={"gradients": Kind.GRADIENTS}, takes={"weights": Kind.WEIGHTS})
    def gradient(self, site: Site, weights: Tree) -> Tree:
        site.load(weights)
        train_mode(site.model)
        (batch,) = site.batches(site.data, max(len(site.data), 1))
        learned = {name: p for name, p in site.model.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(classify(site.model, batch), list(learned.values()))
        gradients: Tree = dict(zip(learned, found, strict=True))
        return {"gradients": gradients, "samples": len(site.data)}
