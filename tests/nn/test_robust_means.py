"""Rules that weigh or shorten whole updates: worked numbers, equivariances, dishonest updates."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from motet.core import ConfigError
from motet.nn.robust_means import (
    finite_norms,
    first_bound,
    fltrust,
    foolsgold,
    foolsgold_weights,
    geometric_median,
    next_bound,
    norm_bound_mean,
    norm_bounded,
    trust_scores,
)

EXAMPLE = torch.tensor([[0.0], [0.1], [0.2], [0.3], [10.0]])
BAD = [1e6, -1e6, float("nan"), float("inf"), float("-inf")]


def updates(n: int = 8, d: int = 5) -> Tensor:
    return torch.randn((n, d), generator=torch.Generator().manual_seed(2), dtype=torch.float64)


ROOT = updates(1)[0] + 0.3
RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "geometric": geometric_median,
    "norm-bound": lambda x: norm_bound_mean(x, 1e9 if float(x.abs().max()) < 1e3 else 2.0),
    "fltrust": lambda x: fltrust(x, ROOT),
    "foolsgold": lambda x: foolsgold(x, x),
}


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    return RULES[request.param]


def test_the_order_of_the_sites_does_not_matter(rule: Callable[[Tensor], Tensor]) -> None:
    x = updates(7)
    for seed in range(4):
        order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(rule(x[order]), rule(x))


def test_equal_updates_give_that_update() -> None:
    one = updates(1)
    for name in ("geometric", "norm-bound", "foolsgold"):
        torch.testing.assert_close(RULES[name](one.expand(7, -1)), one[0])
    torch.testing.assert_close(fltrust(one.expand(7, -1), one[0]), one[0])


@pytest.mark.parametrize("bad", BAD)
def test_dishonest_updates_leave_it_finite_and_small(
    rule: Callable[[Tensor], Tensor], bad: float
) -> None:
    honest = updates(6)
    found = rule(torch.cat([torch.full((2, 5), bad, dtype=torch.float64), honest]))
    assert bool(found.isfinite().all())
    assert float(found.norm()) < float(honest.norm(dim=1).max())


@pytest.mark.parametrize("bad", BAD)
def test_the_geometric_median_stays_among_the_honest(bad: float) -> None:
    honest = updates(6)
    found = geometric_median(torch.cat([torch.full((2, 5), bad, dtype=torch.float64), honest]))
    assert bool((found >= honest.min(dim=0).values).all())
    assert bool((found <= honest.max(dim=0).values).all())


def test_the_geometric_median_of_the_example() -> None:
    assert geometric_median(EXAMPLE).item() == pytest.approx(0.2, abs=1e-3)
    first = geometric_median(EXAMPLE, iterations=1).item()
    pull = [1 / abs(2.12 - value) for value in (0, 0.1, 0.2, 0.3, 10)]
    wanted = sum(a * b for a, b in zip(pull, (0, 0.1, 0.2, 0.3, 10), strict=True)) / sum(pull)
    assert first == pytest.approx(wanted)


def test_the_geometric_median_shifts_scales_and_weighs() -> None:
    x, shift = updates(), torch.arange(5.0, dtype=torch.float64)
    torch.testing.assert_close(geometric_median(3 * x + shift), 3 * geometric_median(x) + shift)
    weights = torch.tensor([3.0, 1, 1, 1, 1, 1, 1, 1])
    torch.testing.assert_close(
        geometric_median(x, weights), geometric_median(torch.cat([x[:1], x[:1], x]))
    )
    # Who has more than half of the weight has it all.
    heavy = torch.tensor([9.0, 1, 1, 1, 1, 1, 1, 1])
    torch.testing.assert_close(geometric_median(x, heavy, iterations=500), x[0], atol=1e-4, rtol=0)


def test_no_point_is_nearer_to_all_than_the_geometric_median() -> None:
    x = updates(9, 3)
    found = geometric_median(x, iterations=500)
    least = float((x - found).norm(dim=1).sum())
    for seed in range(20):
        step = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert float((x - found - 1e-3 * step).norm(dim=1).sum()) >= least


def test_long_updates_are_shortened_and_short_ones_stay() -> None:
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    wanted = torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(norm_bounded(x, 1.0), wanted)
    torch.testing.assert_close(norm_bound_mean(x, 1.0), torch.tensor([0.3, 0.4]))


def test_noise_on_the_mean_has_its_standard_deviation_and_its_own_generator() -> None:
    x = torch.zeros(3, 20_000)
    found = norm_bound_mean(x, 1.0, std=0.5, rng=torch.Generator().manual_seed(1))
    assert float(found.std()) == pytest.approx(0.5, rel=0.02)
    again = norm_bound_mean(x, 1.0, std=0.5, rng=torch.Generator().manual_seed(1))
    assert torch.equal(found, again)


def test_the_running_bound() -> None:
    norms = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert first_bound(norms, 0.5) == 3
    assert first_bound(norms, 0.7) == 3
    assert first_bound(torch.tensor([0.0, 0.0, 0.0, 7.0]), 0.5) == 7
    assert next_bound(3.0, norms, 0.5) == pytest.approx(3 * math.exp(-0.2 * (0.6 - 0.5)))
    assert next_bound(0.5, norms, 0.8, rate=1.0) == pytest.approx(0.5 * math.exp(0.8))
    # However long, an update counts as one that is too long.
    huge = torch.tensor([1.0, 2.0, 3.0, 4.0, 1e30])
    assert next_bound(3.0, huge, 0.5) == next_bound(3.0, norms, 0.5)
    assert next_bound(3.0, norms[:0], 0.5) == 3
    assert finite_norms(torch.tensor([[3.0, 4.0], [math.nan, 1.0]])).tolist() == [5]


def test_the_running_bound_comes_to_the_quantile() -> None:
    norms = torch.arange(1.0, 101.0)
    bound = 500.0
    for _ in range(300):
        bound = next_bound(bound, norms, 0.8)
    assert bound == pytest.approx(80, abs=1.5)


def test_fltrust_by_hand() -> None:
    root = torch.tensor([2.0, 0.0])
    # Cosines 1, 0.6, -1 and 0 for the one of no length.
    x = torch.tensor([[10.0, 0.0], [3.0, 4.0], [-5.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(trust_scores(x, root), torch.tensor([1, 0.6, 0, 0]).double())
    # All as long as the root: 1 * (2, 0) + 0.6 * (1.2, 1.6), over 1.6.
    torch.testing.assert_close(fltrust(x, root), torch.tensor([2.72 / 1.6, 0.96 / 1.6]))


def test_fltrust_that_trusts_nobody_stands_still() -> None:
    x = updates(4)
    assert torch.equal(fltrust(x, torch.zeros(5)), torch.zeros(5, dtype=torch.float64))
    root = torch.ones(5)
    assert torch.equal(fltrust(-root.expand(4, -1), root), torch.zeros(5))


def test_fltrust_does_not_care_how_long_updates_are() -> None:
    x = updates(5)
    torch.testing.assert_close(fltrust(x * 7, ROOT), fltrust(x, ROOT))
    torch.testing.assert_close(fltrust(x, 3 * ROOT), 3 * fltrust(x, ROOT))


def published(history: np.ndarray) -> np.ndarray:
    """FoolsGold's weights, step by step with loops."""
    count = len(history)
    unit = history / np.linalg.norm(history, axis=1, keepdims=True)
    similar = unit @ unit.T - np.eye(count)
    most = similar.max(axis=1)
    for i in range(count):
        for j in range(count):
            if i != j and most[i] < most[j]:
                similar[i, j] *= most[i] / most[j]
    weights = np.clip(1 - similar.max(axis=1), 0, 1)
    weights = weights / weights.max()
    weights[weights == 1] = 0.99
    with np.errstate(divide="ignore"):
        return np.clip(np.log(weights / (1 - weights)) + 0.5, 0, 1)


