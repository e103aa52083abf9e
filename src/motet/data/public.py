"""The public set and its neighbours: splits by whole units, one row per unit, subsets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from motet.core.batch import Dataset
from motet.core.errors import ConfigError, DataError
from motet.data._common import codes_of, column_of

Rng: TypeAlias = np.random.Generator


def split_concepts(
    dataset: Dataset, unit: str, sizes: Mapping[str, int | None], rng: Rng
) -> dict[str, Dataset]:
    """Data sets that share no unit: name -> all rows of that many units, in their old order.

    unit: a column of ``about`` such as concept, or "labels". sizes: {"test": 400, "public": 300,
    "private": None}; one None takes all units that are left, otherwise these are in no part.
    Raises DataError with both numbers when there are fewer units than asked for.
    """
    codes, names = codes_of(column_of(dataset, unit, "unit"))
    open_ended = [part for part, size in sizes.items() if size is None]
    if len(open_ended) > 1:
        raise ConfigError(f"only one part can take the rest, not {' and '.join(open_ended)}")
    for part, size in sizes.items():
        if size is not None and size < 1:
            raise ConfigError(f"{part}={size}: write at least 1")
    asked = sum(size for size in sizes.values() if size is not None)
    if asked + len(open_ended) > len(names):
        rest = f" and leave some for {open_ended[0]}" if open_ended else ""
        listed = ", ".join(f"{part}={size}" for part, size in sizes.items() if size is not None)
        raise DataError(
            f"{listed} ask for {asked} different values of {unit}{rest}, the data have {len(names)}"
        )
    order = torch.from_numpy(rng.permutation(len(names)))
    counts = [len(names) - asked if size is None else size for size in sizes.values()]
    part_of = torch.full((len(names),), -1, dtype=torch.int64)
    for number, units in enumerate(torch.split(order, [*counts, len(names) - sum(counts)])):
        part_of[units] = number
    rows = part_of[codes]
    return {
        part: dataset.take((rows == number).nonzero().flatten())
        for number, part in enumerate(sizes)
    }


def one_per_unit(dataset: Dataset, unit: str, rng: Rng) -> Dataset:
    """One random row of each unit (one random drawing style per concept), in their old order."""
    codes, _ = codes_of(column_of(dataset, unit, "unit"))
    shuffled = rng.permutation(len(codes))
    _, chosen = np.unique(codes.numpy()[shuffled], return_index=True)
    return dataset.take(torch.from_numpy(np.sort(shuffled[chosen])))


def check_public(dataset: Dataset) -> Dataset:
    """The same data set if it can serve as a public set; DataError if it has no second row.

    Every contrast and every batch norm needs two rows at least.
    """
    if len(dataset) < 2:
        raise DataError(
            f"a public set needs at least 2 rows, this one has {len(dataset)}; "
            "give data.public more rows"
        )
    if len(torch.unique(dataset.rows)) < len(dataset):
        raise DataError("the public set has the same row twice; its row ids must differ")
    return dataset


def subset(dataset: Dataset, size: int, rng: Rng) -> Tensor:
    """Sorted positions of ``size`` random rows, int64 [size]: a round's share of a public set."""
    if size < 2:
        raise ConfigError(f"a subset of the public set needs at least 2 rows, not {size}")
    if size > len(dataset):
        raise DataError(f"{size} rows were asked for, the public set has {len(dataset)}")
    drawn = rng.choice(len(dataset), size=size, replace=False)
    return torch.from_numpy(np.sort(drawn).astype(np.int64))
