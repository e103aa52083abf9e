"""QSGD: updates in a few bits per number, rounded at random so that the mean stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from motet.core.errors import WireError
from motet.core.guard import Passage
from motet.core.kinds import Kind
from motet.core.tree import Tree
from motet.nn.bits import pack_bits, unpack_bits, width_for
from motet.protect.packing import Form, Packer, tensor_of

# Kinds of which every row stands for itself.
ROWS = frozenset({Kind.REPRESENTATIONS, Kind.LOGITS, Kind.ACTIVATIONS, Kind.SYNTHETIC, Kind.SKETCH})
BUCKET = 512


class QSGD(BaseModel):
    """Sends numbers as one of 2 * levels + 1 steps of their bucket's norm."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["qsgd"] = "qsgd"
    levels: int = Field(15, ge=1, le=1023, description="steps from 0 to the norm of a bucket")
    bucket: int | None = Field(
        None, ge=1, description="numbers that share a norm; null for 512, or a row where rows are"
    )


class Quantised(Packer):
    """QSGD of one kind's updates, up the wire alone.

    Where the hub sent nothing to be a difference to, values are packed as they are. The buckets of
    weights, gradients and control go through all tensors of a key; of other kinds each row is one.
    """

    def __init__(self, kind: Kind, spec: QSGD) -> None:
        super().__init__(kind, spec.name, alone=True, bounded=True)
        self.spec = spec
        self.width = width_for(2 * spec.levels + 1)

    def encode(self, update: Tensor, forms: Sequence[Form], key: str, passage: Passage) -> Tree:
        """{"codes": packed bits, "norms": float32 [buckets]}."""
        rng = passage.rng(key)
        blocks = self._blocks(forms)
        parts = update.split([size for size, _ in blocks])
        found = [
            qsgd(part, self.spec.levels, bucket, rng)
            for part, (_, bucket) in zip(parts, blocks, strict=True)
        ]
        codes = torch.cat([codes for codes, _ in found]) if found else torch.empty(0)
        norms = torch.cat([norms for _, norms in found]) if found else torch.empty(0)
        return {"codes": pack_bits(codes, self.width), "norms": norms}

    def decode(self, packed: Tree, forms: Sequence[Form]) -> Tensor:
        """The steps times their norms."""
        blocks = self._blocks(forms)
        size = sum(size for size, _ in blocks)
        bits = packed.get("codes")
        if not isinstance(bits, Tensor) or len(packed) > 2:
            raise WireError("it is not codes and norms")
        counts = [-(-size // bucket) for size, bucket in blocks]
        norms = tensor_of(packed, "norms", torch.float32, sum(counts))
        if bool((norms < 0).any()):
            raise WireError("its norms are negative")
        codes = unpack_bits(bits, self.width, size)
        if size and int(codes.max()) > 2 * self.spec.levels:
            raise WireError(f"its codes are above {2 * self.spec.levels}")
        parts = zip(
            codes.split([size for size, _ in blocks]), norms.split(counts), blocks, strict=True
        )
        made = [
            restore_qsgd(own, scale, self.spec.levels, bucket) for own, scale, (_, bucket) in parts
        ]
        return torch.cat(made) if made else torch.empty(0)

    def _blocks(self, forms: Sequence[Form]) -> list[tuple[int, int]]:
        """(numbers, numbers that share a norm) of each block of the vector."""
        if self.kind in ROWS:
            return [(form.count, (form.shape or (1,))[-1] or 1) for form in forms]
        return [(sum(form.count for form in forms), self.spec.bucket or BUCKET)]


def qsgd(values: Tensor, levels: int, bucket: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers [d] as steps of their bucket's L2 norm: int64 [d] from 0 to 2 * levels, float32.

    ``levels`` stands for 0; norms [ceil(d / bucket)]. v becomes norm * sign(v) * n / levels with n
    one of the two whole numbers about levels * |v| / norm, at random so that the mean is v. The
    expected squared error is at most min(bucket / levels^2, sqrt(bucket) / levels) * norm^2.
    Alistarh, Grubic, Li, Tomioka, Vojnovic, NeurIPS 2017. Raises WireError for values or norms
    that float32 cannot hold.
    """
    count = -(-len(values) // bucket)
    rows = values.new_zeros(count * bucket)
    rows[: len(values)] = values
    rows = rows.view(count, bucket)
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).to(torch.float32)
    if not bool(torch.isfinite(norms).all()):
        raise WireError("it has values whose norm is infinite or NaN")
    safe = norms.where(norms > 0, 1.0).unsqueeze(1)
    steps = (rows / safe * levels).to(torch.float32)
    # A whole number stays what it is, so that 0 stays 0.
    chance = torch.rand(steps.shape, generator=rng)
    whole = (steps.abs() + chance).floor().clamp(max=levels) * steps.sign()
    return whole.flatten()[: len(values)].long() + levels, norms


def restore_qsgd(codes: Tensor, norms: Tensor, levels: int, bucket: int) -> Tensor:
    """The numbers that ``qsgd`` made of others: float32 [d]."""
    scale = (norms / levels).repeat_interleave(bucket)[: len(codes)]
    return (codes - levels) * scale
