"""What models see: data sets of named modalities, batches of them, and the output of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from motet.core.graph import GRAPH
from motet.core.prepared import Prepared

Column: TypeAlias = Tensor | tuple[str, ...]


def _pick(column: Column, index: Tensor) -> Column:
    if isinstance(column, Tensor):
        return column[index]
    return tuple(column[i] for i in index.tolist())


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows of several modalities, held in memory.

    columns: modality -> values, one per row: images uint8 [n, 3 or 1, H, W], texts a tuple of n
        strings, anything else a tensor [n, ...].
    present: modality -> bool [n]; a row may lack a modality (its value is then a filler).
    labels: int64 [n] or None, -100 for a row without one; ``classes`` holds their names.
    rows: int64 [n], ids that stay with a row through every selection.
    about: further columns that no model sees (style, language, group ...), for partitioners and
        metrics.
    cache: what encoders made of columns, (id of column, encoder's key) -> (column, prepared). Data
        sets that share columns share it, selections take their rows of it, and it goes with the
        last of them. What was not used for longest goes when all data sets hold too much.
    ready: modality -> key of the encoder that has prepared its column.
    """

    columns: Mapping[str, Column]
    labels: Tensor | None = None
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    present: Mapping[str, Tensor] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    about: Mapping[str, Column] = field(default_factory=dict)
    cache: Prepared = field(default_factory=Prepared, repr=False)
    ready: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns differ in length: {lengths}")
        n = next(iter(lengths.values()), len(self.rows))
        if not len(self.rows) and n:
            object.__setattr__(self, "rows", torch.arange(n))
        if not self.present or set(self.present) != set(self.columns):
            full = {name: torch.ones(n, dtype=torch.bool) for name in self.columns}
            object.__setattr__(self, "present", {**full, **self.present})
        others = {"rows": self.rows, "labels": self.labels, **self.present, **self.about}
        for name, column in others.items():
            if column is not None and len(column) != n:
                raise ValueError(f"{name} has {len(column)} entries for {n} rows")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, sorted."""
        return tuple(sorted(self.columns))

    def take(self, index: Tensor | Sequence[int]) -> Dataset:
        """The rows at these positions (int64 [m]), in this order; raises TypeError for a mask."""
        given = torch.as_tensor(index)
        if given.dtype == torch.bool:
            raise TypeError("take wants positions; write mask.nonzero().flatten() for a mask")
        at = given.to(torch.int64)
        columns = {name: _pick(column, at) for name, column in self.columns.items()}
        return replace(
            self,
            columns=columns,
            present={name: mask[at] for name, mask in self.present.items()},
            labels=None if self.labels is None else self.labels[at],
            rows=self.rows[at],
            about={name: _pick(column, at) for name, column in self.about.items()},
            cache=self._picked_cache(columns, at),
        )

    def where(self, column: str, value: str | int) -> Dataset:
        """The rows whose ``about`` column has this value; KeyError for one that is not there."""
        found = self.about[column]
        values = found.tolist() if isinstance(found, Tensor) else found
        return self.take([position for position, item in enumerate(values) if item == value])

    def _picked_cache(self, columns: Mapping[str, Column], at: Tensor) -> Prepared:
        # A frozen trunk must not run again on a subset of rows that it has seen.
        names = {id(column): name for name, column in self.columns.items()}
        picked = Prepared()
        for (number, key), (_, prepared) in list(self.cache.items()):
            if number in names:
                column = columns[names[number]]
                picked[id(column), key] = (column, prepared[at])
        return picked

    def positions(self, rows: Tensor) -> Tensor:
        """Where these row ids (int64 [m], all of them in this data set) stand: int64 [m]."""
        ordered, order = self._sorted_rows
        # Of rows that are a part of a larger tensor, torch would warn.
        whole = rows.clone(memory_format=torch.contiguous_format)
        return order[torch.searchsorted(ordered, whole)]

    @cached_property
    def complete(self) -> bool:
        """Whether no row lacks a modality."""
        return all(bool(mask.all()) for mask in self.present.values())

    @cached_property
    def _sorted_rows(self) -> tuple[Tensor, Tensor]:
        ordered, order = self.rows.sort()
        return ordered, order

    def only(self, modalities: Sequence[str]) -> Dataset:
        """The same rows with these modalities alone; raises KeyError for one that is not there."""
        if self.columns.keys() == set(modalities):
            return self
        return self.with_columns({name: self.columns[name] for name in modalities}, self.ready)

    def with_columns(self, columns: Mapping[str, Column], ready: Mapping[str, str]) -> Dataset:
        """The same rows with other values of some modalities, and without the rest.

        ready: as in the class. Nothing is checked: every column must have all rows.
        """
        new = object.__new__(type(self))
        if columns.keys() == self.columns.keys():
            # Worked out once for this data set and all that are made from it in this way.
            vars(new).update(vars(self), columns=columns, ready=ready, complete=self.complete)
        else:
            present = {name: self.present[name] for name in columns}
            vars(new).update(vars(self), columns=columns, ready=ready, present=present)
            vars(new).pop("complete", None)
        return new

    def batch(self, index: Tensor) -> Batch:
        """The rows at these positions as a batch; every column must be a tensor by now."""
        inputs: dict[str, Tensor] = {}
        for name, column in self.columns.items():
            if not isinstance(column, Tensor):
                raise TypeError(f"modality {name!r} is not a tensor: let a model prepare it first")
            inputs[name] = column.index_select(0, index)
        return Batch(
            inputs=inputs,
            present={name: mask.index_select(0, index) for name, mask in self.present.items()},
            labels=None if self.labels is None else self.labels.index_select(0, index),
            rows=self.rows.index_select(0, index),
        )

    def batches(self, size: int) -> Iterator[Batch]:
        """All rows in order, at most ``size`` at a time: for evaluation and for encoding.

        Nodes of a graph come all at once, for they would lose their links to others.
        """
        most = max(size, len(self)) if GRAPH in self.columns else size
        for index in torch.split(torch.arange(len(self)), most):
            yield self.batch(index)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows of a data set: modality -> tensor, presence masks, labels, row ids."""

    inputs: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    labels: Tensor | None
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, *modalities: str) -> Batch:
        """The same rows with these modalities alone."""
        return replace(
            self,
            inputs={name: self.inputs[name] for name in modalities},
            present={name: self.present[name] for name in modalities},
        )


@dataclass(frozen=True, eq=False)
class Output:
    """What every model returns.

    logits: [n, classes], or None for a model without a head.
    features: modality -> [n, d], unit norm where the model projects to the common sphere.
    aux: whatever else a loss of this model needs.
    """

    logits: Tensor | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    aux: Mapping[str, Tensor] = field(default_factory=dict)
