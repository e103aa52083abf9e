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
    _enough(len(updates), byzantine, 2, "Krum")
    return _scores(squared_distances(updates), len(updates) - byzantine - 2)


def squared_distances(updates: Tensor) -> Tensor:
    """Squared distances between updates [n, d]: float64 [n, n]; to what is not finite, infinite.

    The diagonal is infinite as well, so that nobody is near to itself.
    """
    # In float32 the difference of large squares would lose the order.
    wide = updates.double()
    square = wide.square().sum(dim=1)
    distance = (square.unsqueeze(0) + square.unsqueeze(1) - 2 * wide @ wide.T).clamp(min=0)
    distance = torch.where(distance.isfinite(), (distance + distance.T) / 2, torch.inf)
    distance.fill_diagonal_(torch.inf)
    return distance


def _scores(distance: Tensor, neighbours: int) -> Tensor:
    return distance.sort(dim=1).values[:, :neighbours].sum(dim=1)


def _enough(count: int, byzantine: int, times: int, rule: str) -> None:
    least = times * byzantine + 3
    if byzantine < 0 or count < least:
        raise ConfigError(
            f"{rule} against {byzantine} dishonest sites needs at least {least} updates, "
            f"and there are {count}; ask more sites, or assume fewer"
        )


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


def iterative_krum(updates: Tensor, byzantine: int, *, counts_itself: bool = False) -> list[int]:
    """Which updates are taken, in this order, when all left are scored anew after each.

    It ends when 2 * byzantine + 2 are left, which cannot be scored. counts_itself: the nearest of
    an update's neighbours is the update itself, as in published code, so that one other fewer
    counts. Shejwalkar and Houmansadr, NDSS 2021. Raises ConfigError as ``krum_scores`` does.
    """
    _enough(len(updates), byzantine, 2, "Krum")
    return _taken(updates, len(updates) - 2 * byzantine - 2, byzantine, int(counts_itself))


def iterative_multi_krum(updates: Tensor, byzantine: int, *, counts_itself: bool = False) -> Tensor:
    """The mean [d] of what ``iterative_krum`` takes."""
    return updates[iterative_krum(updates, byzantine, counts_itself=counts_itself)].mean(dim=0)


def _taken(updates: Tensor, count: int, byzantine: int, itself: int, least: int = 0) -> list[int]:
    """The best ``count`` one after the other, each by the distances to those that are left.

    Of equal scores the one nearer to all that are left goes first: two that are each other's
    nearest would otherwise go by their numbers.
    """
    distance = squared_distances(updates)
    left = list(range(len(updates)))
    taken: list[int] = []
    for _ in range(count):
        neighbours = max(len(left) - byzantine - 2 - itself, least)
        among = distance[left][:, left]
        scores = _scores(among, neighbours).tolist()
        totals = among.where(among.isfinite(), 0.0).sum(dim=1).tolist()
        taken.append(left.pop(min(range(len(left)), key=lambda i: (scores[i], totals[i]))))
    return taken


def bulyan(updates: Tensor, byzantine: int) -> Tensor:
    """Per coordinate the mean of those nearest to the median of what repeated Krum selects: [d].

    n - 2 * byzantine are selected, each by the scores among those that are left (by the nearest
    one at least, when few are left), and n - 4 * byzantine enter the mean. El Mhamdi, Guerraoui,
    Rouault, ICML 2018. Raises ConfigError for n < 4 * byzantine + 3 updates.
    """
    _enough(len(updates), byzantine, 4, "Bulyan")
    count = len(updates) - 2 * byzantine
    chosen = updates[_taken(updates, count, byzantine, 0, least=1)]
    off = (chosen - median(chosen)).abs()
    nearest = off.argsort(dim=0, stable=True)[: count - 2 * byzantine]
    return chosen.gather(0, nearest).mean(dim=0)


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
