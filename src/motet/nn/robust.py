"""Aggregation rules that single dishonest sites cannot steer, on stacked updates [n, d].

All are unweighted: the number of rows that a site claims is a claim as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from motet.core.errors import ConfigError
from motet.core.tree import Tree, leaves, map_tensors

Unnamed: TypeAlias = Literal["zero", "mean"]


def trimmed_mean(updates: Tensor, trim: int) -> Tensor:
    """Per coordinate the mean of what is left without the ``trim`` smallest and largest: [d].

    Yin, Chen, Ramchandran, Bartlett, ICML 2018. NaN counts as the largest. Raises ConfigError for
    n <= 2 * trim updates.
    """
    count = len(updates)
    if trim < 0 or count <= 2 * trim:
        raise ConfigError(
            f"a mean that trims {trim} at both ends needs at least {2 * trim + 1} updates, and "
            f"there are {count}; ask more sites, or trim fewer"
        )
    return updates.sort(dim=0).values[trim : count - trim].mean(dim=0)


def median(updates: Tensor) -> Tensor:
    """The coordinate-wise median [d]: of an even number, the mean of the two middle ones."""
    if not len(updates):
        raise ConfigError("a median needs at least 1 update, and there is none")
    return trimmed_mean(updates, (len(updates) - 1) // 2)


def krum_scores(updates: Tensor, byzantine: int) -> Tensor:
    """Sum of squared distances to the n - byzantine - 2 nearest others: float64 [n].

    Blanchard, El Mhamdi, Guerraoui, Stainer, NeurIPS 2017. An update that is not finite is
    infinitely far. Raises ConfigError for n < 2 * byzantine + 3 updates.
    """
    count = len(updates)
    if byzantine < 0 or count < 2 * byzantine + 3:
        raise ConfigError(
            f"Krum against {byzantine} dishonest sites needs at least {2 * byzantine + 3} updates, "
            f"and there are {count}; ask more sites, or assume fewer"
        )
    # In float32 the difference of large squares would lose the order.
    wide = updates.double()
    square = wide.square().sum(dim=1)
    distance = (square.unsqueeze(0) + square.unsqueeze(1) - 2 * wide @ wide.T).clamp(min=0)
    distance = torch.where(distance.isfinite(), distance, torch.inf)
    distance.fill_diagonal_(torch.inf)
    return distance.sort(dim=1).values[:, : count - byzantine - 2].sum(dim=1)


def krum(updates: Tensor, byzantine: int) -> Tensor:
    """The update [d] of least Krum score; of equal ones the first."""
    return multi_krum(updates, byzantine, 1)


def multi_krum(updates: Tensor, byzantine: int, chosen: int) -> Tensor:
    """The mean [d] of the ``chosen`` updates of least Krum score, all scored once."""
    scores = krum_scores(updates, byzantine)
    if not 1 <= chosen <= len(updates):
        raise ConfigError(f"{chosen} of {len(updates)} updates cannot be chosen")
    best = scores.argsort(stable=True)[:chosen]
    return updates[best].mean(dim=0)


def ranks_of(order: Tensor, size: int, unnamed: Unnamed = "zero") -> Tensor:
    """Thing -> its rank, int64 [size], in an order int64 [m] of which the last has size - 1.

    For a whole order this is its argsort. Things that it does not name have rank 0 or, with
    "mean", the (rounded down) mean of the ranks that are left to them.
    """
    left = size - len(order)
    low = max(left - 1, 0) // 2 if unnamed == "mean" else 0
    ranks = torch.full((size,), low, dtype=torch.int64)
    ranks[order] = torch.arange(left, size)
    return ranks


def elected(ranks: Sequence[Tensor]) -> Tensor:
    """The order of the sums of ranks, each int64 [size]: int64 [size], the least one first.

    Every voter counts once (Borda count). Of equal sums the one with the lower number comes
    first, so that all parties have the same order.
    """
    return torch.stack(list(ranks)).sum(dim=0).argsort(stable=True)


def flat(tree: Tree) -> Tensor:
    """All floating-point numbers of a payload in a row, float32 or wider: [d]."""
    parts = [leaf.flatten() for leaf in _floats(tree)]
    return torch.cat(parts) if parts else torch.empty(0)


def unflat(vector: Tensor, like: Tree) -> Tree:
    """The payload ``like`` with the numbers of ``vector`` [d]; its other leaves stay."""
    parts = iter(vector.split([leaf.numel() for leaf in _floats(like)]))

    def put(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        return next(parts).view_as(leaf).to(leaf.dtype)

    made: Tree = map_tensors(put, like)
    return made


def _floats(tree: Tree) -> list[Tensor]:
    return [
        leaf for _, leaf in leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
