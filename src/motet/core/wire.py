"""Frames: a payload as bytes. The tensors are a safetensors file, the rest is JSON inside it.

No pickle: whoever decodes a frame runs no code of whoever wrote it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from motet.core.errors import WireError
from motet.core.tree import MAX_DEPTH, Tree, leaves

_Signature: TypeAlias = tuple[tuple[torch.dtype, torch.Size], ...]
_SKELETON = "skeleton"
# What safetensors and torch raise for a header that lies: unknown dtypes, impossible shapes.
_DAMAGE = (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AssertionError)

MAX_BYTES = 4 * 2**30
MAX_LEAVES = 1_000_000


def encode(tree: Tree) -> bytes:
    """A payload as one frame; equal payloads, keys in equal order, give equal bytes.

    Raises WireError that names the part which cannot travel.
    """
    tensors, skeleton = _split(tree)
    # safetensors refuses tensors that share memory, and a payload may well name one twice.
    return _pack([_own(tensor) for tensor in tensors], skeleton)


def frame_size(tree: Tree) -> int:
    """Exactly ``len(encode(tree))``, without copying tensors.

    A frame's length depends on the skeleton's length, on dtypes and on shapes alone, so it is
    read off a real frame once for each such signature.
    """
    tensors, skeleton = _split(tree)
    signature = tuple((tensor.dtype, tensor.shape) for tensor in tensors)
    return _overhead(signature, len(skeleton)) + sum(tensor.nbytes for tensor in tensors)


def digest(tree: Tree) -> str:
    """A hash of a payload, independent of the order of its top-level keys: 16 hex digits."""
    ordered = {name: tree[name] for name in sorted(tree)}
    return hashlib.blake2b(encode(ordered), digest_size=8).hexdigest()


def decode(frame: bytes, *, max_bytes: int = MAX_BYTES) -> Tree:
    """The payload of a frame; raises WireError for anything that is not one of ours."""
    if len(frame) > max_bytes:
        raise WireError(f"a frame of {len(frame):,} bytes is over the limit of {max_bytes:,}")
    try:
        tensors = load(frame)
    except _DAMAGE as error:
        raise WireError(f"these {len(frame):,} bytes are not a frame: {error}") from None
    if _SKELETON not in tensors or len(tensors) > MAX_LEAVES:
        raise WireError("the frame has no skeleton, or too many parts")
    skeleton = _read_skeleton(tensors.pop(_SKELETON))
    tree = _join(skeleton, tensors)
    if tensors:
        raise WireError(f"the frame has tensors that its skeleton does not name: {list(tensors)}")
    if not isinstance(tree, dict):
        raise WireError("the frame's top is not a dict")
    # What came in must be fit to go out again: names, dtypes and numbers as ``encode`` wants them.
    leaves(tree)
    return tree


def _split(tree: Tree) -> tuple[list[Tensor], bytes]:
    """The tensors in order, and the rest as JSON with a numbered mark in place of each."""
    tensors = [leaf for _, leaf in leaves(tree) if isinstance(leaf, Tensor)]
    # JSON asks about what it does not know, and it meets the tensors in the leaves' order.
    number = itertools.count()
    text = json.dumps(
        tree,
        default=lambda _: {"": next(number)},
        separators=(",", ":"),
        ensure_ascii=False,
    )
    try:
        return tensors, text.encode()
    except UnicodeEncodeError:
        raise WireError("payload has a string that is not valid Unicode") from None


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _pack(tensors: list[Tensor], skeleton: bytes) -> bytes:
    parts = {str(i): tensor for i, tensor in enumerate(tensors)}
    parts[_SKELETON] = torch.frombuffer(bytearray(skeleton), dtype=torch.uint8)
    return save(parts)


@lru_cache(maxsize=4096)
def _overhead(signature: _Signature, skeleton: int) -> int:
    """Bytes of a frame that are not tensor data (the skeleton counts as overhead)."""
    tensors = [torch.empty(shape, dtype=dtype) for dtype, shape in signature]
    return len(_pack(tensors, b" " * skeleton)) - sum(tensor.nbytes for tensor in tensors)


def _read_skeleton(part: Tensor) -> Any:
    try:
        return json.loads(part.numpy().tobytes())
    except (ValueError, RecursionError, TypeError) as error:
        raise WireError(f"the frame's skeleton is not JSON: {error}") from None


def _join(node: Any, tensors: dict[str, Tensor], depth: int = 0) -> Any:
    """The skeleton with each mark replaced by its tensor, which is taken out of ``tensors``."""
    if depth > MAX_DEPTH + 1:
        raise WireError(f"the frame is nested deeper than {MAX_DEPTH}")
    if isinstance(node, dict):
        if set(node) == {""}:
            tensor = tensors.pop(str(node[""]), None)
            if tensor is None:
                raise WireError(f"the frame names a tensor {node['']!r} that it does not hold")
            # In memory of its own, aligned like any other: last bits of a product can hang on it.
            return tensor.clone()
        return {key: _join(value, tensors, depth + 1) for key, value in node.items()}
    if isinstance(node, list):
        return [_join(value, tensors, depth + 1) for value in node]
    return node
