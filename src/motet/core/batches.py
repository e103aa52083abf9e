"""Shuffled batches of a data set, one by one or as a plan of them all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from motet.core.batch import Batch, Dataset

# Positions of batches that are split off an epoch's order at a time.
SPLIT = 32


class Batches(Iterator[Batch]):
    """Batches of a data set, each made when it is asked for.

    begin: gives the data set, as a model reads it, and the order of its rows in each epoch; called
    once. size: rows of a batch; the last of an epoch may be smaller. steps: how many batches there
    are; None for all of the epochs.
    """

    def __init__(
        self,
        begin: Callable[[], tuple[Dataset, Iterator[Tensor]]],
        size: int,
        steps: int | None = None,
    ) -> None:
        self._begin = begin
        self._size = size
        self._steps = steps
        self._left: tuple[Dataset, Iterator[Tensor]] | None = None

    def __next__(self) -> Batch:
        if self._left is None:
            data, epochs = self._begin()
            positions = (index for order in epochs for index in self._split(order))
            self._left = data, itertools.islice(positions, self._steps)
        data, left = self._left
        return data.batch(next(left))

    def _split(self, order: Tensor) -> Iterator[Tensor]:
        # Not all at once, since a fit of a few steps reads no more than the first few.
        for some in order.split(SPLIT * self._size):
            yield from some.split(self._size)

    def plan(self) -> tuple[Dataset, Tensor, list[int]]:
        """The data set, and the positions in it and the sizes of all batches to come.

        The positions [rows of all] come one batch after the other. The batches are then used up.
        """
        if self._left is not None:
            data, left = self._left
            rest = list(left)
            return data, _joined(rest), [len(index) for index in rest]
        data, epochs = self._begin()
        self._left = data, iter(())
        orders: list[Tensor] = []
        sizes: list[int] = []
        while self._steps is None or len(sizes) < self._steps:
            order = next(epochs, None)
            if order is None:
                break
            full, last = divmod(order.shape[0], self._size)
            found = [self._size] * full + [last] * (last > 0)
            if self._steps is not None:
                found = found[: self._steps - len(sizes)]
            taken = sum(found)
            orders.append(order if taken == order.shape[0] else order[:taken])
            sizes += found
        return data, _joined(orders), sizes


def _joined(orders: Sequence[Tensor]) -> Tensor:
    if len(orders) == 1:
        return orders[0]
    return torch.cat([torch.empty(0, dtype=torch.int64), *orders])
