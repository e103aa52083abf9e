"""Rows on their way to the parties of a recipe: chosen, tested on, scrambled, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from motet.core import ConfigError, DataError, Dataset
from motet.core.batch import Column
from motet.experiment.spec import Population


def in_graph(rows: Dataset, parts: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Test and private nodes where they stand: the graph without public nodes, others' labels -100.

    Nodes of no part stay in it too, without a label.
    """
    public = parts["public"].rows if "public" in parts else rows.rows[:0]
    kept = rows.take((~torch.isin(rows.rows, public)).nonzero().flatten())
    if kept.labels is None:
        raise DataError("this graph's nodes have no labels, so that none can be tested on")
    return {
        name: replace(kept, labels=kept.labels.where(torch.isin(kept.rows, parts[name].rows), -100))
        for name in ("test", "private")
    }


def tests_in_graph(site: str, test: Dataset, data: Dataset) -> Dataset:
    """The site's own nodes, labelled where they are test nodes."""
    if data.labels is not None and not bool((data.labels >= 0).any()):
        raise DataError(f"site {site} has no labelled node to train on; raise data.private")
    return test.take(test.positions(data.rows))


def own_tests(test: Dataset, data: Dataset) -> Dataset:
    """As many test rows as there are in the proportions of the site's labels; all without labels.

    The first rows of each class, in the test set's order, so that sites share what they can.
    """
    if test.labels is None or data.labels is None:
        return test
    count = len(data.classes)
    own = torch.bincount(data.labels[data.labels >= 0], minlength=count).double()
    there = torch.bincount(test.labels[test.labels >= 0], minlength=count).double()
    share = own / own.sum()
    held = share > 0
    size = float((there[held] / share[held]).min())
    wanted = torch.where(held, (share * size).round().clamp(min=1), 0.0).minimum(there)
    kept = [
        (test.labels == label).nonzero().flatten()[: int(number)]
        for label, number in enumerate(wanted.tolist())
    ]
    return test.take(torch.cat(kept).sort().values)


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


def where_wanted(rows: Dataset, population: Population) -> Dataset:
    """The rows whose columns have the wanted values."""
    keep = torch.ones(len(rows), dtype=torch.bool)
    for name, wanted in population.where.items():
        column = rows.about.get(name)
        if column is None:
            raise ConfigError(
                f"population {population.name}: where names {name!r}, and the data have "
                f"{sorted(rows.about)}"
            )
        values = {wanted} if isinstance(wanted, str) else set(wanted)
        found = [
            str(item) for item in (column.tolist() if isinstance(column, torch.Tensor) else column)
        ]
        keep &= torch.tensor([item in values for item in found])
    if not bool(keep.any()):
        raise DataError(f"population {population.name}: no private row has {population.where}")
    return rows if bool(keep.all()) else rows.take(keep.nonzero().flatten())


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
