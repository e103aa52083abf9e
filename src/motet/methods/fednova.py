"""FedNova: normalised averaging, for sites that do unequal amounts of local work."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from pydantic import Field
from torch import nn

from motet.core import (
    Batch,
    Federation,
    Kind,
    Site,
    Tree,
    at_site,
    load,
    mean,
    parameters_of,
    weights_of,
)
from motet.methods.local import Sampled, Weighting
from motet.nn.gradients import add_proximal_gradient


class FedNova(Sampled):
    """Each site's change counts per unit of its local work, so that more steps are not more say.

    Paper: Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in
    Heterogeneous Federated Optimization", NeurIPS 2020, algorithm 1.

    Travels: the model's weights down and up, and one number: how much local work was done.

    Use: sites take different numbers of local steps: epochs over unequal rows, slow devices.

    Avoid: all sites take equally many steps; it then is FedAvg.

    Deviations: the hub's step is computed as a step towards a weighted mean of the weights, which
    is the same sum. A site that took no step is left out of the round.
    """

    weighting: Weighting = "samples"
    mu: float = Field(0.0, ge=0, description="weight of a proximal term at the sites; 0 for none")

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            weights = weights_of(fed.model)
            replies = self.ask(fed, self.train, weights=weights)
            worked = [reply for reply in replies.values() if reply["work"] > 0]
            if worked:
                load(fed.model, self.merge(weights, worked, parameters_of(fed.model)))
            fed.report()

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        site.load(weights)
        anchor = parameters_of(site.model)

        def pull(model: nn.Module, batch: Batch) -> None:
            add_proximal_gradient(model, anchor, self.mu)

        self.local.train(site, adjust=pull if self.mu else None)
        steps = self.local.count(len(site.data))
        work = local_work(steps, self.local.momentum, self.mu * self.local.rate(site.round))
        return {"weights": weights_of(site.model), "samples": len(site.data), "work": work}

    def merge(self, weights: Tree, replies: Sequence[Tree], names: Collection[str]) -> Tree:
        """The hub's new weights: ``names`` (the parameters) normalised, buffers as plain means."""
        sent = [reply["weights"] for reply in replies]
        sizes = [float(reply["samples"]) for reply in replies]
        if self.weighting == "uniform":
            sizes = [1.0] * len(sizes)
        shares, reach = normalised(sizes, [float(reply["work"]) for reply in replies])
        target = mean(sent, shares)
        moved = {name: torch.lerp(weights[name], target[name], reach) for name in names}
        return {**mean(sent, sizes), **moved}


def local_work(steps: int, momentum: float = 0.0, pull: float = 0.0) -> float:
    """||a_i||_1: by how much a site's gradients count in its change, in units of one plain step.

    steps: local steps tau_i. momentum: of the local SGD. pull: learning rate times the weight mu
    of a proximal term. Plain SGD gives tau_i. FedNova, section 4 and appendix on local solvers.
    """
    total = moved = velocity = 0.0
    push = 1.0
    for _ in range(steps):
        # How far one gradient of size 1 has moved the weights, so many steps after it came.
        velocity = momentum * velocity + push - pull * moved
        moved += velocity
        total += abs(moved)
        push = 0.0
    return total


def normalised(sizes: Sequence[float], work: Sequence[float]) -> tuple[list[float], float]:
    """FedNova's step w - tau_eff * sum p_i (w - x_i) / a_i as one towards a mean of the x_i.

    sizes: of the sites, p_i before they are made to sum to 1. work: a_i, above 0. Returns the
    weights of that mean, which are in proportion to p_i / a_i, and how far to go towards it from
    w: tau_eff * sum p_i / a_i, with tau_eff = sum p_i a_i. With equal work that is FedAvg, to
    the bit: sizes and 1.
    """
    most = max(work)
    shares = [size * (most / done) for size, done in zip(sizes, work, strict=True)]
    effective = sum(size * (done / most) for size, done in zip(sizes, work, strict=True))
    return shares, effective * sum(shares) / sum(sizes) ** 2
