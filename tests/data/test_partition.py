"""Every scheme gives disjoint, complete, non-empty parts, and the skew that it promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from motet.core import ConfigError, DataError
from motet.data import (
    by_size,
    by_unit,
    dirichlet,
    iid,
    natural,
    pathological,
)
from motet.data.partition import Law

SEEDS = st.integers(0, 2**32)
SITES = st.integers(1, 8)
LAWS: tuple[Law, ...] = ("linear", "square", "exponential")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def check(parts: list[Tensor], n: int, sites: int) -> None:
    """Disjoint, complete, none empty, sorted int64."""
    assert len(parts) == sites
    assert torch.equal(torch.cat(parts).sort()[0], torch.arange(n))
    for part in parts:
        assert part.dtype == torch.int64
        assert len(part)
        assert torch.equal(part, part.sort()[0])


@given(st.integers(8, 200), SITES, SEEDS)
def test_iid_covers_all_rows_in_equal_parts(n: int, sites: int, seed: int) -> None:
    parts = iid(n, sites, rng(seed))
    check(parts, n, sites)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_iid_is_random_and_follows_the_generator_alone() -> None:
    first, again, other = (iid(50, 2, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], torch.arange(25))


@given(st.integers(8, 200), SITES, st.sampled_from(LAWS), SEEDS)
def test_by_size_covers_all_rows(n: int, sites: int, law: Law, seed: int) -> None:
    parts = by_size(n, sites, law, rng(seed))
    check(parts, n, sites)
    sizes = [len(part) for part in parts]
    assert sizes[-1] == max(sizes)


def test_by_size_follows_its_law() -> None:
    assert [len(part) for part in by_size(600, 3, "linear")] == [100, 200, 300]
    assert [len(part) for part in by_size(1400, 3, "square")] == [100, 400, 900]
    sizes = [len(part) for part in by_size(10_000, 3, "exponential")]
    assert sizes == pytest.approx([900.3, 2447.3, 6652.4], abs=1)
    assert [len(part) for part in by_size(100, 2, [3, 1])] == [75, 25]


def test_by_size_without_a_generator_cuts_shards_in_order() -> None:
    assert torch.equal(by_size(10, 2, [1, 1])[1], torch.arange(5, 10))
    assert not torch.equal(by_size(10, 2, [1, 1], rng())[1], torch.arange(5, 10))


def test_by_size_leaves_no_site_empty() -> None:
    assert [len(part) for part in by_size(10, 8, "exponential")] == [1, 1, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("law", [[1, 2], [1, 0, 1], [1, float("nan"), 1], "cubic"])
def test_by_size_refuses_bad_laws(law: Any) -> None:
    with pytest.raises(ConfigError, match="law: "):
        by_size(9, 3, law)


@given(
    st.lists(st.integers(-1, 5), min_size=30, max_size=120),
    st.integers(1, 5),
    st.floats(0.05, 100),
    st.booleans(),
    SEEDS,
)
@settings(deadline=None)
def test_dirichlet_covers_all_rows(
    labels: list[int], sites: int, alpha: float, balanced: bool, seed: int
) -> None:
    try:
        parts = dirichlet(torch.tensor(labels), sites, alpha, 2, rng(seed), balanced=balanced)
    except DataError:
        return
    check(parts, len(labels), sites)
    assert min(len(part) for part in parts) >= 2


def skew(parts: list[Tensor], labels: Tensor) -> float:
    """Mean share of the most frequent label of each site."""
    return float(np.mean([labels[p].bincount().max().item() / len(p) for p in parts]))


def test_dirichlet_is_more_skewed_for_small_alpha() -> None:
    labels = torch.arange(2000) % 10
    by_alpha = [skew(dirichlet(labels, 8, a, 1, rng(3)), labels) for a in (0.1, 1.0, 1000.0)]
    assert by_alpha[0] > 0.4 > by_alpha[1] > 0.15 > by_alpha[2]
    assert by_alpha[2] < 0.13


def test_dirichlet_takes_rows_of_a_class_at_random() -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    part = dirichlet(labels, 2, 1000.0, 1, rng())[0]
    assert not torch.equal(part, torch.arange(len(part)))


def test_balanced_dirichlet_has_the_sizes_of_the_paper_split() -> None:
    labels = torch.arange(50_000) % 100
    plain = [len(part) for part in dirichlet(labels, 10, 0.1, 10, rng(5))]
    even = [len(part) for part in dirichlet(labels, 10, 0.1, 10, rng(5), balanced=True)]
    assert min(even) > 3900
    assert max(even) < 5500
    assert max(plain) - min(plain) > 2 * (max(even) - min(even))
    # A class has 500 rows: a site below its share of 5,000 can go over it by one class at most.
    assert max(even) < 5000 + 500


def test_dirichlet_gives_up_and_says_what_to_change() -> None:
    labels = torch.arange(100) % 2
    with pytest.raises(DataError, match=r"min_rows=9 .*alpha=0.001: raise alpha, lower min_rows"):
        dirichlet(labels, 10, 0.001, 9, rng())
    with pytest.raises(DataError, match="100 rows are too few for 20 sites with min_rows=6"):
        dirichlet(labels, 20, 1.0, 6, rng())
    with pytest.raises(ConfigError, match="alpha=0"):
        dirichlet(labels, 2, 0.0, 1, rng())


class Scripted(np.random.Generator):
    """A generator whose Dirichlet draws are given."""

    def __init__(self, *draws: list[float]) -> None:
        super().__init__(np.random.PCG64(0))
        self.draws = [np.array(draw) for draw in draws]

    def dirichlet(self, *_: object, **__: object) -> Any:
        return self.draws.pop(0)


def test_balanced_dirichlet_shares_out_a_draw_that_goes_to_full_sites_alone() -> None:
    labels = torch.tensor([0] * 6 + [1] * 12)
    draws = Scripted([1.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    parts = dirichlet(labels, 3, 1.0, 1, draws, balanced=True)
    check(parts, 18, 3)
    assert [len(part) for part in parts] == [6, 6, 6]


def test_balanced_dirichlet_gives_no_rounding_row_to_a_full_site() -> None:
    labels = torch.tensor([0] * 1 + [1] * 10)
    draws = Scripted([0.0] * 10 + [1.0], [0.1] * 10 + [0.0])
    parts = dirichlet(labels, 11, 1.0, 1, draws, balanced=True)
    assert [len(part) for part in parts] == [1] * 11


@given(st.integers(2, 6), st.integers(1, 8), st.data())
@settings(deadline=None)
def test_pathological_gives_each_site_its_number_of_classes(
    classes: int, sites: int, data: st.DataObject
) -> None:
    per_site = data.draw(st.integers(-(-classes // sites), classes))
    labels = torch.arange(classes * 10) % classes
    parts = pathological(labels, sites, per_site, rng(data.draw(SEEDS)))
    check(parts, classes * 10, sites)
    owned = [set(labels[part].tolist()) for part in parts]
    assert {len(own) for own in owned} == {per_site}
    uses = [sum(label in own for own in owned) for label in range(classes)]
    assert max(uses) - min(uses) <= 1


def test_pathological_names_what_cannot_be() -> None:
    labels = torch.arange(60) % 6
    with pytest.raises(DataError, match=r"classes_per_site=1: .* from 3 to 6"):
        pathological(labels, 2, 1, rng())
    with pytest.raises(DataError, match=r"classes_per_site=7: .* from 2 to 6"):
        pathological(labels, 3, 7, rng())
    few = torch.tensor([0] * 9 + [1])
    with pytest.raises(DataError, match="class 1 has 1 rows for 2 sites"):
        pathological(few, 2, 2, rng())


def test_natural_makes_one_site_per_id_in_sorted_order() -> None:
    parts = natural(("b", "a", "c", "a"))
    assert [part.tolist() for part in parts] == [[1, 3], [0], [2]]
    assert [part.tolist() for part in natural(torch.tensor([5, 3, 5]))] == [[1], [0, 2]]


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=60), st.data())
def test_natural_groups_whole_ids(ids: list[str], data: st.DataObject) -> None:
    sites = data.draw(st.integers(1, len(set(ids))))
    parts = natural(tuple(ids), sites)
    check(parts, len(ids), sites)
    homes = [{ids[row] for row in part.tolist()} for part in parts]
    assert sum(len(home) for home in homes) == len(set(ids))


def test_natural_evens_out_the_sizes() -> None:
    ids = ("a",) * 5 + ("b",) * 6 + ("c",) * 10
    assert sorted(len(part) for part in natural(ids, 2)) == [10, 11]


def test_natural_says_which_ids_there_are() -> None:
    with pytest.raises(DataError, match=r"sites=3: there are 2 ids \(a, b\)"):
        natural(("a", "b"), 3)


def test_by_unit_keeps_the_rows_of_a_unit_together() -> None:
    units = ("x", "y", "x", "z", "y")
    parts = by_unit(units, [torch.tensor([0, 2]), torch.tensor([1])])
    assert [part.tolist() for part in parts] == [[0, 2, 3], [1, 4]]
    for wrong in ([0], [0, 1, 1], [0, 1, 3]):
        with pytest.raises(ValueError, match="3 units must be at exactly one site"):
            by_unit(units, [torch.tensor(wrong)])


@pytest.mark.parametrize(("n", "sites"), [(3, 4), (0, 1)])
def test_more_sites_than_rows_are_refused(n: int, sites: int) -> None:
    labels = torch.zeros(n, dtype=torch.int64)
    message = f"{n} rows are too few for {sites} sites"
    with pytest.raises(DataError, match=message):
        iid(n, sites, rng())
    with pytest.raises(DataError, match=message):
        by_size(n, sites)
    with pytest.raises(DataError, match=message):
        dirichlet(labels, sites, 1.0, 1, rng())
    with pytest.raises(DataError, match=message):
        pathological(labels, sites, 1, rng())
    with pytest.raises(ConfigError, match="sites=0"):
        iid(3, 0, rng())
