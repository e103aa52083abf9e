"""Whole numbers in as few bits as they need: what rankings and sparse updates travel as."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from motet.core.errors import WireError
from motet.core.tree import Tree

MAX_WIDTH = 32
_LANES = 8


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
    lanes = np.zeros((_LANES, -(-numbers.size // _LANES)), dtype=np.uint32)
    for lane in range(_LANES):
        own = numbers[lane::_LANES]
        lanes[lane, : own.size] = own
    octets = np.zeros((lanes.shape[1], width), dtype=np.uint8)
    for lane, octet, shift in _places(width):
        moved = lanes[lane] << shift if shift >= 0 else lanes[lane] >> -shift
        octets[:, octet] |= moved.astype(np.uint8)
    return torch.from_numpy(octets.reshape(-1)[: -(-numbers.size * width // 8)].copy())


def unpack_bits(packed: Tensor, width: int, count: int) -> Tensor:
    """The ``count`` numbers of ``pack_bits``, int64 [count]; WireError for other bytes."""
    _check_width(width)
    size = -(-count * width // 8)
    if packed.dtype != torch.uint8 or packed.shape != (size,):
        raise WireError(
            f"{count} numbers of {width} bits are uint8 ({size},), not {packed.dtype} "
            f"{tuple(packed.shape)}"
        )
    spare = 8 * size - count * width
    if spare and int(packed[-1]) % 2**spare:
        raise WireError("the bits left over at the end of packed numbers are not 0")
    groups = -(-count // _LANES)
    octets = np.zeros(groups * width, dtype=np.uint8)
    octets[:size] = packed.cpu().numpy()
    columns = octets.reshape(groups, width).T.astype(np.uint32)
    numbers = np.zeros((groups, _LANES), dtype=np.int64)
    for lane, octet, shift in _places(width):
        column = columns[octet]
        # Bits of the number before are shifted out above, or cut off below.
        numbers[:, lane] |= (column >> shift if shift >= 0 else column << -shift) & (2**width - 1)
    return torch.from_numpy(numbers.reshape(-1)[:count].copy())


def _places(width: int) -> list[tuple[int, int, int]]:
    """Where numbers lie: (number, octet, by how many bits the number is shifted left in it).

    Eight numbers of any width fill whole octets, so that the pattern repeats after them.
    """
    return [
        (lane, octet, 8 * (octet + 1) - (lane + 1) * width)
        for lane in range(_LANES)
        for octet in range(lane * width // 8, -(-(lane + 1) * width // 8))
    ]


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
    if count and (int(order.max()) >= total or _repeats(order, total)):
        raise WireError("an order names a thing twice, or one that there is not")
    return order


def _repeats(order: Tensor, of: int) -> bool:
    # Counting is faster than sorting, yet takes memory for things that are not named as well,
    # and how many those are is no more than a claim.
    if of <= 8 * len(order):
        return bool((torch.bincount(order, minlength=of) > 1).any())
    return len(order.unique()) < len(order)


def pack_set(members: Tensor, of: int) -> Tree:
    """Some of ``of`` things, rising int64 [k] below ``of``, as it travels.

    {"bitmap": one bit for each thing} or {"indices": packed numbers}, whichever is smaller.
    """
    if len(members) * width_for(of) < of:
        return {"indices": pack_bits(members, width_for(of))}
    there = torch.zeros(of, dtype=torch.int64)
    there[members] = 1
    return {"bitmap": pack_bits(there, 1)}


def unpack_set(packed: Any, of: int, count: int) -> Tensor:
    """The ``count`` members of ``pack_set``, rising int64 [count]; WireError for anything else.

    ``of`` is what the reader knows, not what the sender says: it bounds the memory.
    """
    match packed:
        case {"bitmap": Tensor() as bits, **others} if not others:
            members = unpack_bits(bits, 1, of).nonzero().squeeze(1)
        case {"indices": Tensor() as bits, **others} if not others:
            members = unpack_bits(bits, width_for(of), count)
            if count and (int(members[-1]) >= of or bool((members.diff() <= 0).any())):
                raise WireError(f"indices do not rise from one to the next, all below {of}")
        case _:
            raise WireError("what should be a set is neither a bitmap nor indices")
    if len(members) != count:
        raise WireError(f"a bitmap names {len(members)} things where {count} were to be named")
    return members
