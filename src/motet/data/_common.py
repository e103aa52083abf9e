"""What several files of this package share: named columns, ids as numbers, readable complaints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from motet.core.batch import Column, Dataset
from motet.core.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_PLAIN = {
    "extra_forbidden": "there is no such field here",
    "missing": "is missing",
    "union_tag_not_found": "name is missing",
}


def column_of(dataset: Dataset, key: str, where: str) -> Column:
    """The column of labels ("labels") or of ``about``; ConfigError lists what there is."""
    if key in dataset.about:
        return dataset.about[key]
    if key == "labels" and dataset.labels is not None:
        return dataset.labels
    there = sorted([*dataset.about, *(["labels"] if dataset.labels is not None else [])])
    hint = f"write one of {', '.join(there)}" if there else "it has neither labels nor others"
    raise ConfigError(f"{where}: the data set has no column {key!r}; {hint}")


def codes_of(column: Column) -> tuple[Tensor, tuple[str, ...]]:
    """Numbers its distinct values from 0, in sorted order: int64 [n], and their names."""
    values = column.numpy() if isinstance(column, Tensor) else np.asarray(column, dtype=np.str_)
    if values.ndim != 1:
        raise ConfigError(f"a column of ids needs one value per row, not the shape {values.shape}")
    names, codes = np.unique(values, return_inverse=True)
    return torch.from_numpy(codes.astype(np.int64)), tuple(str(name) for name in names)


def first_rows(codes: Tensor, count: int) -> Tensor:
    """Position of the first row of each code: int64 [count]."""
    first = torch.full((count,), len(codes), dtype=torch.int64)
    return first.scatter_reduce(0, codes, torch.arange(len(codes)), reduce="amin")


def parsed(kind: Any, value: object, where: str) -> Any:
    """The value as this pydantic type; ConfigError names the field and the value given."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        tag = value.get("name") if isinstance(value, dict) else value
        lines = []
        for item in error.errors(include_url=False):
            # Pydantic's paths hold the alternatives of a union, which nobody has written.
            parts = [str(part) for part in item["loc"]]
            steps = parts[1:] if parts[:1] == [tag] else parts
            field = ".".join([where, *(step for step in steps if "[" not in step)])
            lines.append(f"{field}: {_complaint(item)}")
        raise ConfigError("; ".join(lines)) from None


def _complaint(item: ErrorDetails) -> str:
    kind = item["type"]
    if kind == "union_tag_invalid":
        return "there is no {tag!r}; write one of {expected_tags}".format(**item["ctx"])
    if kind in _PLAIN:
        return _PLAIN[kind]
    return f"{item['msg']}, not {item['input']!r}"
