"""What is done to rows on their way to the parties: joined, or robbed of their meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from motet.core import Dataset
from motet.core.batch import Column


def scramble(data: Dataset, rng: torch.Generator) -> Dataset:
    """The same rows without meaning: labels and every modality but the first are permuted."""
    columns: dict[str, Column] = dict(data.columns)
    present = dict(data.present)
    for name in data.modalities[1:]:
        order = torch.randperm(len(data), generator=rng)
        mixed = data.only([name]).take(order)
        columns[name], present[name] = mixed.columns[name], mixed.present[name]
    labels = data.labels
    if labels is not None:
        labels = labels[torch.randperm(len(data), generator=rng)]
    return replace(data, columns=columns, present=present, labels=labels)


def join(parts: Sequence[Dataset]) -> Dataset:
    """The rows of several data sets of the same columns, one after the other."""
    first = parts[0]

    def along(columns: Sequence[Column]) -> Column:
        tensors = [column for column in columns if isinstance(column, torch.Tensor)]
        if tensors:
            return torch.cat(tensors)
        return tuple(item for column in columns for item in column)

    labels = [part.labels for part in parts if part.labels is not None]
    return Dataset(
        columns={k: along([part.columns[k] for part in parts]) for k in first.columns},
        present={k: torch.cat([part.present[k] for part in parts]) for k in first.present},
        labels=torch.cat(labels) if len(labels) == len(parts) else None,
        rows=torch.cat([part.rows for part in parts]),
        classes=first.classes,
        about={k: along([part.about[k] for part in parts]) for k in first.about},
    )
