"""Whole numbers in as few bits as they need: what rankings travel as."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from motet.core.errors import WireError
from motet.core.tree import Tree

MAX_WIDTH = 32


def width_for(count: int) -> int:
    """Bits that tell ``count`` things apart: ceil(log2 count), 0 for a single one."""
    return max(count - 1, 0).bit_length()


def pack_bits(values: Tensor, width: int) -> Tensor:
    """Numbers int64 [n] from 0 to 2^width - 1 as uint8 [ceil(n * width / 8)].

    Each number takes ``width`` bits (0 to 32), its highest first; the bits left over at the end
    are 0. Raises ValueError for a number that does not fit.
    """
    _check_width(width)
    numbers = values.detach().cpu().numpy().astype(np.int64).reshape(-1)
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < 2**width:
        raise ValueError(f"numbers from {numbers.min()} to {numbers.max()} need over {width} bits")
    octets = numbers.astype(">u4").view(np.uint8).reshape(-1, 4)
    bits = np.unpackbits(octets, axis=1)[:, MAX_WIDTH - width :]
    return torch.from_numpy(np.packbits(bits.reshape(-1)))


def unpack_bits(packed: Tensor, width: int, count: int) -> Tensor:
    """The ``count`` numbers of ``pack_bits``, int64 [count]; WireError for other bytes."""
    _check_width(width)
    size = -(-count * width // 8)
    if packed.dtype != torch.uint8 or packed.shape != (size,):
        raise WireError(
            f"{count} numbers of {width} bits are uint8 ({size},), not {packed.dtype} "
            f"{tuple(packed.shape)}"
        )
    bits = np.unpackbits(packed.cpu().numpy())
    if bits[count * width :].any():
        raise WireError("the bits left over at the end of packed numbers are not 0")
    wide = np.zeros((count, MAX_WIDTH), dtype=np.uint8)
    wide[:, MAX_WIDTH - width :] = bits[: count * width].reshape(count, width)
    numbers = np.packbits(wide, axis=1).view(">u4").reshape(-1)
    return torch.from_numpy(numbers.astype(np.int64))


def _check_width(width: int) -> None:
    if not 0 <= width <= MAX_WIDTH:
        raise ValueError(f"numbers are packed in 0 to {MAX_WIDTH} bits, not {width}")


def pack_order(order: Tensor, of: int) -> Tree:
    """An order of things, int64 [m] with m <= ``of`` distinct numbers below ``of``, as it travels.

    It says how many it names and of how many, so that nobody needs the model to read it.
    """
    return {"bits": pack_bits(order, width_for(of)), "count": len(order), "of": of}


def unpack_order(packed: Any, of: int | None = None) -> Tensor:
    """The order, int64 [m]; WireError for anything else, and for one that is not of ``of`` things.

    Every number is there once at most: who sends an order has one say for each thing.
    """
    match packed:
        case {"bits": Tensor() as bits, "count": int(count), "of": int(total)}:
            if of is not None and total != of:
                raise WireError(f"an order of {total} things where {of} are to be ranked")
            if not 0 <= count <= total <= 2**MAX_WIDTH:
                raise WireError(f"an order that names {count} of {total} things")
        case _:
            raise WireError("what should be an order is not packed bits with count and of")
    order = unpack_bits(bits, width_for(total), count)
    seen = torch.bincount(order, minlength=total) if count else order
    if len(seen) > total or bool((seen > 1).any()):
        raise WireError("an order names a thing twice, or one that there is not")
    return order
