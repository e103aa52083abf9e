"""Hand-made picture features (gradients and colours) under a small MLP: fast and from scratch.

Gradient histograms after Dalal and Triggs, "Histograms of Oriented Gradients for Human
Detection", CVPR 2005; coarser, with one normalisation over the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from motet.core.batch import Column
from motet.models.base import Encoder
from motet.models.columns import pictures_of
from motet.models.options import Dropout, Hidden, Width
from motet.nn.layers import mlp

SIDE = 32
CELLS = 4
ORIENTATIONS = 8
FINE = 8
HOG_WEIGHT = 2.0
FINE_WEIGHT = 0.5
BLOCKS = (CELLS**2 * ORIENTATIONS, 3 * CELLS**2, 3 * FINE**2)
FEATURES = sum(BLOCKS)
_CHUNK = 512
# All sites calibrate on the same public pictures: their features, for as long as those live.
_calibrated_on: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()


class HogMLP(Encoder):
    """Pictures by gradient histograms and mean colours, through an MLP 368-hidden-width.

    Inside the model, each feature is standardised by its mean and spread over the PUBLIC pictures
    (``calibrate``), then weighted by its block: gradients 2, coarse colours 1, fine colours 0.5.
    A spread below a tenth of its block's counts as that much, so that a corner which is blank in
    every public picture cannot blow up. Uncalibrated features are weighted alone.
    """

    modality = "image"
    mean: Tensor
    scale: Tensor

    def __init__(self, width: Width = 64, hidden: Hidden = 128, dropout: Dropout = 0.0) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("scale", block_weights())
        self.layers = mlp(FEATURES, hidden, width, dropout)

    @property
    def key(self) -> str:
        """Names the preparation: all of these encoders prepare alike."""
        return f"hog-{FEATURES}"

    def calibrate(self, column: Column) -> None:
        """Takes mean and spread of each feature from public pictures."""
        pictures = pictures_of(column)
        if pictures not in _calibrated_on:
            _calibrated_on[pictures] = self.prepare(pictures)
        features = _calibrated_on[pictures]
        mean = features.mean(dim=0)
        variance = (features - mean).square().mean(dim=0)
        floors = [block.mean().sqrt().expand(len(block)) / 10 for block in variance.split(BLOCKS)]
        spread = torch.maximum(variance.sqrt(), torch.cat(floors))
        # A single picture, or equal ones, have no spread: leave the features as they are then.
        spread = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
        self.mean.copy_(mean)
        self.scale.copy_(block_weights() / spread)

    def prepare(self, column: Column) -> Tensor:
        """Pictures uint8 [n, 3, H, W] -> features float32 [n, 368]."""
        pictures = pictures_of(column)
        if not len(pictures):
            return torch.zeros(0, FEATURES)
        return torch.cat([picture_features(part) for part in torch.split(pictures, _CHUNK)])

    def forward(self, x: Tensor) -> Tensor:
        """Features [n, 368] -> embedding [n, width], not normalised."""
        embedding: Tensor = self.layers((x - self.mean) * self.scale)
        return embedding


def picture_features(pictures: Tensor) -> Tensor:
    """Pictures uint8 [n, 3, H, W] -> [n, 368]: HOG 4x4x8, mean colours 4x4 and 8x8."""
    small = F.interpolate(pictures.float() / 255, size=(SIDE, SIDE), mode="area")
    coarse = F.adaptive_avg_pool2d(small, CELLS)
    fine = F.adaptive_avg_pool2d(small, FINE)
    return torch.cat([histograms(small), coarse.flatten(1), fine.flatten(1)], dim=1)


def block_weights() -> Tensor:
    """The weight of each feature: [368]."""
    weights = (HOG_WEIGHT, 1.0, FINE_WEIGHT)
    return torch.cat([torch.full((n,), w) for n, w in zip(BLOCKS, weights, strict=True)])


def histograms(pictures: Tensor) -> Tensor:
    """Pictures [n, 3, 32, 32] in 0..1 -> gradient histograms [n, 128], unit norm per picture.

    Unsigned orientations; a gradient is shared between the two nearest of the 8 bins. A picture
    without any edge has zeros.
    """
    padded = F.pad(pictures.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    strength = torch.hypot(across, down)
    angle = torch.atan2(down, across) * (ORIENTATIONS / math.pi) % ORIENTATIONS
    low = angle.floor()
    share = angle - low
    first = low.long() % ORIENTATIONS
    second = (first + 1) % ORIENTATIONS
    bins = strength.new_zeros(len(pictures), ORIENTATIONS, SIDE, SIDE)
    bins.scatter_(1, first, strength * (1 - share))
    bins.scatter_add_(1, second, strength * share)
    cells = F.adaptive_avg_pool2d(bins, CELLS).flatten(1)
    return F.normalize(cells.sqrt(), dim=1)
