"""FedWon: no normalisation layers at all, and plain federated averaging."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from motet.core import Batch, ConfigError, Federation, Kind, Site, Tree, at_site, load, weights_of
from motet.core.groups import group
from motet.methods.local import Sampled
from motet.nn.norm_free import Activation, clip_units, norm_free


class FedWon(Sampled):
    """Federated averaging of a network whose norms gave way to standardised convolutions.

    Paper: Zhuang, Lyu, "FedWon: Triumphing Multi-domain Federated Learning Without
    Normalization", ICLR 2024, arXiv 2306.05879.

    Travels: the model's weights down and up, the raw ones; there are no buffers.

    Use: sites see the same classes in different looks (devices, vendors, styles), one model is
    wanted for all of them and for sites to come, or batches are tiny.

    Avoid: networks without convolutions, or with pretrained trunks that need their norms.

    Deviations: a vector such as a bias is one unit of the adaptive clipping. Residual blocks keep
    the activation after the sum. The limit of the clipping is inferred, not the paper's.
    """

    setting: ClassVar[str] = "fedwon-styles"

    activation: Activation = Field(
        "relu", description="what precedes the convolutions; sets the factor on their weights"
    )
    gain: bool = Field(False, description="a learnable factor per output channel")
    alpha: float = Field(0.2, gt=0, le=1, description="weight of a residual branch")
    agc: float | None = Field(
        0.16, gt=0, description="longest gradient of a unit per length of its weights; null: none"
    )

    def transform(self, model: nn.Module) -> nn.Module:
        found = norm_free(model, activation=self.activation, gain=self.gain, alpha=self.alpha)
        if not found:
            raise ConfigError(
                "FedWon standardises convolutions, and the model has none that is trained; choose "
                "an encoder such as cnn or resnet-gn"
            )
        return model

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            averaged = {"weights": "samples"}
            replies = self.ask(fed, self.train, averaged=averaged, weights=weights_of(fed.model))
            load(fed.model, replies.mean("weights"))
            fed.report(sites=fed.all, point="as received", received=weights_of(fed.model))

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        site.load(weights)
        self.local.train(site, adjust=None if self.agc is None else self.clip)
        return {"weights": weights_of(site.model), "samples": len(site.data)}

    def clip(self, model: nn.Module, batch: Batch) -> None:
        """Adaptive gradient clipping of every unit but the classifier's."""
        assert self.agc is not None
        clip_units(model, self.agc, spared=group(model, "head"))

    @at_site(sends={"metrics": Kind.METRIC}, takes={"received": Kind.WEIGHTS})
    def evaluate(
        self, site: Site, weights: Tree | None = None, received: Tree | None = None
    ) -> Tree:
        return super().evaluate(site, weights if received is None else received)
