import math

import pytest
import torch
from torch import Tensor

from motet.core.errors import ConfigError
from motet.core.rng import generator
from motet.nn.private import (
    clipped,
    next_bound,
    private_mean,
    private_rows,
    private_sum,
    randomised,
    unbiased_counts,
    update_noise,
)


def updates(count: int = 4, n: int = 1000) -> Tensor:
    return torch.randn((count, n), generator=generator(2, "updates"))


def test_clipping_shortens_a_whole_update_and_leaves_a_short_one() -> None:
    given = updates(2)
    given[1] /= 1000
    short = clipped(given, 1.0)
    assert float(short[0].norm()) == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(short[0] * given[0].norm(), given[0])
    assert torch.equal(short[1], given[1])


def test_no_update_and_a_damaged_one_are_nothing() -> None:
    given = torch.zeros(3, 5)
    given[1, 2] = math.inf
    given[2, 2] = math.nan
    assert torch.equal(clipped(given, 1.0), torch.zeros(3, 5))


def test_without_noise_it_is_the_plain_mean_of_clipped_updates() -> None:
    found = private_mean(updates(), 1.0, 0.0, 4, generator(0))
    torch.testing.assert_close(found, clipped(updates(), 1.0).mean(dim=0))


def test_the_divisor_is_the_cohort_however_many_answered() -> None:
    few = private_mean(updates()[:2], 1.0, 0.0, 4, generator(0))
    torch.testing.assert_close(few, clipped(updates(), 1.0)[:2].sum(dim=0) / 4)


def test_one_update_moves_the_sum_by_the_bound_at_most() -> None:
    given = updates()
    without = private_mean(given[:3], 1.0, 0.0, 1, generator(0))
    given[3] *= 1e6
    gap = private_mean(given, 1.0, 0.0, 1, generator(0)) - without
    assert float(gap.norm()) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("n", [100, 10_000])
