"""Means that are taken while the answers come in, so that nobody has to hold them all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from motet.core.errors import WireError
from motet.core.memory import Freed
from motet.core.tree import Tree, mean

# What weighs an answer: a number in it, or site -> weight; None weighs all alike.
By: TypeAlias = str | Mapping[str, float] | None


class Running:
    """A weighted mean of trees that are added one after the other; to the bit that of ``mean``."""

    def __init__(self) -> None:
        self._parts: dict[str, Running] = {}
        self._kinds: dict[type, None] = {}
        self._tensor: Tensor | None = None
        self._dtype = torch.float32
        self._numbers: list[float] = []
        self._weights: list[float] = []
        self._sum = 0.0

    def __len__(self) -> int:
        return len(self._weights)

    def add(self, tree: Any, weight: float) -> None:
        """Takes one more tree in; raises WireError for one that cannot be averaged with others."""
        self._weights.append(weight)
        self._kinds[_kind(tree)] = None
        if len(self._kinds) > 1:
            kinds = " and ".join(sorted(kind.__name__ for kind in self._kinds))
            raise WireError(f"cannot average {kinds}; send tensors or numbers, all alike")
        if isinstance(tree, dict | list):
            items = tree.items() if isinstance(tree, dict) else enumerate(tree)
            for name, item in items:
                part = self._parts.get(str(name))
                if part is None:
                    part = self._parts[str(name)] = Running()
                part.add(item, weight)
        elif isinstance(tree, Tensor):
            self._add_tensor(tree, weight)
        else:
            self._numbers.append(tree)

    def _add_tensor(self, tensor: Tensor, weight: float) -> None:
        found = self._tensor
        if found is None:
            # Halves and eighths would lose digits with every term.
            wide = tensor.dtype
            if wide.is_floating_point and wide != torch.float64:
                wide = torch.float32
            self._tensor, self._dtype = tensor.to(wide, copy=True), tensor.dtype
            self._sum = weight
            return
        if tensor.shape != found.shape:
            shapes = sorted({tuple(tensor.shape), tuple(found.shape)})
            raise WireError(f"cannot average tensors of different shapes {shapes}")
        if not found.is_floating_point():
            torch.maximum(found, tensor, out=found)
            return
        self._sum += weight
        if weight > 0 and 0 < self._sum < math.inf:
            same = tensor.dtype == found.dtype
            found.lerp_(tensor if same else tensor.to(found.dtype), weight / self._sum)

    def value(self) -> Any:
        """The mean so far; raises WireError for weights that are negative, not finite or all 0."""
        if list in self._kinds:
            return [part.value() for part in self._parts.values()]
        if self._parts or dict in self._kinds:
            return {name: part.value() for name, part in self._parts.items()}
        if self._tensor is None:
            return mean(self._numbers, self._weights)
        if not 0 < sum(self._weights) < math.inf or min(self._weights) < 0:
            raise WireError(f"weights of a mean must be positive and finite, not {self._weights}")
        return self._tensor.to(self._dtype, copy=True)


def _kind(tree: Any) -> type:
    for kind in (dict, list, Tensor):
        if isinstance(tree, kind):
            return kind
    return float if isinstance(tree, int | float) else type(tree)


class Folding:
    """Answers to one question, some of whose keys are taken into a mean and let go.

    sites: those that are asked, sorted. keys: what weighs the mean of each key. Answers are taken
    in by the order of names, whenever they come, so that the sum has the same bits; one that
    came before its turn is held until then.
    """

    def __init__(self, sites: Sequence[str], keys: Mapping[str, By]) -> None:
        self.keys = dict(keys)
        self.means = {key: Running() for key in keys}
        self.done: set[str] = set()
        # Site -> whether its answer is beyond doubt; one that is missing is to be refused.
        self.fit: dict[str, bool] = {}
        self.freed = Freed()
        self._sites = sites
        self._next = 0

    def go_on(self, values: Mapping[str, Tree], failed: Mapping[str, str]) -> None:
        """Takes in what is in turn, and takes it out of ``values``.

        The first answer that is not beyond doubt, and all after it, wait for ``finish``.
        """
        while self._next < len(self._sites):
            site = self._sites[self._next]
            if site not in failed:
                if site not in values or not self.fit.get(site, True):
                    return
                if site in self.fit:
                    self._take(site, values[site])
            self._next += 1

    def finish(self, values: Mapping[str, Tree]) -> None:
        """Takes in all the rest, which was found fit for use."""
        for site in self._sites[self._next :]:
            if site in values:
                self._take(site, values[site])
        self._next = len(self._sites)

    def _take(self, site: str, value: Tree) -> None:
        self.done.add(site)
        weights = {key: self._weight(site, value, by) for key, by in self.keys.items()}
        for key, weight in weights.items():
            if key in value:
                try:
                    self.means[key].add(value.pop(key), weight)
                except WireError as error:
                    raise WireError(f"the mean of {key!r}: {error}") from None

    @staticmethod
    def _weight(site: str, value: Tree, by: By) -> float:
        if by is None:
            return 1.0
        return float(value[by] if isinstance(by, str) else by[site])


def only_mean(key: str) -> str:
    """Why single sites' values under this key cannot be read."""
    return (
        f"only the mean of {key!r} was asked for, and single sites' are not there; leave it out of "
        "averaged= to read them"
    )
