"""Some entries of a tensor in place of all: which ones, and how they travel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from motet.core.errors import WireError
from motet.core.tree import Tree
from motet.nn.bits import pack_bits, unpack_bits


def largest(values: Tensor, share: float) -> Tensor:
    """Where the ceil(share * size) entries of largest size are: bool, of the values' shape.

    Of equal entries the first; none for a share of 0 or below, all for 1 or above.
    """
    # Of 10 entries 0.7 are 7, whatever the last bit of the product says.
    count = math.ceil(round(max(share, 0.0) * values.numel(), 9))
    order = values.abs().flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view_as(values)


def pack_kept(values: Tensor, mask: Tensor) -> Tree:
    """The entries under a mask of the same shape, [k] in their order, and one bit per entry.

    Fewer bytes than a place for every entry, unless fewer than one in 32 is kept.
    """
    return {"values": values[mask], "kept": pack_bits(mask, 1)}


def unpack_kept(packed: Tree, like: Tensor) -> Tensor:
    """What was kept, in a tensor of the shape of ``like``, 0 elsewhere; WireError for a misfit."""
    mask = unpack_bits(packed["kept"], 1, like.numel()).bool().view_as(like)
    if packed["values"].shape != (int(mask.sum()),):
        raise WireError(
            f"{int(mask.sum())} entries are kept, and values of shape "
            f"{tuple(packed['values'].shape)} came"
        )
    whole = torch.zeros_like(like)
    whole[mask] = packed["values"].to(like.dtype)
    return whole
