"""Fewer bytes on the wire for tensors of a declared kind: codecs both ways, guards up alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from motet.core.errors import WireError
from motet.core.guard import Guard
from motet.core.kinds import Kind
from motet.core.tree import Tree
from motet.protect.quantise import QSGD, ROWS, Quantised
from motet.protect.sparse import RandomK, Sparse, TopK

CodecName: TypeAlias = Literal["fp16", "int8"]
_MARK = "@codec"
# Kinds whose tensors are parameters: output channels first.
_CHANNELS = frozenset({Kind.WEIGHTS, Kind.GRADIENTS, Kind.CONTROL})
_REFUSED = {
    Kind.LABELS: "labels are whole numbers, which must arrive as they were sent",
    Kind.METRIC: "metrics are a few numbers, which must arrive as they were sent",
    Kind.VOTES: "votes already travel in as few bits as they need",
    Kind.RAW: "raw data leave no site",
}


class Half(BaseModel):
    """Half precision, both ways."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["fp16"] = "fp16"


class Int8(BaseModel):
    """One byte per number, with a scale per row, or per output channel of weights; both ways."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["int8"] = "int8"


CompressSpec: TypeAlias = Annotated[
    Annotated[Half | Int8 | QSGD | TopK | RandomK, Field(discriminator="name")],
    # A name alone stands for its defaults.
    BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value),
]


def _compressible(kind: Kind) -> Kind:
    if kind in _REFUSED:
        raise ValueError(f"{_REFUSED[kind]}; leave {kind} out")
    return kind


def _rows_fit(found: dict[Kind, CompressSpec]) -> dict[Kind, CompressSpec]:
    for kind, spec in found.items():
        if isinstance(spec, QSGD) and spec.bucket is not None and kind in ROWS:
            raise ValueError(
                f"{kind} has the bucket {spec.bucket}, and every row of {kind} is a bucket of its "
                "own; leave bucket out"
            )
    return found


Compression: TypeAlias = Annotated[
    dict[Annotated[Kind, AfterValidator(_compressible)], CompressSpec], AfterValidator(_rows_fit)
]


def codec_of(compression: Mapping[Kind, CompressSpec]) -> Codec | None:
    """The codec of the kinds that are packed both ways; None without any."""
    names: dict[Kind, CodecName] = {
        kind: spec.name for kind, spec in compression.items() if isinstance(spec, Half | Int8)
    }
    return Codec(names) if names else None


def guards_of(compression: Mapping[Kind, CompressSpec]) -> list[Guard]:
    """The guards of the kinds that are packed on their way up alone, one for each."""
    found: list[Guard] = []
    for kind, spec in compression.items():
        if isinstance(spec, QSGD):
            found.append(Quantised(kind, spec))
        elif isinstance(spec, TopK | RandomK):
            found.append(Sparse(kind, spec))
    return found


class Codec:
    """Packs floating-point tensors of the named kinds; other kinds travel as they are.

    names: kind -> "fp16" (half precision) or "int8" (one scale per output channel, which is the
    first dimension, for weights, gradients and control; one per row for other kinds).
    """

    def __init__(self, names: Mapping[Kind, CodecName]) -> None:
        self.names = dict(names)

    def pack(self, tree: Tree, kinds: Mapping[str, Kind]) -> Tree:
        """The payload with its tensors packed; raises WireError for values that are not finite."""
        packed: Tree = {}
        for key, value in tree.items():
            name = self.names.get(kinds[key]) if key in kinds else None
            rows = kinds.get(key) not in _CHANNELS
            packed[key] = value if name is None else _pack(value, name, key, rows)
        return packed

    def unpack(self, tree: Tree) -> Tree:
        """The payload with its packed tensors as float32 again; raises WireError for damage."""
        return {key: _unpack(value, key) for key, value in tree.items()}


def _pack(value: Any, name: CodecName, where: str, rows: bool) -> Any:
    if isinstance(value, dict):
        if _MARK in value:
            raise WireError(f"{where} has the key {_MARK!r}, which the codec uses; rename it")
        return {key: _pack(item, name, f"{where}.{key}", rows) for key, item in value.items()}
    if isinstance(value, list):
        return [_pack(item, name, f"{where}.{i}", rows) for i, item in enumerate(value)]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    if name == "fp16":
        half = value.to(torch.float16)
        if not bool(torch.isfinite(half).all()):
            raise WireError(f"{where} has values beyond the range of fp16 (65,504) or not finite")
        return {_MARK: "fp16", "values": half}
    try:
        codes, scale = quantise_rows(value) if rows else quantise_channels(value)
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
    match value:
        case {"@codec": "fp16", "values": Tensor(dtype=torch.float16) as half} if len(value) == 2:
            if bool(torch.isfinite(half).all()):
                return half.float()
        case {"@codec": "int8", "values": Tensor() as codes, "scale": Tensor() as scale}:
            if len(value) == 3 and _fit(codes, scale):
                return restore_rows(codes, scale)
    raise WireError(f"{where} is not a tensor that was packed as {value[_MARK]!r}")


def _fit(codes: Tensor, scale: Tensor) -> bool:
    """Whether these are codes of int8, with finite scales of their first dimensions."""
    shapes = scale.dim() < max(codes.dim(), 1) and scale.shape == codes.shape[: scale.dim()]
    dtypes = (codes.dtype, scale.dtype) == (torch.int8, torch.float32)
    if not shapes or not dtypes:
        return False
    sound = bool(((scale >= 0) & torch.isfinite(scale)).all())
    return sound and not bool((codes == -128).any())


def quantise_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as int8 with one scale each: [..., d] -> (int8 [..., d], float32 [...]).

    The largest absolute value of a row becomes 127; a value is off by half a scale at most.
    Raises WireError for values that are not finite.
    """
    return _quantise(values, max(values.dim() - 1, 0))


def quantise_channels(values: Tensor) -> tuple[Tensor, Tensor]:
    """Output channels as int8 with one scale each: [c, ...] -> (int8 [c, ...], float32 [c]).

    A vector, and a tensor whose channels are single numbers, has one scale: float32 [].
    """
    single = values.dim() < 2 or values[0:1].numel() == 1
    return _quantise(values, 0 if single else 1)


def _quantise(values: Tensor, lead: int) -> tuple[Tensor, Tensor]:
    """Values with one scale for each index of their first ``lead`` dimensions."""
    floats = values.float()
    if not bool(torch.isfinite(floats).all()):
        raise WireError("a tensor with values that are not finite cannot be packed as int8")
    shape = floats.shape[:lead]
    if not floats.numel():
        return floats.to(torch.int8), floats.new_zeros(shape)
    rows = floats.reshape(*shape, -1)
    scale = rows.abs().amax(dim=-1) / 127
    safe = scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    codes = (rows / safe).round().clamp(-127, 127).to(torch.int8)
    return codes.reshape(values.shape), scale


def restore_rows(codes: Tensor, scale: Tensor) -> Tensor:
    """The float32 values of ``quantise_rows`` and ``quantise_channels``."""
    return codes.float() * scale.reshape([*scale.shape, *[1] * (codes.dim() - scale.dim())])
