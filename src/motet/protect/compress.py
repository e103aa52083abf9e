"""Codecs: fewer bytes on the wire for tensors of a declared kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from motet.core.errors import WireError
from motet.core.kinds import Kind
from motet.core.tree import Tree

CodecName: TypeAlias = Literal["fp16", "int8"]
_MARK = "@codec"


class Codec:
    """Packs floating-point tensors of the named kinds; other kinds travel as they are.

    names: kind -> "fp16" (half precision) or "int8" (one scale per row).
    """

    def __init__(self, names: Mapping[Kind, CodecName]) -> None:
        self.names = dict(names)

    def pack(self, tree: Tree, kinds: Mapping[str, Kind]) -> Tree:
        """The payload with its tensors packed; raises WireError for values that are not finite."""
        packed: Tree = {}
        for key, value in tree.items():
            name = self.names.get(kinds[key]) if key in kinds else None
            packed[key] = value if name is None else _pack(value, name)
        return packed

    def unpack(self, tree: Tree) -> Tree:
        """The payload with its packed tensors as float32 again."""
        return {key: _unpack(value) for key, value in tree.items()}


def _pack(value: Any, name: CodecName) -> Any:
    if isinstance(value, dict):
        return {key: _pack(item, name) for key, item in value.items()}
    if isinstance(value, list):
        return [_pack(item, name) for item in value]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    if name == "fp16":
        half = value.to(torch.float16)
        if not bool(torch.isfinite(half).all()):
            raise WireError("a tensor has values beyond the range of fp16 (65,504) or not finite")
        return {_MARK: "fp16", "values": half}
    codes, scale = quantise_rows(value)
    return {_MARK: "int8", "values": codes, "scale": scale}


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _MARK not in value:
        return {key: _unpack(item) for key, item in value.items()}
    if value[_MARK] == "fp16":
        return value["values"].float()
    return restore_rows(value["values"], value["scale"])


def quantise_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as int8 with one scale each: [..., d] -> (int8 [..., d], float32 [...]).

    The largest absolute value of a row becomes 127; a value is off by half a scale at most.
    Raises WireError for values that are not finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise WireError("a tensor with values that are not finite cannot be packed as int8")
    floats = values.float()
    rows = floats.unsqueeze(0) if floats.dim() == 0 else floats
    scale = rows.abs().amax(dim=-1) / 127
    safe = scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    codes = (rows / safe).round().clamp(-127, 127).to(torch.int8)
    return codes.reshape(values.shape), scale


def restore_rows(codes: Tensor, scale: Tensor) -> Tensor:
    """The float32 rows of ``quantise_rows``."""
    rows = codes.float()
    if codes.dim() == 0:
        return rows * scale.squeeze(0)
    return rows * scale.unsqueeze(-1)
