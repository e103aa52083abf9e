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
            packed[key] = value if name is None else _pack(value, name, key)
        return packed

    def unpack(self, tree: Tree) -> Tree:
        """The payload with its packed tensors as float32 again; raises WireError for damage."""
        return {key: _unpack(value, key) for key, value in tree.items()}


def _pack(value: Any, name: CodecName, where: str) -> Any:
    if isinstance(value, dict):
        if _MARK in value:
            raise WireError(f"{where} has the key {_MARK!r}, which the codec uses; rename it")
        return {key: _pack(item, name, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_pack(item, name, f"{where}.{i}") for i, item in enumerate(value)]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    if name == "fp16":
        half = value.to(torch.float16)
        if not bool(torch.isfinite(half).all()):
            raise WireError(f"{where} has values beyond the range of fp16 (65,504) or not finite")
        return {_MARK: "fp16", "values": half}
    try:
        codes, scale = quantise_rows(value)
    except WireError as error:
        raise WireError(f"{where}: {error}") from None
    return {_MARK: "int8", "values": codes, "scale": scale}


def _unpack(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_unpack(item, f"{where}.{i}") for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if _MARK not in value:
        return {key: _unpack(item, f"{where}.{key}") for key, item in value.items()}
    # What comes from the other side is looked at before it is used.
    match value[_MARK], value.get("values"), value.get("scale"):
        case "fp16", Tensor(dtype=torch.float16) as half, None:
            return half.float()
        case "int8", Tensor(dtype=torch.int8) as codes, Tensor(shape=rows) as scale:
            if rows == codes.shape[:-1]:
                return restore_rows(codes, scale)
    raise WireError(f"{where} is not a tensor that was packed as {value[_MARK]!r}")


def quantise_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as int8 with one scale each: [..., d] -> (int8 [..., d], float32 [...]).

    The largest absolute value of a row becomes 127; a value is off by half a scale at most.
    Raises WireError for values that are not finite.
    """
    floats = values.float()
    if not bool(torch.isfinite(floats).all()):
        raise WireError("a tensor with values that are not finite cannot be packed as int8")
    if not floats.numel():
        return floats.to(torch.int8), floats.new_zeros(floats.shape[:-1])
    # A single number is a row of its own.
    rows = floats.unsqueeze(-1) if floats.dim() == 0 else floats
    scale = rows.abs().amax(dim=-1) / 127
    safe = scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    codes = (rows / safe).round().clamp(-127, 127).to(torch.int8)
    return codes.reshape(values.shape), scale


def restore_rows(codes: Tensor, scale: Tensor) -> Tensor:
    """The float32 rows of ``quantise_rows``."""
    return codes.float() * (scale if codes.dim() == 0 else scale.unsqueeze(-1))
