"""Hand-made picture features (gradients and colours) under a small MLP: fast and from scratch.

Gradient histograms after Dalal and Triggs, "Histograms of Oriented Gradients for Human
Detection", CVPR 2005; coarser, with one normalisation over the whole picture.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from motet.core.batch import Column
from motet.models.base import Encoder
from motet.models.options import Dropout, Hidden, Width
from motet.models.pictures import pictures_of
from motet.nn.layers import mlp

SIDE = 32
CELLS = 4
ORIENTATIONS = 8
FINE = 8
HOG_WEIGHT = 2.0
FINE_WEIGHT = 0.5
FEATURES = CELLS**2 * ORIENTATIONS + 3 * CELLS**2 + 3 * FINE**2
_CHUNK = 512


class HogMLP(Encoder):
    """Pictures by gradient histograms and mean colours, through an MLP 368-hidden-width.

    Inside the model, features lose their mean over the PUBLIC pictures and are divided by ONE
    common spread of these (``calibrate``): one divisor for all keeps the weights of the blocks
    and cannot blow up a corner that is blank in every public picture. Uncalibrated features pass
    as they are.
    """

    modality = "image"
    mean: Tensor
    scale: Tensor

    def __init__(self, width: Width = 64, hidden: Hidden = 128, dropout: Dropout = 0.0) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(()))
        self.layers = mlp(FEATURES, hidden, width, dropout)

    @property
    def key(self) -> str:
        """Names the preparation: all of these encoders prepare alike."""
        return f"hog-{FEATURES}"

    def calibrate(self, column: Column) -> None:
        """Takes the mean of each feature and their common spread from public pictures."""
        features = self.prepare(column)
        mean = features.mean(dim=0)
        spread = (features - mean).square().mean().sqrt()
        self.mean.copy_(mean)
        # A single picture, or equal ones, have no spread: leave the scale alone then.
        self.scale.copy_(torch.where(spread > 1e-4, spread, torch.ones_like(spread)))

    def prepare(self, column: Column) -> Tensor:
        """Pictures uint8 [n, 3, H, W] -> features float32 [n, 368]."""
        pictures = pictures_of(column)
        if not len(pictures):
            return torch.zeros(0, FEATURES)
        return torch.cat([picture_features(part) for part in pictures.split(_CHUNK)])

    def forward(self, x: Tensor) -> Tensor:
        """Features [n, 368] -> embedding [n, width], not normalised."""
        embedding: Tensor = self.layers((x - self.mean) / self.scale)
        return embedding


def picture_features(pictures: Tensor) -> Tensor:
    """Pictures uint8 [n, 3, H, W] -> [n, 368]: HOG 4x4x8, colours 4x4 and 8x8, weighted."""
    small = F.interpolate(pictures.float() / 255, size=(SIDE, SIDE), mode="area")
    coarse = F.adaptive_avg_pool2d(small, CELLS)
    fine = F.adaptive_avg_pool2d(small, FINE)
    blocks = (HOG_WEIGHT * histograms(small), coarse.flatten(1), FINE_WEIGHT * fine.flatten(1))
    return torch.cat(blocks, dim=1)


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