def test_noise_per_value_is_z_c_over_the_cohort_however_many_values_there_are(n: int) -> None:
    given = updates(2, n)
    still = private_mean(given, 2.0, 0.0, 8, generator(0))
    runs = range(100_000 // n)
    noise = [private_mean(given, 2.0, 0.5, 8, generator(seed)) - still for seed in runs]
    # Once on the sum, not once per site, and divided by the 8 that were asked, not the 2 there.
    assert float(torch.cat(noise).std()) == pytest.approx(0.5 * 2.0 / 8, rel=0.03)
    assert float(noise[0].norm()) == pytest.approx(0.125 * math.sqrt(n), rel=0.2)


def test_without_noise_and_clip_it_is_the_plain_mean() -> None:
    found = private_mean(updates(), math.inf, 0.0, 4, generator(0))
    torch.testing.assert_close(found, updates().mean(dim=0))


def test_a_sum_has_the_noise_of_its_clip_over_200_repeats() -> None:
    given = updates(3, 50)
    still = clipped(given, 2.0).sum(dim=0)
    noise = [private_sum(given, 2.0, 1.5, generator(seed)) - still for seed in range(200)]
    assert float(torch.stack(noise).std()) == pytest.approx(1.5 * 2.0, rel=0.1)


def test_nobody_at_all_is_noise_alone() -> None:
    found = private_sum(torch.zeros(0, 10_000), 2.0, 1.5, generator(0))
    assert float(found.std()) == pytest.approx(3.0, rel=0.05)


def test_rows_are_clipped_and_noised_one_by_one() -> None:
    given = updates(300, 40).view(300, 4, 10)
    given[0] /= 1e6
    still = private_rows(given, 2.0, 0.0, generator(0))
    assert still.shape == given.shape
    torch.testing.assert_close(still.flatten(1), clipped(given.flatten(1), 2.0))
    noise = private_rows(given, 2.0, 0.5, generator(0)) - still
    assert float(noise.std()) == pytest.approx(1.0, rel=0.03)
    assert float(noise[0].std()) == pytest.approx(1.0, rel=0.4)


def test_halves_are_noised_wider_than_their_own_grid() -> None:
    given = torch.full((1, 1000), 1000.0, dtype=torch.float16)
    found = private_rows(given, 1e6, 1e-6, generator(0))
    assert found.dtype == torch.float16
    # Values near 1000 are half apart: noise of deviation 1 still moves them both ways.
    assert 0.7 < float((found - given).float().std()) < 1.3


def test_noise_split_between_updates_and_counts_costs_the_whole() -> None:
    found = update_noise(1.2, 2.0)
    assert found > 1.2
    assert found**-2 + (2 * 2.0) ** -2 == pytest.approx(1.2**-2)
    assert update_noise(0.0, 0.0) == 0
    with pytest.raises(ConfigError, match="write more than 0.6"):
        update_noise(1.2, 0.6)


def test_the_bound_goes_down_when_too_many_are_within_and_up_when_too_few() -> None:
    def step(within: list[bool], bits: float = 0.0, seed: int = 0) -> float:
        marks = torch.tensor(within, dtype=torch.bool)
        return next_bound(2.0, marks, 4, quantile=0.5, rate=0.2, bits=bits, rng=generator(seed))

    assert step([True] * 4) == pytest.approx(2.0 * math.exp(-0.1))
    assert step([False] * 4) == pytest.approx(2.0 * math.exp(0.1))
    assert step([True, False, True, False]) == pytest.approx(2.0)
    # Those who did not answer pull neither way.
    assert step([True, False]) == step([]) == pytest.approx(2.0)
    drawn = [math.log(step([], 2.0, seed) / 2.0) for seed in range(300)]
    assert float(torch.tensor(drawn).std()) == pytest.approx(0.2 * 2.0 / 4, rel=0.15)


def test_the_bound_finds_the_quantile() -> None:
    norms = torch.linspace(1, 9, 101)
    bound = 0.1
    for _ in range(400):
        within = norms <= bound
        bound = next_bound(bound, within, 101, quantile=0.75, rate=0.2, bits=0.0, rng=generator(0))
    assert bound == pytest.approx(7.0, abs=0.2)


@pytest.mark.parametrize(("choices", "epsilon"), [(2, 1.0), (5, 0.3), (10, 3.0)])
def test_randomised_votes_tell_two_of_them_apart_by_epsilon(choices: int, epsilon: float) -> None:
    same = torch.ones(200_000, dtype=torch.int64)
    found = randomised(same, choices, epsilon, generator(3))
    shares = torch.bincount(found, minlength=choices) / len(same)
    other = (1 - shares[1]) / (choices - 1)
    assert math.log(float(shares[1] / other)) == pytest.approx(epsilon, abs=0.03)
    assert float(shares[0]) == pytest.approx(float(other), rel=0.06)


def test_counts_of_randomised_votes_are_set_right_on_average() -> None:
    votes = torch.tensor([0] * 60_000 + [2] * 40_000)
    found = randomised(votes, 3, 1.0, generator(4))
    counts = unbiased_counts(torch.bincount(found, minlength=3), 1.0)
    assert float(counts.sum()) == pytest.approx(100_000)
    torch.testing.assert_close(
        counts, torch.tensor([60_000.0, 0.0, 40_000.0], dtype=torch.float64), atol=1500, rtol=0
    )


def test_votes_keep_shape_and_type_and_must_be_among_the_choices() -> None:
    votes = torch.tensor([[0, 1], [2, 2]], dtype=torch.uint8)
    found = randomised(votes, 3, 0.1, generator(0))
    assert found.dtype == torch.uint8
    assert found.shape == votes.shape
    assert torch.equal(randomised(votes, 3, math.inf, generator(0)), votes)
    with pytest.raises(ConfigError, match="votes go from 0 to 1, and these from 0 to 2"):
        randomised(votes, 2, 1.0, generator(0))
    with pytest.raises(ConfigError, match=r"whole numbers, not torch\.float32"):
        randomised(votes.float(), 3, 1.0, generator(0))
