"""FedPEFT: only a small tuned part of a frozen pre-trained model is trained, sent and averaged."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from motet.core import (
    ConfigError,
    Facts,
    Federation,
    Kind,
    Replies,
    Site,
    SiteError,
    Tree,
    at_site,
    load,
    weights_of,
)
from motet.core.groups import frozen_names, group
from motet.methods.aggregate import Aggregate
from motet.methods.local import LocalSGD, Sampled
from motet.methods.parts import Part
from motet.methods.tuning import Tuning, frozen_digest
from motet.nn.private import private_mean
from motet.nn.robust import flat, unflat


class TunedSGD(LocalSGD):
    """Local SGD with the paper's settings. Small parts want about ten times the full one's rate."""

    lr: float = Field(0.03, gt=0, description="learning rate")
    epochs: int = Field(10, ge=0, description="local epochs per round")
    batch: int = Field(64, ge=1, description="rows per step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum, from 0 at every round")


class SiteLevelDP(Part):
    """Differential privacy whose unit is a whole site, with a hub that is trusted."""

    clip: float = Field(1.0, gt=0, description="largest L2 norm C of a site's update")
    noise: float = Field(
        0.5, ge=0, description="noise multiplier z: standard deviation z C per value of the sum"
    )


class FedPEFT(Sampled):
    """Sites hold one frozen pre-trained model, and train, send and average a small part of it.

    Paper: Sun, Khalid, Mendieta, Yang, Wang, Lee, Chen, "Exploring Parameter-Efficient Fine-Tuning
    to Enable Foundation Models in Federated Learning", arXiv 2210.01708.

    Travels: the trained part's weights down and up (biases, adapters, prompts, LoRA terms, always
    with the class head). The frozen rest is handed out once, beforehand; a hash of it goes down.

    Use: a good pre-trained model is at hand and its size is the obstacle; sites have few rows or
    differ much; or updates get noise for privacy, which hurts the less the fewer values there are.

    Avoid: the model has not been pre-trained on anything akin, or the network is fast and sites
    are alike: then training all weights is more accurate.

    Deviations: the paper's code is not published; adapters stand between a block's MLP and its
    residual sum. Noise and clipping are the trusted hub's, as in DP-FedAvg (McMahan et al., ICLR
    2018): once on the sum, divided by the cohort that was asked.
    """

    setting: ClassVar[str] = "fedpeft-fashion"

    local: LocalSGD = TunedSGD()
    tuning: Tuning = Tuning()
    aggregate: Aggregate = Aggregate()
    dp: SiteLevelDP | None = Field(None, description="clip and noise updates; null for neither")

    def check(self, facts: Facts) -> None:
        super().check(facts)
        self.aggregate.check(facts, self.cohort)
        if self.dp is not None and self.aggregate.name != "mean":
            raise ConfigError("dp puts its noise on the mean; write aggregate.name: mean, or no dp")

    def transform(self, model: nn.Module) -> nn.Module:
        made = self.tuning.apply(model)
        statistics = sorted(group(made, "all") - group(made, "trainable"))
        if self.dp is not None and statistics:
            raise ConfigError(
                f"dp: {statistics[0]} would travel, and noise is for what is trained; take an "
                "encoder without such statistics (cnn with norm: group), or freeze them by another "
                "tuning.prototype than full"
            )
        return made

    def run(self, fed: Federation) -> None:
        backbone = frozen_digest(fed.model)
        fed.log(**sizes(fed.model))
        for _ in fed.rounds(self.rounds):
            start = weights_of(fed.model)
            replies = self.ask(fed, self.train, weights=start, backbone=backbone)
            load(fed.model, self.average(fed, start, replies))
            fed.report()

    def average(self, fed: Federation, start: Tree, replies: Replies) -> Tree:
        """The next weights, by the rule of ``aggregate``; with privacy all sites weigh the same."""
        if self.dp is None:
            return self.aggregate.combine(replies, "weights", start, "samples")
        before = flat(start)
        sent = torch.stack([flat(weights) for weights in replies.having("weights").values()])
        cohort = min(self.cohort, len(fed.all))
        step = private_mean(sent - before, self.dp.clip, self.dp.noise, cohort, fed.rng("noise"))
        return unflat(before + step, start)

    @at_site(sends={"weights": Kind.WEIGHTS}, takes={"backbone": Kind.CONTROL})
    def train(self, site: Site, weights: Tree, backbone: str) -> Tree:
        if frozen_digest(site.model) != backbone:
            raise SiteError(
                "the frozen part of the model is not the hub's; set common_start: true, or give "
                "hub and sites the same file of pretrained weights"
            )
        load(site.model, weights)
        self.local.train(site)
        return {"weights": weights_of(site.model), "samples": len(site.data)}


def sizes(model: nn.Module) -> dict[str, int]:
    """Bytes of the part that travels each way per site and round, and of what is handed out once.

    Both without the frame's own few bytes.
    """
    state = model.state_dict()
    fixed = sum(state[name].nbytes for name in frozen_names(model) & state.keys())
    return {"payload": sum(value.nbytes for value in state.values()) - fixed, "backbone": fixed}
