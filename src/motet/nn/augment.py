"""Differentiable random changes of pictures, the same for all pictures of a class.

Zhao, Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Change: TypeAlias = Literal[
    "flip", "shift", "scale", "rotate", "brightness", "contrast", "saturation", "cutout"
]
CHANGES: tuple[Change, ...] = get_args(Change)
MOVES = frozenset({"flip", "shift", "scale", "rotate"})
SHIFT = 0.125  # of the side
SCALE = 1.2
ROTATE = 15.0  # degrees
BRIGHTNESS = 0.5
CUTOUT = 0.5  # of the side


@dataclass(frozen=True)
class Augmentation:
    """One random set of changes per class, to be made to real and synthetic pictures alike.

    affine: [classes, 2, 3] or None; brightness, contrast, saturation: [classes]; cutout:
    [classes, 2], the corner of a square hole as a share of what is left of the side, or None.
    """

    affine: Tensor | None
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    cutout: Tensor | None

    def __call__(self, pictures: Tensor, classes: Tensor) -> Tensor:
        """Pictures [n, channels, h, w] changed as their class's set says; classes: int64 [n]."""
        x = pictures
        if self.affine is not None:
            grid = F.affine_grid(self.affine[classes], list(x.shape), align_corners=False)
            x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        x = x + _wide(self.brightness[classes])
        grey = x.mean(dim=1, keepdim=True)
        x = grey + (x - grey) * _wide(self.saturation[classes])
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = mean + (x - mean) * _wide(self.contrast[classes])
        return x if self.cutout is None else x * self._kept(classes, x.shape)

    def _kept(self, classes: Tensor, shape: torch.Size) -> Tensor:
        """1 outside of the hole and 0 inside: [n, 1, h, w]."""
        assert self.cutout is not None
        inside = []
        for axis, side in enumerate(shape[-2:]):
            length = round(CUTOUT * side)
            start = (self.cutout[classes, axis] * (side - length + 1)).floor().unsqueeze(1)
            at = torch.arange(side, device=start.device)
            inside.append((at >= start) & (at < start + length))
        hole = inside[0].unsqueeze(2) & inside[1].unsqueeze(1)
        return (~hole).unsqueeze(1).float()


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def draw_augmentation(
    classes: int, side: tuple[int, int], changes: Collection[Change], rng: torch.Generator
) -> Augmentation:
    """Random changes of the named kinds, one set for each class; side: height and width.

    Mirrored or not; moved by whole pixels up to an eighth of the side; each axis scaled by up to
    1.2; turned by up to 15 degrees; brightness +- 0.5 (in the values' own unit); contrast 0.5 to
    1.5 times; saturation 0 to 2 times; a square hole of half the side.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(classes, *shape, generator=rng)

    # Every number is drawn whether it is wanted or not: a kind less leaves the others as they are.
    mirrored = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    moved = uniform(-SHIFT, SHIFT, 2)
    scaled = SCALE ** uniform(-1, 1, 2)
    turned = torch.deg2rad(uniform(-ROTATE, ROTATE))
    brightness = uniform(-BRIGHTNESS, BRIGHTNESS)
    contrast = uniform(0.5, 1.5)
    saturation = uniform(0, 2)
    corner = uniform(0, 1, 2)
    affine = torch.zeros(classes, 2, 3)
    turned = turned if "rotate" in changes else torch.zeros(classes)
    affine[:, 0, 0] = affine[:, 1, 1] = turned.cos()
    affine[:, 1, 0] = turned.sin()
    affine[:, 0, 1] = -turned.sin()
    if "scale" in changes:
        affine[:, :, :2] *= scaled.unsqueeze(1)
    if "flip" in changes:
        affine[:, :, 0] *= mirrored.unsqueeze(1)
    if "shift" in changes:
        sides = torch.tensor([side[1], side[0]])
        affine[:, :, 2] = 2 * (moved * sides).round() / sides
    one = torch.ones(classes)
    return Augmentation(
        affine if MOVES & set(changes) else None,
        brightness if "brightness" in changes else 0 * one,
        contrast if "contrast" in changes else one,
        saturation if "saturation" in changes else one,
        corner if "cutout" in changes else None,
    )
