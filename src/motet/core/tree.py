"""Payloads: nested dicts and lists of tensors, numbers, strings and None; nothing else travels."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from motet.core.errors import WireError
from motet.core.groups import changing_tensors

Leaf: TypeAlias = Tensor | int | float | bool | str | None
# The recursive type would be exact; mypy's errors about it are not readable, so Any stands in.
Tree: TypeAlias = dict[str, Any]

MAX_DEPTH = 32
DTYPES = frozenset(
    {
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.uint16,
        torch.int16,
        torch.uint32,
        torch.int32,
        torch.uint64,
        torch.int64,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.bfloat16,
        torch.float16,
        torch.float32,
        torch.float64,
    }
)
# Not a promise of torch's: where it is missing, copies are made at once.
_LAZY = getattr(torch, "_lazy_clone", None)
_WORTH_SHARING = 2**14  # Bytes; less is copied in no time.
_INT64 = range(-(2**63), 2**63)


def leaves(tree: Any) -> list[tuple[tuple[str, ...], Leaf]]:
    """Every leaf with its path, dict keys in insertion order; raises WireError for a stranger."""
    found: list[tuple[tuple[str, ...], Leaf]] = []
    _gather(tree, (), found)
    return found


def _gather(tree: Any, path: tuple[str, ...], found: list[tuple[tuple[str, ...], Leaf]]) -> None:
    if len(path) > MAX_DEPTH:
        raise WireError(f"payload at {_where(path[:3])} ... is nested deeper than {MAX_DEPTH}")
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not isinstance(key, str) or not key:
                raise WireError(f"payload at {_where(path)} has the key {key!r}; use a name")
            # Most are tensors, and a call for each would be half of the time.
            if type(value) is Tensor and len(path) < MAX_DEPTH:
                at = (*path, key)
                _check_leaf(value, at)
                found.append((at, value))
            else:
                _gather(value, (*path, key), found)
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            _gather(value, (*path, str(i)), found)
    else:
        _check_leaf(tree, path)
        found.append((path, tree))


def _where(path: tuple[str, ...]) -> str:
    return ".".join(path) if path else "the top"


def _check_leaf(value: Any, path: tuple[str, ...]) -> None:
    if isinstance(value, Tensor):
        if value.dtype not in DTYPES or value.layout != torch.strided or value.is_meta:
            raise WireError(
                f"payload at {_where(path)} is a {value.dtype} {value.layout} tensor on "
                f"{value.device}; send a plain dense real one"
            )
        return
    if value is None or isinstance(value, bool | float | str):
        return
    if isinstance(value, int) and value in _INT64:
        return
    raise WireError(
        f"payload at {_where(path)} is {_describe(value)}; "
        "send a tensor, number, string, None, list or dict"
    )


def _describe(value: Any) -> str:
    if isinstance(value, int):
        return "an integer of more than 64 bits"
    return f"of type {type(value).__name__}"


def tensors_in(tree: Any) -> list[Tensor]:
    """All tensors of a tree, in the order of ``leaves``; nothing is checked."""
    if isinstance(tree, Tensor):
        return [tree]
    if not isinstance(tree, dict | list):
        return []
    found: list[Tensor] = []
    for value in tree.values() if isinstance(tree, dict) else tree:
        if type(value) is Tensor:
            found.append(value)
        else:
            found += tensors_in(value)
    return found


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The same tree with every tensor replaced by ``function(tensor)``."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [map_tensors(function, value) for value in tree]
    return tree


def clone(tree: Any) -> Any:
    """A contiguous copy that shares no memory with the original and carries no gradient."""
    return map_tensors(_copy, tree)


def _copy(tensor: Tensor) -> Tensor:
    plain = tensor.detach() if tensor.requires_grad else tensor
    return plain.clone(memory_format=torch.contiguous_format)


def separate(tree: Any) -> Any:
    """A copy like ``clone``, made when either side is written to: neither sees the other's changes.

    Most copies are only read, and never made.
    """
    return map_tensors(_separate, tree)


def _separate(tensor: Tensor) -> Tensor:
    large = tensor.nbytes >= _WORTH_SHARING and tensor.is_cpu and tensor.is_contiguous()
    # A part of something larger would hold on to all of it.
    if large and _LAZY is not None and tensor.untyped_storage().nbytes() == tensor.nbytes:
        # Memory that is not torch's own, such as numpy's, cannot be shared in this way.
        with suppress(RuntimeError):
            shared: Tensor = _LAZY(tensor.detach())
            return shared
    return _copy(tensor)


def mean(trees: Sequence[Any], weights: Sequence[float]) -> Any:
    """Weighted mean of trees, leaf by leaf.

    A leaf is averaged over the trees that have it, with their weights made to sum to 1.
    Integer tensors (counters) take the maximum. Raises WireError for leaves that differ in shape
    or are no numbers, and for weights that are negative, not finite or all 0.
    """
    if all(isinstance(tree, Mapping) for tree in trees):
        keys = list(dict.fromkeys(key for tree in trees for key in tree))
        merged: Tree = {}
        for key in keys:
            have = [i for i, tree in enumerate(trees) if key in tree]
            merged[key] = mean([trees[i][key] for i in have], [weights[i] for i in have])
        return merged
    if all(isinstance(tree, list) for tree in trees) and len({len(tree) for tree in trees}) == 1:
        return [mean(items, weights) for items in zip(*trees, strict=True)]
    total = float(sum(weights))
    if not 0 < total < math.inf or min(weights) < 0:
        raise WireError(f"weights of a mean must be positive and finite, not {list(weights)}")
    if all(isinstance(tree, Tensor) for tree in trees):
        return _mean_tensor(trees, weights)
    shares = [weight / total for weight in weights]
    if all(isinstance(tree, int | float) for tree in trees):
        return sum(share * value for share, value in zip(shares, trees, strict=True))
    kinds = sorted({type(tree).__name__ for tree in trees})
    raise WireError(f"cannot average {' and '.join(kinds)}; send tensors or numbers, all alike")


def _mean_tensor(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    first = tensors[0].shape
    if any(tensor.shape != first for tensor in tensors):
        shapes = {tuple(tensor.shape) for tensor in tensors}
        raise WireError(f"cannot average tensors of different shapes {sorted(shapes)}")
    dtype = tensors[0].dtype
    if not dtype.is_floating_point:
        return torch.stack(list(tensors)).amax(dim=0)
    # Halves and eighths would lose digits with every term.
    wide = dtype if dtype == torch.float64 else torch.float32
    # A running mean, step by step towards the next tensor: equal ones stay as they are to the bit,
    # and ``Running`` can do the same without having them all.
    found = tensors[0].to(wide, copy=True)
    total = weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total += weight
        if weight:
            found.lerp_(tensor if tensor.dtype == wide else tensor.to(wide), weight / total)
    return found.to(dtype)


def plus(a: Any, b: Any, times: float = 1.0) -> Any:
    """``a`` + ``times`` * ``b``, leaf by leaf, for trees of equal names and shapes."""
    return _pairwise(lambda x, y: torch.add(x, y, alpha=times), a, b)


def minus(a: Any, b: Any) -> Any:
    """``a`` - ``b``, leaf by leaf, for trees of equal names and shapes."""
    return _pairwise(torch.sub, a, b)


def scaled(tree: Any, by: float) -> Any:
    """Every tensor times ``by``."""
    return map_tensors(lambda value: value * by, tree)


def zeros(tree: Any) -> Any:
    """Zeros of the same names and shapes."""
    return map_tensors(torch.zeros_like, tree)


def _pairwise(function: Callable[[Tensor, Tensor], Tensor], a: Any, b: Any) -> Any:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if a.keys() != b.keys():
            odd = sorted(a.keys() ^ b.keys())
            raise WireError(f"trees differ: only one of them has {', '.join(odd[:5])}")
        return {key: _pairwise(function, a[key], b[key]) for key in a}
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
        return function(a, b)
    raise WireError("only trees of tensors of equal shapes can be added; one of these is not")


def part_like(sent: Any, like: Any) -> Any:
    """The part of a payload that has the names and shapes of another; None without any."""
    if isinstance(like, dict) and isinstance(sent, dict):
        parts = {name: part_like(sent.get(name), value) for name, value in like.items()}
        return None if any(part is None for part in parts.values()) else parts
    same = isinstance(like, Tensor) and isinstance(sent, Tensor) and like.shape == sent.shape
    return sent if same else None


def weights_of(model: nn.Module, names: Collection[str] | None = None) -> Tree:
    """A copy of parameters and buffers by name, free of gradients; what is frozen stays out.

    names: only these (see ``motet.core.groups``); None for all that may change.
    """
    return {
        name: value.clone()
        for name, value in changing_tensors(model).items()
        if names is None or name in names
    }


def parameters_of(model: nn.Module) -> Tree:
    """A copy of the parameters that are trained, by name; no buffers."""
    return {
        name: value.detach().clone()
        for name, value in model.named_parameters()
        if value.requires_grad
    }


def load(model: nn.Module, weights: Tree, *, partial: bool = False) -> None:
    """Copies the weights into the model, in place; every name must be there, and no other.

    partial: names that are not given keep their values. Raises WireError that lists the names
    and shapes that do not fit; the model is then as it was.
    """
    own = changing_tensors(model)
    problems = [f"unexpected {name}" for name in weights if name not in own]
    if not partial:
        problems += [f"missing {name}" for name in own if name not in weights]
    for name, given in weights.items():
        if name not in own:
            continue
        if not isinstance(given, Tensor) or given.shape != own[name].shape:
            shape = tuple(getattr(given, "shape", ()))
            problems.append(f"{name} has shape {shape}, not {tuple(own[name].shape)}")
    if problems:
        raise WireError(f"weights do not fit: {'; '.join(sorted(problems)[:8])}")
    if weights:
        with torch.no_grad():
            torch._foreach_copy_([own[name] for name in weights], list(weights.values()))