def test_foolsgold_is_what_its_definition_says() -> None:
    x = updates(9, 4)
    wanted = published(x.numpy())
    assert wanted.min() > 0 or len(set(wanted.tolist())) > 2
    np.testing.assert_allclose(foolsgold_weights(x).numpy(), wanted, atol=1e-9)
    torch.testing.assert_close(foolsgold_weights(5 * x), foolsgold_weights(x))


def test_doubles_are_told_from_honest_sites_by_their_history() -> None:
    honest = updates(5, 200)
    sybil = updates(6, 200)[5:]
    history = torch.cat([honest, sybil, sybil, 2 * sybil])
    weights = foolsgold_weights(history)
    assert weights[5:].tolist() == [0, 0, 0]
    assert float(weights[:5].min()) > 0.9
    # What is weighed is this round's update.
    now = torch.cat([torch.ones(5, 3), torch.full((3, 3), 9.0)])
    torch.testing.assert_close(foolsgold(now, history), torch.ones(3))


def test_a_site_alone_is_taken_as_it_is() -> None:
    assert foolsgold(EXAMPLE[:1] + 1, EXAMPLE[:1] + 1).item() == 1
    assert foolsgold_weights(torch.ones(4, 2)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: geometric_median(updates(0)), "finite update"),
        (lambda: geometric_median(updates(2) * math.nan), "finite update"),
        (lambda: geometric_median(updates(2), torch.tensor([1.0, -1.0])), "positive weight"),
        (lambda: norm_bounded(updates(2), 0), "norm of 0"),
        (lambda: norm_bound_mean(updates(0), 1), "at least 1"),
        (lambda: first_bound(torch.zeros(3), 0.5), "no bound"),
        (lambda: fltrust(updates(3), torch.ones(4)), r"\(5\), not \(4,\)"),
        (lambda: fltrust(updates(3), torch.full((5,), math.nan)), "must be finite"),
        (lambda: foolsgold(updates(2) * math.nan, updates(2)), "at least 1 finite"),
    ],
)
def test_what_cannot_be_put_together_is_refused(call: Callable[[], object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        call()
