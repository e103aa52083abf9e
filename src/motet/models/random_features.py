"""A frozen body that needs no file: random ReLU features of the pixels, standardised.

Rahimi and Recht, "Weighted Sums of Random Kitchen Sinks", NeurIPS 2008: random features under a
linear layer that alone is trained.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from motet.core.batch import Column
from motet.core.groups import freeze
from motet.core.rng import generator
from motet.models.options import Width
from motet.models.pixels import Channels, Mean, PixelEncoder, Side, Spread


class RandomFeatures(PixelEncoder):
    """Pixels through one frozen random layer with ReLU, each feature standardised.

    Everyone who gives the same ``draw`` has the same features, as with a pretrained body. Each is
    standardised by its mean and spread over the PUBLIC pictures (``calibrate``); without a public
    set it stays as it is. ``width`` is the number of features.
    """

    mean_feature: Tensor
    scale: Tensor

    def __init__(
        self,
        width: Width = 256,
        side: Side = 28,
        channels: Channels = 1,
        mean: Mean = 0.5,
        std: Spread = 0.5,
        draw: Annotated[int, Field(ge=0, description="which random features")] = 0,
    ) -> None:
        super().__init__(side, channels, mean, std)
        self.width = width
        self.draw = draw
        self.register_buffer("mean_feature", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        freeze(self)

    @property
    def key(self) -> str:
        """Size, standardisation of the pixels and draw of the features."""
        return f"random {self.width} {self.draw} {super().key}"

    def prepare(self, column: Column) -> Tensor:
        """Pictures uint8 [n, channels, H, W] -> features float32 [n, width], not negative."""
        pixels = super().prepare(column).flatten(1)
        rng = generator(self.draw, "random features", pixels.shape[1], self.width)
        weight = torch.randn(pixels.shape[1], self.width, generator=rng) / pixels.shape[1] ** 0.5
        shift = torch.randn(self.width, generator=rng)
        return (pixels @ weight + shift).relu()

    def calibrate(self, column: Column) -> None:
        """Takes mean and spread of each feature from public pictures."""
        features = self.prepare(column)
        spread = features.std(dim=0, unbiased=False)
        self.mean_feature.copy_(features.mean(dim=0))
        # A feature that no public picture excites, or all excite alike, stays in its scale.
        self.scale.copy_(torch.where(spread > 1e-6, 1 / spread.clamp(min=1e-6), 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Features [n, width] -> embedding [n, width], not normalised."""
        return (x - self.mean_feature) * self.scale
