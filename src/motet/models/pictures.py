"""What the picture encoders share: resizing and augmenting pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT = 2
ERASE_CHANCE = 0.2
ERASE_AREA = (0.02, 0.33)
ERASE_RATIO = (0.3, 3.3)
_CHUNK = 512


def resize(pictures: Tensor, size: int) -> Tensor:
    """Pictures uint8 [n, 3, H, W] -> uint8 [n, 3, size, size]; smoothed where they shrink."""
    if pictures.shape[-2:] == (size, size):
        return pictures
    small = pictures.new_empty(len(pictures), 3, size, size)
    for source, target in zip(
        torch.split(pictures, _CHUNK), torch.split(small, _CHUNK), strict=True
    ):
        scaled = F.interpolate(source.float(), (size, size), mode="bilinear", antialias=True)
        target.copy_(scaled.round().clamp(0, 255))
    return small


def to_unit(pictures: Tensor) -> Tensor:
    """Pictures uint8 -> float32 in -1..1."""
    return pictures.float() / 127.5 - 1


def augment(pictures: Tensor) -> Tensor:
    """Randomly shifts (by up to 2 px), mirrors (half of them) and erases (a fifth of them).

    Pictures float [n, 3, H, W] -> the same shape. Draws from torch's default generator on the
    CPU, so that a device cannot change the draw; a seeded scope makes it repeatable.
    """
    return erase(shift_and_mirror(pictures))


def shift_and_mirror(pictures: Tensor) -> Tensor:
    """Each picture of [n, 3, H, W] moved by up to 2 px, its edge repeated, and half mirrored."""
    n, _, height, width = pictures.shape
    down = torch.randint(-SHIFT, SHIFT + 1, (n, 1))
    across = torch.randint(-SHIFT, SHIFT + 1, (n, 1))
    mirrored = torch.rand(n, 1) < 0.5
    columns = torch.arange(width).expand(n, width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    columns = (columns + across).clamp(0, width - 1).to(pictures.device)
    rows = (torch.arange(height) + down).clamp(0, height - 1).to(pictures.device)
    which = torch.arange(n, device=pictures.device).view(n, 1, 1, 1)
    channel = torch.arange(3, device=pictures.device).view(1, 3, 1, 1)
    return pictures[which, channel, rows.view(n, 1, height, 1), columns.view(n, 1, 1, width)]


def erase(pictures: Tensor) -> Tensor:
    """Sets one rectangle to zero in a fifth of the pictures [n, 3, H, W].

    Zhong et al., "Random Erasing Data Augmentation", AAAI 2020: 2 to 33 % of the area, sides
    in a ratio of 0.3 to 3.3.
    """
    n, _, height, width = pictures.shape
    chosen = torch.rand(n, 1) < ERASE_CHANCE
    area = torch.empty(n, 1).uniform_(*ERASE_AREA)
    ratio = torch.empty(n, 1).uniform_(*(math.log(value) for value in ERASE_RATIO)).exp()
    tall = (area * ratio).sqrt().clamp(max=1)
    wide = (area / ratio).sqrt().clamp(max=1)
    rows = _span(tall, height) & chosen
    columns = _span(wide, width)
    hole = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
    return pictures.masked_fill(hole.to(pictures.device), 0)


def _span(share: Tensor, length: int) -> Tensor:
    """Random stretches covering this share [n, 1] of 0..length: bool [n, length]."""
    extent = (share * length).round().clamp(min=1)
    start = (torch.rand(len(share), 1) * (length - extent + 1)).floor()
    at = torch.arange(length)
    return (at >= start) & (at < start + extent)
