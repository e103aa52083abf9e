"""Data sets as payloads, so that a process gets the rows of its sites and no others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from motet.core import Dataset, Tree
from motet.core.batch import Column
from motet.core.prepared import Prepared


def pack(sets: Sequence[Dataset]) -> Tree:
    """Data sets as one payload, in which a column that several of them share is there once."""
    parts = _Parts()
    packed = [
        {
            "columns": _numbers(parts, one.columns),
            "present": _numbers(parts, one.present),
            "about": _numbers(parts, one.about),
            "rows": parts.number(one.rows),
            "labels": None if one.labels is None else parts.number(one.labels),
            "classes": list(one.classes),
            "cache": parts.cache(one),
        }
        for one in sets
    ]
    return {"parts": parts.values, "sets": packed}


def unpack(tree: Tree) -> list[Dataset]:
    """The data sets again; those that shared columns, or what was made of them, do so again."""
    parts: list[Column] = [
        part if isinstance(part, Tensor) else tuple(part) for part in tree["parts"]
    ]
    caches: dict[int, Prepared] = {}

    def columns(numbers: Iterable[Sequence[Any]]) -> dict[str, Any]:
        return {name: parts[number] for name, number in numbers}

    return [
        Dataset(
            columns=columns(one["columns"]),
            labels=None if one["labels"] is None else parts[one["labels"]],
            rows=parts[one["rows"]],
            present=columns(one["present"]),
            classes=tuple(one["classes"]),
            about=columns(one["about"]),
            cache=caches.setdefault(one["cache"], Prepared()),
        )
        for one in tree["sets"]
    ]


class _Parts:
    """Columns by number, each of them once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._known: dict[int, int] = {}
        self._caches: dict[int, int] = {}

    def number(self, column: Column) -> int:
        if id(column) not in self._known:
            self._known[id(column)] = len(self.values)
            self.values.append(column if isinstance(column, Tensor) else list(column))
        return self._known[id(column)]

    def cache(self, one: Dataset) -> int:
        return self._caches.setdefault(id(one.cache), len(self._caches))


def _numbers(parts: _Parts, columns: Mapping[str, Column]) -> list[list[Any]]:
    # Pairs and not a mapping: a column may have any name, a key of a payload may not be empty.
    return [[name, parts.number(column)] for name, column in columns.items()]
