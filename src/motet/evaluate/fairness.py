"""Whether sites are served alike, or as they deserve: figures over one number per site."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, sqrt


def correlation(alone: Sequence[float], together: Sequence[float]) -> float:
    """100 times Pearson's correlation of what sites reach alone and what they get together.

    Collaborative fairness: 100 where whoever contributes more gets more. 0 where it is not
    defined, since one of the two is the same for all sites, or there are fewer than two. Raises
    ValueError for unequal lengths. Lyu, Xu, Wang, Yu, "Collaborative Fairness in Federated
    Learning", 2020.
    """
    pairs = list(zip(alone, together, strict=True))
    if not pairs:
        return 0.0
    means = [fsum(values) / len(pairs) for values in (alone, together)]
    off = [(a - means[0], b - means[1]) for a, b in pairs]
    spreads = [sqrt(fsum(x * x for x in column)) for column in zip(*off, strict=True)]
    # Equal numbers may be off their mean by their last bit.
    if min(spreads) <= 1e-9 * max(map(abs, [*alone, *together, 1e-300])):
        return 0.0
    return 100 * max(-1.0, min(1.0, fsum(a * b for a, b in off) / (spreads[0] * spreads[1])))


def jain(values: Sequence[float]) -> float:
    """Jain's index (sum x)^2 / (n sum x^2): 1 where all are equal, 1 / n where one has everything.

    1 where nobody has anything. Jain, Chiu, Hawe, 1984.
    """
    squares = fsum(value * value for value in values)
    return fsum(values) ** 2 / (len(values) * squares) if squares else 1.0


def worst(values: Sequence[float]) -> float:
    """What the site that is served worst has; 0 without any site."""
    return min(values, default=0.0)
