import math

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from motet.core import wire
from motet.core.errors import ConfigError
from motet.protect.accountant import (
    WHOLE_ORDERS,
    Accountant,
    Gaussian,
    Response,
    default_delta,
    gaussian_epsilon,
    noise_for,
)

# (chance, noise, releases, delta, epsilon) at the whole orders.
REFERENCES = [
    (0.01, 1.0, 1000, 1e-5, 2.1078),
    (0.01, 1.1, 10_000, 1e-5, 5.6543),
    (1.0, 1.0, 1, 1e-5, 4.7527),
    (1.0, 5.0, 50, 1e-5, 7.0879),
    (0.1, 1.0, 100, 1e-3, 5.6703),
    (0.2, 1.5, 30, 1e-2, 2.4311),
]
Relation = dp_accounting.NeighboringRelation


def theirs(accountant, chance: float, noise: float, times: int, delta: float) -> float:
    event = dp_accounting.PoissonSampledDpEvent(chance, dp_accounting.GaussianDpEvent(noise))
    accountant.compose(event, times)
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize(("chance", "noise", "times", "delta", "epsilon"), REFERENCES)
def test_the_reference_values(
    chance: float, noise: float, times: int, delta: float, epsilon: float
) -> None:
    found = gaussian_epsilon(noise, chance, times, delta, orders=WHOLE_ORDERS)
    assert found == pytest.approx(epsilon, abs=1e-3)
    finer = gaussian_epsilon(noise, chance, times, delta)
    assert finer <= found
    assert finer == pytest.approx(
        theirs(rdp.RdpAccountant(), chance, noise, times, delta), abs=1e-6
    )


def test_loss_distributions_are_those_of_dp_accounting_and_tighter() -> None:
    found = gaussian_epsilon(1.0, 0.1, 100, 1e-3, "pld")
    assert found == pytest.approx(theirs(pld.PLDAccountant(), 0.1, 1.0, 100, 1e-3), abs=1e-6)
    assert found < gaussian_epsilon(1.0, 0.1, 100, 1e-3)
    event = dp_accounting.GaussianDpEvent(5.0)
    accountant = pld.PLDAccountant().compose(event, 50)
    found = gaussian_epsilon(5.0, 1.0, 50, 1e-5, "pld")
    assert found == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-6)


def test_one_whole_release_is_the_gaussian_formula() -> None:
    noise, delta = 2.0, 1e-5
    best = min(
        a / (2 * noise**2) + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1)
        for a in WHOLE_ORDERS
    )
    found = gaussian_epsilon(noise, 1.0, 1, delta, orders=WHOLE_ORDERS)
    assert found == pytest.approx(best, abs=1e-9)


def test_it_falls_with_noise_and_rises_with_rounds_and_chance() -> None:
    def epsilon(noise: float = 1.0, chance: float = 0.1, times: int = 10) -> float:
        return gaussian_epsilon(noise, chance, times, 1e-5, orders=WHOLE_ORDERS)

    assert epsilon(noise=2.0) < epsilon() < epsilon(chance=0.2) < epsilon(chance=1.0)
    assert epsilon() < epsilon(times=20)
    assert epsilon(times=0) == epsilon(chance=0.0) == 0
    assert epsilon(noise=0.0) == math.inf


def test_a_fixed_number_of_sites_is_counted_against_any_other_site_and_half_the_noise() -> None:
    event = dp_accounting.SampledWithoutReplacementDpEvent(
        50, 5, dp_accounting.GaussianDpEvent(4.0 / 2)
    )
    accountant = rdp.RdpAccountant(neighboring_relation=Relation.REPLACE_ONE).compose(event, 100)
    found = Accountant()
    found.add(Gaussian(4.0, 0.1, fixed=True), 100)
    epsilon, bound = found.bound(1e-3)
    assert epsilon == pytest.approx(accountant.get_epsilon(1e-3), abs=1e-6)
    assert bound == "Renyi orders of sampling without replacement"
    # It is no Poisson sample, whose bound would be far lower.
    assert epsilon > 1.5 * gaussian_epsilon(4.0, 0.1, 100, 1e-3)


def test_where_that_bound_is_worse_the_sampling_is_not_counted() -> None:
    found = Accountant()
    found.add(Gaussian(1.0, 0.5, fixed=True), 10)
    epsilon, bound = found.bound(1e-3)
    assert epsilon == gaussian_epsilon(1.0, 1.0, 10, 1e-3)
    assert bound == "Renyi orders, sampling not counted"
    tight = Accountant("pld")
    tight.add(Gaussian(4.0, 0.1, fixed=True), 10)
    assert tight.bound(1e-3)[0] == gaussian_epsilon(4.0, 1.0, 10, 1e-3, "pld")


