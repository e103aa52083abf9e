"""FedCAC: critical parameters are averaged among alike sites alone, all others among all."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from motet.core import (
    Federation,
    Kind,
    Replies,
    Site,
    Tree,
    at_site,
    load,
    mean,
    parameters_of,
    weights_of,
)
from motet.methods.local import LocalSGD, Weighting, weight_key
from motet.methods.personal import Personal
from motet.nn.bits import pack_bits, unpack_bits


class FedCAC(Personal):
    """Every site gets a model of its own: its critical entries from sites with alike masks.

    Paper: Wu, Liu, Niu, Zhu, Tang, "Bold but Cautious: Unlocking the Potential of Personalized
    Federated Learning through Cautiously Aggressive Collaboration", ICCV 2023.

    Travels: weights up, and one bit per weight that says whether it is critical; a mix of two
    averages down, another one for every site.

    Use: groups of sites have like labels, and nobody knows which.

    Avoid: one model for all is wanted; the hub has no room for two copies of every site's model.

    Deviations: the hub sends the mix, for which it has the mask. Sites that are not asked keep
    mask and customised average, and get the newest global part; overlaps are among those asked.
    """

    setting: ClassVar[str] = "fedcac-fashion"

    rounds: int = Field(300, ge=1, description="communication rounds")
    cohort: int = Field(40, ge=1, description="sites asked per round")
    local: LocalSGD = LocalSGD(lr=0.1, momentum=0.9, epochs=5, batch=100)
    weighting: Weighting = "samples"
    tau: float = Field(0.5, ge=0, le=1, description="share of each tensor's entries: critical")
    beta: float = Field(100.0, gt=0, description="rounds after which no two sites collaborate")

    def run(self, fed: Federation) -> None:
        fed.state |= {"masks": {}, "custom": {}}
        for number in fed.rounds(self.rounds):
            group = fed.sample(self.cohort)
            each = {site: {"weights": self.mix(fed, site)} for site in group}
            replies = group.ask(self.train, quorum=self.quorum, each=each)
            average = replies.mean("weights", by=weight_key(self.weighting))
            load(fed.model, average, partial=True)
            self.collaborate(fed, replies, number + 1)
            self.tell(fed, each={site: {"received": self.mix(fed, site)} for site in fed.all})

    def mix(self, fed: Federation, site: str) -> Tree:
        """A site's start: critical entries from its customised average, the rest from all."""
        average = parameters_of(fed.model)
        if site not in fed.state["masks"]:
            return average
        masks = unpacked(fed.state["masks"][site], average)
        custom = fed.state["custom"][site]
        return {name: torch.where(masks[name], custom[name], average[name]) for name in average}

    def collaborate(self, fed: Federation, replies: Replies, t: int) -> None:
        """Keeps each site's mask, and the average of those that it collaborates with."""
        size = sum(value.numel() for value in parameters_of(fed.model).values())
        masks = {site: reply["mask"] for site, reply in replies.items()}
        bits = [unpack_bits(mask, 1, size).bool() for mask in masks.values()]
        overlap = overlaps(torch.stack(bits))
        chosen = collaborators(overlap, t, self.beta)
        custom = {}
        for site, row in zip(replies, chosen.tolist(), strict=True):
            alike = [replies[j]["weights"] for j, taken in zip(replies, row, strict=True) if taken]
            custom[site] = mean(alike, [1.0] * len(alike))
        fed.state["masks"] = {**fed.state["masks"], **masks}
        fed.state["custom"] = {**fed.state["custom"], **custom}
        fed.log(overlap=float(overlap.mean()), collaborators=float(chosen.sum(1).float().mean()))

    @at_site(sends={"weights": Kind.WEIGHTS, "mask": Kind.SKETCH})
    def train(self, site: Site, weights: Tree) -> Tree:
        self.take(site, weights)
        start = parameters_of(site.model)
        self.local.train(site)
        trained = parameters_of(site.model)
        site.state["model"] = weights_of(site.model)
        mask = torch.cat([part.flatten() for part in self.mask(site, start, trained).values()])
        return {"weights": trained, "mask": pack_bits(mask, 1), "samples": len(site.data)}

    def mask(self, site: Site, start: Tree, trained: Tree) -> Tree:
        """The site's critical entries: name -> bool."""
        return {name: critical(start[name], trained[name], self.tau) for name in trained}


def critical(start: Tensor, trained: Tensor, tau: float) -> Tensor:
    """The share ``tau`` of entries that it would harm most to undo: bool, of the tensor's shape.

    Sensitivity is |(trained - start) * trained|. Entries that did not change are never critical,
    ties at the threshold all are, and there is none where tau * size is below 1.
    """
    count = int(tau * trained.numel())
    if count == 0:
        return torch.zeros_like(trained, dtype=torch.bool)
    score = ((trained - start) * trained).abs()
    threshold = score.flatten().topk(count).values[-1]
    if threshold <= 1e-10:
        above = score[score > 1e-20]
        threshold = above.min() if len(above) else torch.tensor(torch.inf)
    return score >= threshold


def overlaps(masks: Tensor) -> Tensor:
    """O_ij = 1 - |M_i - M_j| / (2 |M_i|) of masks bool [n, p]: float64 [n, n], not symmetric."""
    ones = masks.float()
    counts = masks.sum(dim=1).double()
    differing = counts[:, None] + counts[None, :] - 2 * (ones @ ones.T).double()
    return 1 - differing / (2 * counts.clamp(min=1))[:, None]


def collaborators(overlap: Tensor, t: int, beta: float) -> Tensor:
    """Whom each site averages its critical entries with, itself included: bool [n, n].

    overlap: [n, n]; t: number of this aggregation, from 1. Others must reach the threshold
    mean + t / beta * (max - mean), over all pairs of two.
    """
    alone = torch.eye(len(overlap), dtype=torch.bool)
    others = overlap[~alone]
    if not len(others):
        return alone
    average = others.mean()
    threshold = average + t / beta * (others.max() - average)
    # A mean of equal overlaps may be off by its last bit.
    return alone | (overlap >= threshold - 1e-12)


def unpacked(bits: Tensor, like: Tree) -> Tree:
    """The mask of packed bits, with names and shapes of ``like``; WireError for a wrong size."""
    sizes = [value.numel() for value in like.values()]
    parts = unpack_bits(bits, 1, sum(sizes)).bool().split(sizes)
    pairs = zip(like.items(), parts, strict=True)
    return {name: part.view_as(value) for (name, value), part in pairs}
