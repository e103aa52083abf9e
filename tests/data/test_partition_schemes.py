"""Schemes of a recipe: plain values in, rows or whole units of a data set out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from motet.core import ConfigError, DataError, Dataset
from motet.data import parse_partition


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pictures(concepts: int = 40, each: int = 3) -> Dataset:
    """Concepts of 4 groups, ``each`` pictures per concept in different styles, rows mixed."""
    n = concepts * each
    concept = torch.arange(n) % concepts
    data = Dataset(
        columns={"image": torch.zeros(n, 3, 2, 2, dtype=torch.uint8)},
        labels=concept % 4,
        about={
            "concept": tuple(f"c{i:03d}" for i in concept.tolist()),
            "style": tuple(f"s{i}" for i in (torch.arange(n) // concepts).tolist()),
        },
    )
    return data.take(torch.from_numpy(rng(7).permutation(n)))


SCHEMES = [
    "iid",
    {"name": "by_size", "law": "square"},
    {"name": "by_size", "law": [1, 1, 2, 4]},
    {"name": "dirichlet", "alpha": 0.5},
    {"name": "dirichlet", "by": "labels", "balanced": True},
    {"name": "pathological", "classes_per_site": 2},
]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("unit", [None, "concept"])
def test_schemes_cut_rows_or_whole_units(scheme: str | dict[str, Any], unit: str | None) -> None:
    data = pictures()
    given_ = {"name": scheme} if isinstance(scheme, str) else scheme
    spec = parse_partition({**given_, "unit": unit})
    parts = spec.apply(data, 4, rng(1))
    assert torch.equal(torch.cat(parts).sort()[0], torch.arange(len(data)))
    assert min(len(part) for part in parts) > 0
    homes = [set(data.take(part).about["concept"]) for part in parts]
    together = sum(len(home) for home in homes) == 40
    assert together == (unit is not None)


def test_a_unit_has_the_label_of_its_rows() -> None:
    data = pictures()
    spec = parse_partition({"name": "pathological", "unit": "concept", "classes_per_site": 1})
    assert data.labels is not None
    for part in spec.apply(data, 4, rng()):
        assert len(set(data.labels[part].tolist())) == 1


def test_dirichlet_keeps_to_min_rows_and_balance_of_the_recipe() -> None:
    data = pictures(400)
    plain = {"name": "dirichlet", "alpha": 0.3}
    spread = {}
    for extra in ({}, {"min_rows": 150}, {"balanced": True}):
        parts = parse_partition({**plain, **extra}).apply(data, 6, rng(2))
        sizes = [len(part) for part in parts]
        spread[tuple(extra)] = (min(sizes), max(sizes))
    assert spread[()][0] < 100
    assert spread["min_rows",][0] >= 150
    assert spread["balanced",][1] < spread[()][1]


def test_label_skew_may_go_by_another_column() -> None:
    data = pictures()
    spec = parse_partition({"name": "pathological", "by": "style", "classes_per_site": 1})
    parts = spec.apply(data, 3, rng())
    owned = [set(data.take(part).about["style"]) for part in parts]
    assert sorted(map(sorted, owned)) == [["s0"], ["s1"], ["s2"]]


def test_a_scheme_by_style_is_natural() -> None:
    data = pictures()
    parts = parse_partition({"name": "natural", "by": "style"}).apply(data, 3, rng())
    assert [set(data.take(part).about["style"]) for part in parts] == [{"s0"}, {"s1"}, {"s2"}]


def test_a_unit_counts_as_one_row_for_min_rows() -> None:
    spec = parse_partition({"name": "dirichlet", "unit": "concept", "min_rows": 15, "alpha": 10})
    with pytest.raises(DataError, match="with each concept counted as one row, 40 rows"):
        spec.apply(pictures(), 4, rng())


def test_schemes_name_the_columns_that_there_are() -> None:
    data = pictures()
    with pytest.raises(ConfigError, match=r"partition.by: .*'tone'; write one of concept, labels"):
        parse_partition({"name": "dirichlet", "by": "tone"}).apply(data, 2, rng())
    with pytest.raises(ConfigError, match=r"partition.unit: .*'tone'"):
        parse_partition({"name": "iid", "unit": "tone"}).apply(data, 2, rng())
    bare = Dataset(columns={"text": ("a", "b")})
    with pytest.raises(ConfigError, match="'labels'; it has neither labels nor others"):
        parse_partition("dirichlet").apply(bare, 2, rng())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "iid", "alpha": 1}, "data.partition.alpha: there is no such field here"),
        ({"name": "dirichlet", "alpha": -1}, "data.partition.alpha: .* not -1"),
        ({"name": "dirichlat"}, "there is no 'dirichlat'; write one of 'iid', 'by_size'"),
        ({"alpha": 1}, "data.partition: name is missing"),
        ("natural", "data.partition.by: is missing"),
        ({"name": "by_size", "law": "cubic"}, "data.partition.law: .*'square'.* not 'cubic'"),
    ],
)
def test_bad_schemes_name_field_and_value(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_partition(value, "data.partition")


def test_class_groups_give_sites_of_a_kind_the_same_classes() -> None:
    data = pictures(400)
    spec = {"name": "class_groups", "groups": [[0, 1], [2, 1]], "rows": 5}
    parts = parse_partition(spec).apply(data, 6, rng(3))
    assert data.labels is not None
    for site, part in enumerate(parts):
        counts = torch.bincount(data.labels[part], minlength=4).tolist()
        assert counts == ([5, 5, 0, 0] if site % 2 == 0 else [0, 5, 5, 0])
    assert len(torch.cat(parts).unique()) == 60
    again = parse_partition(spec).apply(data, 6, rng(3))
    assert all(torch.equal(part, other) for part, other in zip(parts, again, strict=True))
    assert not torch.equal(parts[0], parse_partition(spec).apply(data, 6, rng(4))[0])


def test_class_groups_of_more_classes_may_have_fewer_rows_of_each() -> None:
    data = pictures(400)
    spec = {"name": "class_groups", "groups": [[0], [0, 1, 2], [0, 1, 2, 3]], "rows": [12, 4, 3]}
    parts = parse_partition(spec).apply(data, 6, rng(3))
    assert data.labels is not None
    counts = [torch.bincount(data.labels[part], minlength=4).tolist() for part in parts]
    assert counts == 2 * [[12, 0, 0, 0], [4, 4, 4, 0], [3, 3, 3, 3]]
    assert len(torch.cat(parts).unique()) == 72
    with pytest.raises(ConfigError, match=r"partition.rows: write one number, or 3, one per group"):
        parse_partition({**spec, "rows": [12, 4]}).apply(data, 6, rng(3))
    with pytest.raises(DataError, match="class 0 has 6 rows, and 3 sites want 19; take fewer"):
        parse_partition(spec).apply(pictures(8), 3, rng(3))
    with pytest.raises(ConfigError, match="rows"):
        parse_partition({**spec, "rows": [12, 0, 3]})


def test_class_groups_without_a_number_of_rows_share_out_all_of_them() -> None:
    data = pictures(40, each=5)
    spec = {"name": "class_groups", "groups": [[0, 1], [2, 3], [1, 2]]}
    parts = parse_partition(spec).apply(data, 3, rng(3))
    assert torch.equal(torch.cat(parts).sort()[0], torch.arange(len(data)))
    assert [len(part) for part in parts] == [75, 75, 50]


def test_class_groups_refuse_what_the_data_do_not_have() -> None:
    data = pictures(8)
    with pytest.raises(DataError, match="class 0 has 6 rows, and 2 sites want 8; take fewer"):
        parse_partition({"name": "class_groups", "groups": [[0]], "rows": 4}).apply(data, 2, rng())
    with pytest.raises(DataError, match="a site would have no row: there are classes 0 to 3"):
        parse_partition({"name": "class_groups", "groups": [[0], [7]]}).apply(data, 2, rng())
    with pytest.raises(ConfigError, match="groups"):
        parse_partition({"name": "class_groups", "groups": []})
