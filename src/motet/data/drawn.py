"""Rows that sites draw, each for itself: populations of any size from a data set of any size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from motet.core.errors import DataError


def drawing(codes: Tensor, count: int, what: str) -> Callable[[np.random.Generator], Tensor]:
    """A function that draws ``count`` units without replacement: their rows' positions, sorted.

    codes: int64 [n], the unit of every row, from 0 without gaps. what: a unit's name, for the
    DataError when there are too few.
    """
    order = np.argsort(codes.numpy(), kind="stable")
    units = int(codes.max()) + 1 if len(codes) else 0
    cuts = np.searchsorted(codes.numpy()[order], np.arange(units + 1))
    if count > units:
        raise DataError(f"partition.rows={count}: there are {units} {what}s to draw from")

    def draw(rng: np.random.Generator) -> Tensor:
        chosen = rng.choice(units, count, replace=False)
        rows = np.concatenate([order[cuts[unit] : cuts[unit + 1]] for unit in chosen])
        return torch.from_numpy(np.sort(rows).astype(np.int64))

    return draw
