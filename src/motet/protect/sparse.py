"""Sparse updates: a small share of their numbers travels, and what stays behind comes later."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from motet.core.errors import WireError
from motet.core.guard import Passage
from motet.core.kinds import Kind
from motet.core.tree import Tree
from motet.nn.bits import pack_set, unpack_set
from motet.protect.packing import DIRECTIONS, Form, Packer, tensor_of

_SEEDS = 2**62


class _Share(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(0.01, gt=0, le=1, description="share of the numbers that travels")
    feedback: bool = Field(
        True, description="what did not travel is added to the site's next update"
    )


class TopK(_Share):
    """Sends the largest numbers of an update, and where they stand."""

    name: Literal["top-k"] = "top-k"


class RandomK(_Share):
    """Sends numbers of an update at random places, and the seed of these.

    Without feedback they are multiplied by 1 / share, so that the mean over draws is the update.
    """

    name: Literal["random-k"] = "random-k"


class Sparse(Packer):
    """Top-k or random-k of one kind's updates, up the wire alone.

    With feedback a site keeps what it did not send, by operation and key, and adds it to its next
    update of the same names and shapes. Stich, Cordonnier, Jaggi, NeurIPS 2018; Karimireddy,
    Rebjock, Stich, Jaggi, ICML 2019. Gradients and control, which the hub did not send, are sparse
    as they are; other kinds must be a difference to what it sent.
    """

    def __init__(self, kind: Kind, spec: TopK | RandomK) -> None:
        super().__init__(kind, spec.name, alone=kind in DIRECTIONS, bounded=False)
        self.spec = spec

    def encode(self, update: Tensor, forms: Sequence[Form], key: str, passage: Passage) -> Tree:
        """{"values": float32 [k], and "bitmap" or "indices" (top-k) or "seed" (random-k)}."""
        place = f"{passage.op}.{key}"
        whole = update
        if self.spec.feedback:
            whole = with_residual(update, forms, passage.memory.get(place))
        size = len(whole)
        count = count_of(size, self.spec.share)
        if isinstance(self.spec, TopK):
            members = largest(whole, count)
            where = pack_set(members, size)
        else:
            rng = passage.rng(key)
            seed = int(torch.randint(_SEEDS, (), generator=rng))
            members = drawn(size, count, seed)
            where = {"seed": seed}
        factor = 1.0
        if isinstance(self.spec, RandomK) and not self.spec.feedback and count:
            factor = size / count
        values = (whole[members] * factor).to(torch.float32)
        if not bool(torch.isfinite(values).all()):
            raise WireError("it has values beyond the range of float32")
        if self.spec.feedback:
            left = whole.index_add(0, members, values.to(whole.dtype), alpha=-1)
            passage.memory[place] = residual_of(left, forms)
        return {"values": values, **where}

    def decode(self, packed: Tree, forms: Sequence[Form]) -> Tensor:
        """Zeros but for the values that travelled."""
        size = sum(form.count for form in forms)
        count = count_of(size, self.spec.share)
        values = tensor_of(packed, "values", torch.float32, count)
        where = {name: item for name, item in packed.items() if name != "values"}
        if isinstance(self.spec, TopK):
            members = unpack_set(where, size, count)
        else:
            seed = where.get("seed")
            if type(seed) is not int or not 0 <= seed < _SEEDS or len(where) > 1:
                raise WireError(f"its seed is no whole number from 0 to {_SEEDS - 1}")
            members = drawn(size, count, seed)
        return torch.zeros(size).index_copy(0, members, values)


def count_of(size: int, share: float) -> int:
    """How many of so many numbers a share is, rounded up."""
    # 0.1 * 30 is a little above 3.
    return min(math.ceil(round(share * size, 6)), size) or min(size, 1)


def largest(vector: Tensor, count: int) -> Tensor:
    """Places of the ``count`` numbers of largest size in a vector [d]: rising int64 [count].

    Of equal ones the first.
    """
    if not count:
        return torch.empty(0, dtype=torch.int64)
    sizes = vector.abs()
    least = sizes.topk(count, sorted=False).values.min()
    there = sizes > least
    # Which of equal ones topk itself takes is not said.
    equal = (sizes == least).nonzero().squeeze(1)
    there[equal[: count - int(there.sum())]] = True
    return there.nonzero().squeeze(1)


def drawn(size: int, count: int, seed: int) -> Tensor:
    """``count`` different places of ``size``, all alike likely, by the seed: int64 [count]."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count]


def with_residual(update: Tensor, forms: Sequence[Form], kept: Tree | None) -> Tensor:
    """The update [d] plus what was kept of earlier ones, if that is of the same forms."""
    if kept is None or kept["forms"] != _told(forms):
        return update
    left: Tensor = kept["left"]
    return update + left


def residual_of(left: Tensor, forms: Sequence[Form]) -> Tree:
    """What a site keeps of an update [d], with the names and shapes that it is for."""
    return {"left": left, "forms": _told(forms)}


def _told(forms: Sequence[Form]) -> list[list[str | int]]:
    return [["/".join(form.path), *form.shape] for form in forms]