def test_all_sites_every_time_is_no_sample() -> None:
    assert gaussian_epsilon(1.0, 1.0, 5, 1e-3, sampling="fixed") == gaussian_epsilon(
        1.0, 1.0, 5, 1e-3
    )


def test_different_mechanisms_add_up_as_in_dp_accounting() -> None:
    found = Accountant()
    found.add(Gaussian(1.5, 0.2), 3)
    found.add(Gaussian(2.0), 2)
    accountant = rdp.RdpAccountant()
    accountant.compose(
        dp_accounting.PoissonSampledDpEvent(0.2, dp_accounting.GaussianDpEvent(1.5)), 3
    )
    accountant.compose(dp_accounting.GaussianDpEvent(2.0), 2)
    assert found.epsilon(1e-4) == pytest.approx(accountant.get_epsilon(1e-4), abs=1e-6)


def test_two_releases_of_one_sample_are_one_of_more() -> None:
    found = Accountant()
    for number in range(3):
        found.add(Gaussian(3.0, 0.1), sample=f"round {number}")
        found.add(Gaussian(3.0, 0.1), sample=f"round {number}")
    joint = gaussian_epsilon(3.0 / math.sqrt(2), 0.1, 3, 1e-5)
    assert found.epsilon(1e-5) == pytest.approx(joint, abs=1e-9)
    # As if each had drawn its own sites would be too little.
    assert joint > 1.02 * gaussian_epsilon(3.0, 0.1, 6, 1e-5)


def test_what_is_kept_and_taken_up_again_counts_as_without_a_stop() -> None:
    whole = Accountant("rdp", WHOLE_ORDERS)
    kept: dict = {}
    for number in range(7):
        for accountant in (whole, Accountant.of(kept, "rdp", WHOLE_ORDERS)):
            accountant.add(Gaussian(1.1, 0.2), sample=f"0.{number}")
            accountant.add(Response(0.5, 3), 2)
            # Through the frames of a checkpoint, as a resumed run has it.
            kept = wire.decode(wire.encode(accountant.tree()))
    assert kept == whole.tree()
    assert Accountant.of(kept, "rdp", WHOLE_ORDERS).epsilon(1e-5) == whole.epsilon(1e-5)


def test_what_would_be_leaves_what_is() -> None:
    found = Accountant()
    found.add(Gaussian(2.0, 0.5), sample="a")
    before = found.tree()
    after = found.after(Gaussian(2.0, 0.5), sample="b")
    assert found.tree() == before
    assert after.epsilon(1e-3) > found.epsilon(1e-3)


def test_votes_add_up_and_never_cost_more_than_their_sum() -> None:
    one = Accountant()
    one.add(Response(0.7, 4))
    assert one.epsilon(1e-9) == pytest.approx(0.7, abs=1e-9)
    many = Accountant()
    many.add(Response(0.1, 2), 1000)
    chance = 2 / (math.expm1(0.1) + 2)
    event = dp_accounting.RandomizedResponseDpEvent(chance, 2)
    accountant = rdp.RdpAccountant(neighboring_relation=Relation.REPLACE_ONE).compose(event, 1000)
    assert many.epsilon(1e-5) == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-6)
    assert many.epsilon(1e-5) < 100


def test_loss_distributions_count_every_vote() -> None:
    few, many = Accountant("pld"), Accountant("pld")
    few.add(Response(0.2, 3))
    many.add(Response(0.2, 3), 50)
    assert few.epsilon(1e-6) <= 0.2 + 1e-3
    assert 1 < many.epsilon(1e-6) < 10
    both = Accountant("pld")
    both.add(Response(0.2, 3), 50)
    both.add(Gaussian(2.0))
    assert both.epsilon(1e-6) > many.epsilon(1e-6)


@settings(max_examples=10, deadline=None)
@given(epsilon=st.floats(0.5, 10), times=st.integers(1, 50))
def test_the_noise_for_an_epsilon_spends_it(epsilon: float, times: int) -> None:
    noise = noise_for(epsilon, 1.0, times, 1e-4, orders=WHOLE_ORDERS)
    found = gaussian_epsilon(noise, 1.0, times, 1e-4, orders=WHOLE_ORDERS)
    assert epsilon * 0.995 < found <= epsilon


def test_no_noise_is_enough_for_an_epsilon_of_nothing() -> None:
    with pytest.raises(ConfigError, match="no noise keeps epsilon at 1e-09"):
        noise_for(1e-9, 1.0, 10, 1e-12, orders=WHOLE_ORDERS)


def test_delta() -> None:
    assert default_delta(50) == pytest.approx(50**-1.1)
    assert default_delta(2) < 1 / 2
    with pytest.raises(ConfigError, match="no usual delta for 1"):
        default_delta(1)
    with pytest.raises(ConfigError, match="delta must lie between 0 and 1"):
        Accountant().epsilon(1.0)
