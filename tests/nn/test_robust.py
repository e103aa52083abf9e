"""Robust rules: the worked example, equivariances, and what dishonest updates can do."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from motet.core import ConfigError
from motet.nn.robust import (
    bulyan,
    elected,
    flat,
    iterative_krum,
    iterative_multi_krum,
    krum,
    krum_scores,
    median,
    multi_krum,
    ranks_of,
    trimmed_mean,
    unflat,
)

RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "trimmed": partial(trimmed_mean, trim=2),
    "median": median,
    "krum": partial(krum, byzantine=2),
    "multi-krum": partial(multi_krum, byzantine=2, chosen=3),
    "iterative": partial(iterative_multi_krum, byzantine=2),
    "iterative-itself": partial(iterative_multi_krum, byzantine=2, counts_itself=True),
    "bulyan": partial(bulyan, byzantine=1),
}
EXAMPLE = torch.tensor([[0.0], [0.1], [0.2], [0.3], [10.0]])


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    return RULES[request.param]


def updates(n: int = 8, d: int = 5) -> Tensor:
    return torch.randn((n, d), generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_the_worked_example() -> None:
    scores = krum_scores(EXAMPLE, 1)
    torch.testing.assert_close(scores[:4].float(), torch.tensor([0.05, 0.02, 0.02, 0.05]))
    assert scores[4] > 100
    assert krum(EXAMPLE, 1).item() == pytest.approx(0.1)
    assert multi_krum(EXAMPLE, 1, 2).item() == pytest.approx(0.15)
    assert median(EXAMPLE).item() == pytest.approx(0.2)
    assert trimmed_mean(EXAMPLE, 1).item() == pytest.approx(0.2)


def test_equal_krum_scores_go_to_the_first() -> None:
    # Whole numbers, so that the two middle ones tie to the last bit.
    assert krum(10 * EXAMPLE.round(decimals=1), 1).item() == pytest.approx(1.0)


def test_krum_is_what_its_definition_says() -> None:
    x = updates(9, 4)
    for byzantine in (0, 1, 2, 3):
        for i in range(9):
            others = sorted(float((x[i] - x[j]).square().sum()) for j in range(9) if j != i)
            expected = sum(others[: 9 - byzantine - 2])
            assert float(krum_scores(x, byzantine)[i]) == pytest.approx(expected)


def test_the_median_of_an_even_number_is_between_the_middle_ones() -> None:
    assert median(torch.tensor([[1.0], [9.0], [2.0], [4.0]])).item() == 3


def test_trimming_nothing_is_the_mean() -> None:
    torch.testing.assert_close(trimmed_mean(updates(), 0), updates().mean(dim=0))


def test_the_order_of_the_sites_does_not_matter(rule: Callable[[Tensor], Tensor]) -> None:
    x = updates(7)
    for order in itertools.islice(itertools.permutations(range(7)), 0, None, 500):
        torch.testing.assert_close(rule(x[list(order)]), rule(x))


def test_shift_and_scale_go_through(rule: Callable[[Tensor], Tensor]) -> None:
    x = updates()
    shift = torch.arange(5.0, dtype=torch.float64)
    torch.testing.assert_close(rule(3 * x + shift), 3 * rule(x) + shift)


def test_equal_updates_give_that_update(rule: Callable[[Tensor], Tensor]) -> None:
    one = updates(1)
    torch.testing.assert_close(rule(one.expand(7, -1)), one[0])


@pytest.mark.parametrize("bad", [1e6, -1e6, float("nan"), float("inf"), float("-inf")])
def test_dishonest_updates_cannot_leave_the_honest_range(
    rule: Callable[[Tensor], Tensor], bad: float
) -> None:
    honest = updates(6)
    liars = 1 if rule is RULES["bulyan"] else 2
    found = rule(torch.cat([torch.full((liars, 5), bad, dtype=torch.float64), honest]))
    assert bool((found >= honest.min(dim=0).values).all())
    assert bool((found <= honest.max(dim=0).values).all())


def test_large_common_parts_do_not_hide_who_is_near_whom() -> None:
    near = torch.tensor([[0.0], [0.1], [0.2], [0.3], [1.0]]) + 1000
    assert krum(near, 1).item() == pytest.approx(1000.1, abs=1e-3)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: trimmed_mean(updates(4), 2), "at least 5 updates, and there are 4"),
        (lambda: trimmed_mean(updates(4), -1), "updates"),
        (lambda: median(updates(0)), "at least 1"),
        (lambda: krum(updates(6), 2), "at least 7 updates, and there are 6"),
        (lambda: multi_krum(updates(7), 2, 8), "8 of 7"),
        (lambda: iterative_multi_krum(updates(6), 2), "at least 7 updates, and there are 6"),
        (lambda: bulyan(updates(10), 2), "Bulyan .* at least 11 updates, and there are 10"),
    ],
)
def test_too_few_updates_are_refused(call: Callable[[], Tensor], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        call()


def test_iterative_krum_scores_what_is_left_anew() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [6.0], [10.0], [15.0], [90.0]])
    assert [round(score) for score in krum_scores(x, 1).tolist()[:6]] == [
        146,
        111,
        71,
        86,
        171,
        446,
    ]
    # Without 3, of three neighbours: 0 has 137, 1 has 107, 6 has 16 + 25 + 36.
    # Without 6 too, of two: 0 has 101, 1 has 1 + 81, 10 has 25 + 81.
    assert iterative_krum(x, 1) == [2, 3, 1]
    assert iterative_multi_krum(x, 1).item() == pytest.approx(10 / 3)
    # With itself among its neighbours, the nearest 3, 2 and 1 others count: 1 has 1 + 25 after 3.
    # Then 6 and 10 are each other's nearest, and 10 is nearer to all that are left.
    assert iterative_krum(x, 1, counts_itself=True) == [2, 1, 4]


@pytest.mark.parametrize("itself", [False, True])
def test_iterative_krum_is_what_its_definition_says(itself: bool) -> None:
    differ = 0
    for seed in range(5):
        x = torch.randn((11, 3), generator=torch.Generator().manual_seed(seed))
        left, wanted = list(range(11)), []
        while len(left) > 6:
            keep = len(left) - 4 - itself
            best = min(
                left,
                key=lambda i: sum(
                    sorted(float((x[i] - x[j]).double().square().sum()) for j in left if j != i)[
                        :keep
                    ]
                ),
            )
            left.remove(best)
            wanted.append(best)
        assert iterative_krum(x, 2, counts_itself=itself) == wanted
        once = krum_scores(x, 2).argsort(stable=True)[:5].tolist()
        differ += set(once) != set(wanted)
    assert differ


@pytest.mark.parametrize(("count", "byzantine"), [(11, 2), (7, 1), (8, 1)])
def test_bulyan_is_what_its_definition_says(count: int, byzantine: int) -> None:
    x = updates(count, 6)
    left, chosen = list(range(count)), []
    for _ in range(count - 2 * byzantine):
        keep = max(len(left) - byzantine - 2, 1)
        scores = []
        for i in left:
            near = sorted(float((x[i] - x[j]).square().sum()) for j in left if j != i)
            scores.append((round(sum(near[:keep]), 9), sum(near)))
        chosen.append(left.pop(scores.index(min(scores))))
    picked = x[chosen]
    kept = count - 4 * byzantine
    for column, value in zip(picked.T, bulyan(x, byzantine), strict=True):
        ordered = sorted(column.tolist())
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        nearest = sorted(ordered, key=lambda item: abs(item - middle))[:kept]
        assert float(value) == pytest.approx(sum(nearest) / kept)


def test_bulyan_without_dishonest_sites_is_the_mean() -> None:
    torch.testing.assert_close(bulyan(updates(3), 0), updates(3).mean(dim=0))


def test_ranks_are_the_argsort_of_the_argsort() -> None:
    scores = updates(1, 30)[0]
    ranks = ranks_of(scores.argsort(), 30)
    assert torch.equal(ranks, scores.argsort().argsort())
    assert all(
        int((scores < score).sum()) == rank for score, rank in zip(scores, ranks, strict=True)
    )


def test_things_that_are_not_named_have_a_low_rank() -> None:
    order = torch.tensor([4, 0])
    assert ranks_of(order, 6).tolist() == [5, 0, 0, 0, 4, 0]
    assert ranks_of(order, 6, "mean").tolist() == [5, 1, 1, 1, 4, 1]
    assert ranks_of(torch.arange(6), 6, "mean").tolist() == list(range(6))


def test_votes_add_up_and_ties_go_by_number() -> None:
    ballots = [torch.tensor([2, 0, 1, 3]), torch.tensor([1, 3, 0, 2])]
    # Ranks 1 2 0 3 and 2 0 3 1: sums 3 2 3 4.
    assert elected([ranks_of(ballot, 4) for ballot in ballots]).tolist() == [1, 0, 2, 3]


def test_numbers_in_a_row_and_back() -> None:
    tree = {"a": torch.ones(2, 2), "b": {"c": torch.tensor([3.0]), "n": torch.tensor(7)}}
    row = flat(tree)
    assert row.tolist() == [1, 1, 1, 1, 3]
    back = unflat(row * 2, tree)
    assert torch.equal(back["a"], torch.full((2, 2), 2.0))
    assert (back["b"]["c"].tolist(), int(back["b"]["n"])) == ([6.0], 7)
    assert not len(flat({"n": torch.tensor(7)}))
