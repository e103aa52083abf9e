"""Splits share no concept, a public set keeps its row ids, subsets are sorted and exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from motet.core import ConfigError, DataError, Dataset
from motet.core.batch import Column
from motet.data import check_public, one_per_unit, split_concepts, subset


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def as_tensor(column: Column | None) -> torch.Tensor:
    assert isinstance(column, torch.Tensor)
    return column


def pictures(concepts: int = 30, styles: int = 4) -> Dataset:
    n = concepts * styles
    at = torch.arange(n)
    return Dataset(
        columns={"image": at.view(n, 1), "text": tuple(f"text {i}" for i in range(n))},
        labels=at // styles % 5,
        rows=at + 1000,
        about={"concept": tuple(f"c{i}" for i in (at // styles).tolist()), "style": at % styles},
    )


def test_split_is_disjoint_by_concept_and_exact_in_size() -> None:
    parts = split_concepts(pictures(), "concept", {"test": 8, "public": 5, "rest": None}, rng())
    concepts = {name: set(part.about["concept"]) for name, part in parts.items()}
    assert list(parts) == ["test", "public", "rest"]
    assert [len(own) for own in concepts.values()] == [8, 5, 17]
    assert len(set.union(*concepts.values())) == 30
    assert [len(part) for part in parts.values()] == [32, 20, 68]


def test_split_keeps_row_ids_order_and_pairing() -> None:
    part = split_concepts(pictures(), "concept", {"public": 5}, rng())["public"]
    assert torch.equal(part.rows, part.rows.sort()[0])
    assert torch.equal(part.rows, as_tensor(part.columns["image"]).flatten() + 1000)
    assert part.columns["text"] == tuple(f"text {i - 1000}" for i in part.rows.tolist())


def test_split_is_drawn_by_the_generator() -> None:
    draws = [
        split_concepts(pictures(), "concept", {"public": 5}, rng(seed))["public"].rows.tolist()
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_split_by_labels() -> None:
    parts = split_concepts(pictures(), "labels", {"a": 2, "b": 3}, rng())
    assert len(set(as_tensor(parts["a"].labels).tolist())) == 2
    assert len(set(as_tensor(parts["b"].labels).tolist())) == 3


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ({"test": 20, "public": 11}, DataError, "test=20, public=11 ask for 31 .* data have 30"),
        ({"test": 30, "rest": None}, DataError, "leave some for rest, the data have 30"),
        ({"a": None, "b": None}, ConfigError, "only one part .* a and b"),
        ({"test": 0}, ConfigError, "test=0: write at least 1"),
    ],
)
def test_split_says_what_cannot_be(
    sizes: dict[str, int | None], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        split_concepts(pictures(), "concept", sizes, rng())


def test_split_names_an_unknown_column() -> None:
    with pytest.raises(ConfigError, match="no column 'idea'; write one of concept, labels, style"):
        split_concepts(pictures(), "idea", {"a": 1}, rng())


def test_one_per_unit_draws_a_random_row_of_each_concept() -> None:
    data = pictures()
    one = one_per_unit(data, "concept", rng())
    assert one.about["concept"] == tuple(f"c{i}" for i in range(30))
    assert len(set(as_tensor(one.about["style"]).tolist())) == 4
    again, other = (one_per_unit(data, "concept", rng(seed)).rows for seed in (0, 1))
    assert torch.equal(one.rows, again)
    assert not torch.equal(one.rows, other)
    styles = [int(one_per_unit(data, "concept", rng(seed)).about["style"][0]) for seed in range(80)]
    assert min(np.bincount(styles, minlength=4)) > 8


@pytest.mark.parametrize("n", [0, 1])
def test_a_public_set_needs_two_rows(n: int) -> None:
    with pytest.raises(DataError, match=f"at least 2 rows, this one has {n}"):
        check_public(pictures().take(range(n)))


def test_a_public_set_needs_distinct_rows() -> None:
    data = pictures()
    assert check_public(data) is data
    with pytest.raises(DataError, match="same row twice"):
        check_public(data.take([0, 1, 0]))


def test_subset_is_sorted_distinct_and_random() -> None:
    data = pictures()
    at = subset(data, 20, rng(4))
    assert at.dtype == torch.int64
    assert torch.equal(at, torch.unique(at))
    assert len(at) == 20
    assert not torch.equal(at, subset(data, 20, rng(5)))
    assert torch.equal(subset(data, len(data), rng()), torch.arange(len(data)))


def test_subset_names_both_numbers() -> None:
    with pytest.raises(DataError, match="121 rows were asked for, the public set has 120"):
        subset(pictures(), 121, rng())
    with pytest.raises(ConfigError, match="at least 2 rows, not 1"):
        subset(pictures(), 1, rng())
