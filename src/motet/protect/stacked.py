"""Many sites' values as one: their numbers in rows, what they differ by, and back into a tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from motet.core.errors import ConfigError, WireError
from motet.core.tree import Leaf, leaves

Path: TypeAlias = tuple[str, ...]
DIFFERENT = "it needs the same names, shapes and types from every site"


@dataclass(frozen=True)
class Stack:
    """All floating-point leaves that just these sites sent.

    paths: their names. like: one site's leaves. updates: differences to what the hub sent, in
    float32 or wider [sites, d], with the leaves one after the other.
    """

    sites: tuple[str, ...]
    paths: tuple[Path, ...]
    like: tuple[Tensor, ...]
    updates: Tensor

    @cached_property
    def last_layer(self) -> int:
        """Where the last weight matrix begins in a row; 0 without any."""
        matrices = [number for number, leaf in enumerate(self.like) if leaf.dim() >= 2]
        return sum(leaf.numel() for leaf in self.like[: matrices[-1]]) if matrices else 0

    def row(self, tree: Mapping[Path, Leaf]) -> Tensor:
        """The leaves of these names in another tree as a row [d]; ConfigError for missing ones."""
        found = [tree.get(path) for path in self.paths]
        for path, leaf, own in zip(self.paths, found, self.like, strict=True):
            if not isinstance(leaf, Tensor) or leaf.shape != own.shape:
                name = ".".join(path) or "the value"
                raise ConfigError(f"the hub's own update has no {name} of shape {tuple(own.shape)}")
        return torch.cat([_wide(leaf) for leaf in found if isinstance(leaf, Tensor)])


def joined(values: Mapping[str, Any], sent: Any, rule: Callable[[Stack], Tensor]) -> Any:
    """One tree for the trees of many sites: ``rule`` gives one update [d] for each stack.

    Leaves that only some sites sent are put together by those. Whole numbers are the hub's, or
    (lower) medians where it sent none. Raises WireError for leaves that differ in shape or type.
    """
    known = {site: dict(leaves(value)) for site, value in values.items()}
    before = {} if sent is None else dict(leaves(sent))
    groups: dict[tuple[str, ...], list[Path]] = {}
    for path in dict.fromkeys(path for own in known.values() for path in own):
        having = tuple(site for site, own in known.items() if path in own)
        groups.setdefault(having, []).append(path)
    made: dict[Path, Any] = {}
    for sites, paths in groups.items():
        trees = [known[site] for site in sites]
        floats = [path for path in paths if _is_float(trees[0][path])]
        if floats:
            made |= _by_rule(sites, floats, trees, before, rule)
        for path in paths:
            if path not in made:
                made[path] = _middle([tree[path] for tree in trees], before.get(path))
    return _shaped(list(values.values()), made, ())


def _by_rule(
    sites: tuple[str, ...],
    paths: Sequence[Path],
    trees: Sequence[Mapping[Path, Leaf]],
    before: Mapping[Path, Leaf],
    rule: Callable[[Stack], Tensor],
) -> dict[Path, Tensor]:
    parts = [[_tensor(tree[path]) for path in paths] for tree in trees]
    like = parts[0]
    if any([_form(leaf) for leaf in own] != [_form(leaf) for leaf in like] for own in parts):
        raise WireError(DIFFERENT)
    base = torch.cat(
        [_base(before.get(path), leaf) for path, leaf in zip(paths, like, strict=True)]
    )
    updates = torch.stack([torch.cat([_wide(leaf) for leaf in own]) for own in parts]) - base
    made = base + rule(Stack(sites, tuple(paths), tuple(like), updates))
    pieces = made.split([leaf.numel() for leaf in like])
    return {
        path: piece.view_as(leaf).to(leaf.dtype)
        for path, piece, leaf in zip(paths, pieces, like, strict=True)
    }


def _is_float(leaf: Leaf) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _tensor(leaf: Leaf) -> Tensor:
    if not isinstance(leaf, Tensor):
        raise WireError(DIFFERENT)
    return leaf


def _form(leaf: Any) -> tuple[str, tuple[int, ...]]:
    if isinstance(leaf, Tensor):
        return str(leaf.dtype), tuple(leaf.shape)
    return type(leaf).__name__, ()


def _wide(leaf: Tensor) -> Tensor:
    """A leaf in a row, float32 or wider."""
    row = leaf.flatten()
    return row if row.dtype == torch.float64 else row.float()


def _base(sent: Leaf, leaf: Tensor) -> Tensor:
    """What a leaf is a difference to: what the hub sent in its place, or 0."""
    if isinstance(sent, Tensor) and sent.shape == leaf.shape:
        return _wide(sent)
    return torch.zeros_like(_wide(leaf))


def _middle(values: Sequence[Any], sent: Leaf) -> Any:
    """Whole and single numbers: the hub's, or of what sites sent the (lower) median."""
    form = _form(values[0])
    if any(_form(value) != form for value in values):
        raise WireError(DIFFERENT)
    if isinstance(values[0], str) or values[0] is None:
        raise WireError("it cannot put texts together; send tensors or numbers")
    if sent is not None and _form(sent) == form and not isinstance(sent, float):
        return sent.clone() if isinstance(sent, Tensor) else sent
    middle = (len(values) - 1) // 2
    if isinstance(values[0], Tensor):
        return torch.stack(list(values)).sort(dim=0).values[middle]
    return sorted(values)[middle]


def _shaped(trees: Sequence[Any], made: Mapping[Path, Any], path: Path) -> Any:
    """The leaves that were made, in a tree of the names of all these trees."""
    if all(isinstance(tree, dict) for tree in trees):
        keys = dict.fromkeys(key for tree in trees for key in tree)
        return {
            key: _shaped([tree[key] for tree in trees if key in tree], made, (*path, key))
            for key in keys
        }
    if all(isinstance(tree, list) for tree in trees) and len({len(tree) for tree in trees}) == 1:
        return [
            _shaped([tree[i] for tree in trees], made, (*path, str(i)))
            for i in range(len(trees[0]))
        ]
    if any(isinstance(tree, dict | list) for tree in trees):
        raise WireError(DIFFERENT)
    return made[path]
