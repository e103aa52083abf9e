"""Payloads: nested dicts and lists of tensors, numbers, strings and None; nothing else travels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from motet.core.errors import WireError

Leaf: TypeAlias = Tensor | int | float | bool | str | None
# The recursive type would be exact; mypy's errors about it are not readable, so Any stands in.
Tree: TypeAlias = dict[str, Any]

MAX_DEPTH = 32
_INT64 = range(-(2**63), 2**63)


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Leaf]]:
    """Every leaf with its path, dict keys in insertion order; raises WireError for a stranger."""
    if len(path) > MAX_DEPTH:
        raise WireError(f"payload at {_where(path[:3])} ... is nested deeper than {MAX_DEPTH}")
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not isinstance(key, str) or not key:
                raise WireError(f"payload at {_where(path)} has the key {key!r}; use a name")
            yield from leaves(value, (*path, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from leaves(value, (*path, str(i)))
    else:
        _check_leaf(tree, path)
        yield path, tree


def _where(path: tuple[str, ...]) -> str:
    return ".".join(path) if path else "the top"


def _check_leaf(value: Any, path: tuple[str, ...]) -> None:
    if isinstance(value, Tensor):
        if value.is_complex() or value.is_quantized or value.layout != torch.strided:
            raise WireError(
                f"payload at {_where(path)} is a {value.dtype} {value.layout} tensor; "
                "send a plain dense real one"
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
    """A copy that shares no memory with the original and carries no gradient."""
    return map_tensors(lambda tensor: tensor.detach().clone(), tree)


def mean(trees: Sequence[Any], weights: Sequence[float]) -> Any:
    """Weighted mean of trees, leaf by leaf.

    A leaf is averaged over the trees that have it, with their weights made to sum to 1.
    Integer tensors (counters) take the maximum. Raises WireError where a leaf's shapes differ.
    """
    first = trees[0]
    if isinstance(first, Mapping):
        keys = list(dict.fromkeys(key for tree in trees for key in tree))
        merged: Tree = {}
        for key in keys:
            have = [i for i, tree in enumerate(trees) if key in tree]
            merged[key] = mean([trees[i][key] for i in have], [weights[i] for i in have])
        return merged
    total = float(sum(weights))
    if total <= 0:
        raise WireError(f"weights of a mean must sum to more than 0, not {total}")
    shares = [weight / total for weight in weights]
    if isinstance(first, Tensor):
        return _mean_tensor(trees, shares)
    return sum(share * value for share, value in zip(shares, trees, strict=True))


def _mean_tensor(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise WireError(f"cannot average tensors of different shapes {sorted(shapes)}")
    if not tensors[0].is_floating_point():
        return torch.stack(list(tensors)).amax(dim=0)
    total = tensors[0] * shares[0]
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        total.add_(tensor, alpha=share)
    return total


def weights_of(model: nn.Module) -> Tree:
    """A copy of all parameters and buffers by name, free of gradients."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def load(model: nn.Module, weights: Tree) -> None:
    """Copies the weights into the model, in place; every name must be there, and no other."""
    model.load_state_dict(weights, strict=True)
