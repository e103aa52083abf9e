"""FedPEFT: only a small tuned part of a frozen pre-trained model is trained, sent and averaged."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from motet.core import (
    Federation,
    Kind,
    Site,
    SiteError,
    Tree,
    at_site,
    load,
    weights_of,
)
from motet.core.groups import frozen_names
from motet.methods.local import LocalSGD, Sampled
from motet.methods.tuning import Tuning, frozen_digest


class TunedSGD(LocalSGD):
    """Local SGD with the paper's settings. Small parts want about ten times the full one's rate."""

    lr: float = Field(0.03, gt=0, description="learning rate")
    epochs: int = Field(10, ge=0, description="local epochs per round")
    batch: int = Field(64, ge=1, description="rows per step")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum, from 0 at every round")


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
    residual sum. Its differential privacy is the recipe's: protect.privacy.
    """

    setting: ClassVar[str] = "fedpeft-fashion"

    local: LocalSGD = TunedSGD()
    tuning: Tuning = Tuning()

    def transform(self, model: nn.Module) -> nn.Module:
        return self.tuning.apply(model)

    def run(self, fed: Federation) -> None:
        backbone = frozen_digest(fed.model)
        fed.log(**sizes(fed.model))
        for _ in fed.rounds(self.rounds):
            start = weights_of(fed.model)
            averaged = {"weights": "samples"}
            replies = self.ask(fed, self.train, averaged=averaged, weights=start, backbone=backbone)
            load(fed.model, replies.mean("weights"))
            fed.report()

    @at_site(sends={"weights": Kind.WEIGHTS}, takes={"backbone": Kind.CONTROL})
    def train(self, site: Site, weights: Tree, backbone: str) -> Tree:
        if frozen_digest(site.model) != backbone:
            raise SiteError(
                "the frozen part of the model is not the hub's; set common_start: true, or give "
                "hub and sites the same file of pretrained weights"
            )
        site.load(weights)
        self.local.train(site)
        return {"weights": weights_of(site.model), "samples": len(site.data)}


def sizes(model: nn.Module) -> dict[str, int]:
    """Bytes of the part that travels each way per site and round, and of what is handed out once.

    Both without the frame's own few bytes.
    """
    state = model.state_dict()
    fixed = sum(state[name].nbytes for name in frozen_names(model) & state.keys())
    return {"payload": sum(value.nbytes for value in state.values()) - fixed, "backbone": fixed}
