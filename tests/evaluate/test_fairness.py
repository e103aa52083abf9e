"""Fairness figures held against the textbook and against scipy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr

from motet.evaluate.fairness import correlation, jain, worst

ACCURACIES = st.lists(
    st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=3, max_size=12
).filter(lambda pairs: all(len(set(column)) > 1 for column in zip(*pairs, strict=True)))


@given(ACCURACIES)
def test_the_correlation_is_pearsons(pairs: list[tuple[int, int]]) -> None:
    alone, together = ([value / 5 for value in column] for column in zip(*pairs, strict=True))
    wanted = 100 * pearsonr(alone, together).statistic
    assert correlation(alone, together) == pytest.approx(wanted, abs=1e-6)
    assert -100 <= correlation(alone, together) <= 100


def test_a_hand_worked_correlation() -> None:
    # Off the means: (-1, 0, 1) and (-1, 2, -1) have product 0; (-1, 0, 1) and (-4, 2, 2) have 6.
    assert correlation([1, 2, 3], [1, 4, 1]) == pytest.approx(0)
    assert correlation([1, 2, 3], [1, 7, 7]) == pytest.approx(100 * 6 / (2 * 24) ** 0.5)
    assert correlation([10, 20, 30], [70, 75, 80]) == pytest.approx(100)
    assert correlation([10, 20, 30], [80, 75, 70]) == pytest.approx(-100)


@pytest.mark.parametrize(
    ("alone", "together"),
    [
        ([10, 20, 30], [91.4, 91.4, 91.4]),
        ([0.1, 0.1, 0.1], [1, 2, 3]),
        ([0, 0], [1, 2]),
        ([0, 0], [0, 0]),
        ([5], [6]),
        ([], []),
    ],
)
def test_an_undefined_correlation_is_0(alone: list[float], together: list[float]) -> None:
    assert correlation(alone, together) == 0


def test_other_sites_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        correlation([1, 2], [1, 2, 3])


def test_jains_index() -> None:
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([0, 0, 0, 8]) == pytest.approx(0.25)
    # 36 / (3 * 14)
    assert jain([1, 2, 3]) == pytest.approx(6 / 7)
    assert jain([0, 0]) == jain([]) == 1


def test_the_worst_served() -> None:
    assert worst([3, 1, 2]) == 1
    assert worst([]) == 0
