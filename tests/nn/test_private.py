import math

import pytest
import torch
from torch import Tensor

from motet.core.rng import generator
from motet.nn.private import clipped, private_mean


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
