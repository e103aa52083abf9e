"""Forged updates and rows: their definitions to the digit, and what they do to rules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from motet.core import ConfigError, WireError
from motet.nn.bits import pack_order, unpack_order
from motet.nn.robust import krum, krum_scores, median, trimmed_mean
from motet.protect.forgeries import (
    Perturbation,
    alie,
    alie_strength,
    directed_extremes,
    directed_krum,
    furthest,
    inner_product,
    min_max,
    min_sum,
    normal_noise,
    permuted_rows,
    perturbation,
    random_rows,
    random_signs,
    swapped_rows,
    tailored,
    tailored_krum,
    turned_orders,
    uniform_noise,
)

PERTURBATIONS: tuple[Perturbation, ...] = ("sign", "std", "unit")


def honest(n: int = 10, d: int = 30, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn((n, d), generator=rng, dtype=torch.float64) + 0.3


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(
    ("sites", "attackers", "strength"),
    # The two of the paper's kind; one in which nobody has to be won over by much; a majority.
    [(50, 24, 1.4261), (20, 4, 0.1573), (3, 1, 0.0), (10, 6, 0.6745)],
)
def test_how_far_alie_goes(sites: int, attackers: int, strength: float) -> None:
    assert alie_strength(sites, attackers) == pytest.approx(strength, abs=5e-5)


def test_alie_needs_somebody_to_hide_in() -> None:
    for sites, attackers in ((4, 4), (4, 0)):
        with pytest.raises(ConfigError, match="no honest site"):
            alie_strength(sites, attackers)


def test_alie_is_so_many_deviations_off() -> None:
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [6.0, 0.0]])
    # Mean 3, deviation sqrt((4 + 1 + 9) / 2).
    torch.testing.assert_close(alie(x, 1.5), torch.tensor([3 - 1.5 * 7**0.5, 0.0]))
    assert torch.equal(alie(x[:1], 9.0), x[0])


def test_the_inner_product_attack_turns_the_mean_beyond_its_bound() -> None:
    x = honest(8)
    mean = x.mean(dim=0)
    for attackers in (2, 3):
        bound = 8 / attackers
        for eps, turned in ((bound * 0.99, False), (bound * 1.01, True)):
            forged = inner_product(x, eps)
            torch.testing.assert_close(forged, -eps * mean)
            total = torch.cat([x, forged.expand(attackers, -1)]).mean(dim=0)
            assert (float(total @ mean) < 0) == turned


def test_the_three_directions() -> None:
    x = torch.tensor([[3.0, -8.0, 0.0], [3.0, 0.0, 0.0]])
    assert perturbation(x, "sign").tolist() == [-1, 1, 0]
    torch.testing.assert_close(perturbation(x, "std"), torch.tensor([0, -(32**0.5), 0]))
    torch.testing.assert_close(perturbation(x, "unit"), torch.tensor([-0.6, 0.8, 0]))


def searched(x: Tensor, name: Perturbation, feasible: str) -> Tensor:
    """The papers' search, from 10 in halved steps, on distances that are worked out one by one."""
    mean, step = x.mean(dim=0), perturbation(x, name)
    pairs = torch.stack([(a - b).square().sum() for a in x for b in x]).view(len(x), len(x))

    def fits(g: float) -> bool:
        off = torch.stack([(mean + g * step - a).square().sum() for a in x])
        if feasible == "max":
            return bool(off.max() <= pairs.max())
        return bool(off.sum() <= pairs.sum(dim=1).max())

    best, g, move = 0.0, 10.0, 5.0
    while move > 1e-5:
        if fits(g):
            best, g = g, g + move
        else:
            g -= move
        move /= 2
    return mean + best * step


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_min_max_and_min_sum_are_what_their_search_finds(name: Perturbation) -> None:
    for seed in range(3):
        x = honest(seed=seed)
        torch.testing.assert_close(min_max(x, name), searched(x, name, "max"), atol=1e-3, rtol=0)
        torch.testing.assert_close(min_sum(x, name), searched(x, name, "sum"), atol=1e-3, rtol=0)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_min_max_and_min_sum_are_tight_whatever_the_scale(name: Perturbation, scale: float) -> None:
    x = scale * honest()
    mean = x.mean(dim=0)
    squares = torch.stack([(a - b).square().sum() for a in x for b in x]).view(len(x), len(x))

    def widest(forged: Tensor) -> float:
        return float((forged - x).square().sum(dim=1).max())

    def summed(forged: Tensor) -> float:
        return float((forged - x).square().sum())

    for forged, off, bound in (
        (min_max(x, name), widest, float(squares.max())),
        (min_sum(x, name), summed, float(squares.sum(dim=1).max())),
    ):
        assert off(forged) == pytest.approx(bound, rel=1e-6)
        assert off(mean + 1.01 * (forged - mean)) > bound
        assert float((forged - mean) @ perturbation(x, name)) > 0


def test_min_sum_by_hand() -> None:
    # Mean 3, summed squares 14 around it; 6 has 25 + 16 = 41; 3 g^2 * 7 = 41 - 14.
    x = torch.tensor([[1.0], [2.0], [6.0]])
    assert min_sum(x).item() == pytest.approx(3 - (27 / 21) ** 0.5 * 7**0.5)
    # The two farthest are 5 apart: the forged one is 5 below 6.
    assert min_max(x).item() == pytest.approx(1.0)


def test_updates_without_a_direction_are_left_at_their_mean() -> None:
    for forge in (min_max, min_sum):
        for name in PERTURBATIONS:
            assert torch.equal(forge(torch.ones(1, 4), name), torch.ones(4))
            assert torch.equal(forge(torch.zeros(3, 4), name), torch.zeros(4))


def test_the_search_ends_at_the_largest() -> None:
    peak = furthest(lambda strength: -((strength - 7.3) ** 2) + 100)
    assert 6.5 < peak < 7.6
    assert furthest(lambda strength: 0.0) == 0
    assert furthest(lambda strength: strength) == pytest.approx(10, abs=1e-4)


def test_the_tailored_attack_moves_a_trimmed_mean_more_than_extremes_do() -> None:
    x = torch.randn((8, 200), generator=torch.Generator().manual_seed(0)) + 0.3
    mean = x.mean(dim=0)
    forged = tailored(x, 2)
    off = (mean - forged) / x.std(dim=0)
    torch.testing.assert_close(off, torch.full((200,), float(off[0])), rtol=1e-3, atol=1e-4)
    assert float(off[0]) > 0

    def distance(sent: Tensor) -> float:
        return float((trimmed_mean(torch.cat([sent.expand(2, -1), x]), 2) - mean).norm())

    assert distance(forged) >= distance(mean - x.std(dim=0)) * 0.999
    assert distance(forged) > 2 * distance(mean)
    # One honest update has no spread, and a single number no room for a trim.
    assert torch.equal(tailored(x[:1], 1), x[0])


def test_the_attack_on_multi_krum_is_as_far_off_as_it_takes_all() -> None:
    x = honest(8)
    forged = tailored_krum(x, 2)
    off = (x.mean(dim=0) - forged) / x.std(dim=0)
    strength = float(off[0])
    torch.testing.assert_close(off, torch.full_like(off, strength))
    assert strength > 0.1

    def taken(strength: float) -> int:
        sent = (x.mean(dim=0) - strength * x.std(dim=0)).expand(2, -1)
        best = krum_scores(torch.cat([sent, x]), 2).argsort(stable=True)[:8]
        return int((best < 2).sum())

    assert taken(strength) == 2
    assert taken(strength + 1e-3) < 2
    # Who knows nobody else's updates cannot tell, and goes as far as the search does.
    assert torch.equal(tailored_krum(x[:1], 1), x[0])


def test_directed_extremes_lie_just_beyond_the_honest_ones() -> None:
    # Means 2 (down, low 1), -2 (up, high -1), 1 (down, low -3), -1 (up, high 3).
    x = torch.tensor([[1.0, -1.0, -3.0, 3.0], [3.0, -3.0, 5.0, -5.0]])
    bounds = [(0.5, 1.0), (-1.0, -0.5), (-6.0, -3.0), (3.0, 6.0)]
    found = directed_extremes(x, generators(*range(400)), known=True)
    for column, (low, high) in zip(found.T, bounds, strict=True):
        assert low <= float(column.min()) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < float(column.max()) <= high
    # The median of as many attackers as honest sites goes against the honest direction.
    assert bool((median(torch.cat([x, found[:3]])).sign() * x.mean(dim=0).sign())[2:].eq(-1).all())


def test_directed_extremes_without_knowledge_go_by_the_spread() -> None:
    x = torch.tensor([[1.0, -1.0], [3.0, -3.0]])
    found = directed_extremes(x, generators(*range(400)), known=False)
    deviation = 2**0.5
    for column, sign in zip(found.T, (1, -1), strict=True):
        off = (2 - sign * column) / deviation
        assert float(off.min()) == pytest.approx(3, abs=0.05)
        assert float(off.max()) == pytest.approx(4, abs=0.05)


def test_krum_takes_the_directed_update_and_not_twice_of_it() -> None:
    for seed in range(4):
        x = honest(8, seed=seed) + 0.5
        forged = directed_krum(x, 3)
        direction = x.mean(dim=0).sign()
        strength = float(-forged[0] * direction[0])
        assert strength > 0
        torch.testing.assert_close(forged, -strength * direction)
        torch.testing.assert_close(krum(torch.cat([x, forged.expand(3, -1)]), 3), forged)
        twice = torch.cat([x, (2 * forged).expand(3, -1)])
        assert not torch.equal(krum(twice, 3), 2 * forged)


def test_a_directed_update_without_others_to_compare_with() -> None:
    assert torch.equal(directed_krum(torch.zeros(2, 3), 2), torch.zeros(3))
    found = directed_krum(torch.tensor([[1.0, -1.0]]), 1)
    assert found[0] < 0 < found[1]


def test_noise_is_each_attacker_s_own() -> None:
    own = torch.stack([torch.full((4000,), 2.0), torch.full((4000,), 5.0)])
    found = normal_noise(own, None, generators(1, 2))
    torch.testing.assert_close(found.std(dim=1), torch.tensor([2.0, 5.0]), rtol=0.05, atol=0)
    found = normal_noise(own, 200.0, generators(1, 2))
    assert abs(float(found.std()) - 200) < 5
    assert abs(float(torch.corrcoef(found)[0, 1])) < 0.1
    flat = uniform_noise(own, 0.5, generators(1, 2))
    assert flat.shape == own.shape
    assert float(flat.abs().max()) <= 0.5
    assert float(flat.std()) == pytest.approx(0.5 / 3**0.5, rel=0.03)
    assert abs(float(torch.corrcoef(flat)[0, 1])) < 0.1


def test_rows_are_permuted_alike_by_equal_generators() -> None:
    x, y = torch.arange(20.0).view(10, 2), torch.arange(30.0).view(10, 3)
    first = permuted_rows(x, *generators(4))
    second = permuted_rows(y, *generators(4))
    order = (first[:, 0] / 2).long()
    assert sorted(order.tolist()) == list(range(10))
    assert order.tolist() != list(range(10))
    assert torch.equal(second, y[order])


def test_every_row_becomes_the_farthest_other_one() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0], [1.0, 1.0]])
    # 0 and 1 are farthest from the third, the third from the second, the last from the third.
    assert torch.equal(swapped_rows(x), x[[2, 2, 1, 2]])
    assert torch.equal(swapped_rows(x[:1]), x[:1])
    same = torch.ones(3, 2)
    assert torch.equal(swapped_rows(same), same)


def test_random_rows_keep_their_lengths() -> None:
    x = honest(200, 16)
    found = random_rows(x, *generators(1))
    torch.testing.assert_close(found.norm(dim=1), x.norm(dim=1))
    cosine = torch.nn.functional.cosine_similarity(found, x)
    assert abs(float(cosine.mean())) < 0.05
    assert not torch.equal(found, random_rows(x, *generators(2)))
    assert torch.equal(found, random_rows(x, *generators(1)))


def test_the_reverse_of_one_ballot() -> None:
    order = torch.tensor([2, 0, 1, 3])
    found = turned_orders([{"a": {"b": pack_order(order, 4)}}])
    assert unpack_order(found["a"]["b"]).tolist() == [3, 1, 0, 2]
    top = turned_orders([pack_order(torch.tensor([1, 3]), 4)])
    # 3 and 1 are the most important: the reverse names those that were not named.
    assert sorted(unpack_order(top).tolist()) == [0, 2]
    with pytest.raises(WireError, match="packed orders"):
        turned_orders([torch.arange(3)])


def test_random_signs_keep_every_size() -> None:
    own = torch.arange(1.0, 2001.0).repeat(2, 1)
    rngs = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    made = random_signs(own, rngs)
    assert torch.equal(made.abs(), own)
    assert not torch.equal(made[0], made[1])
    for row in made:
        assert 0.45 < float((row > 0).float().mean()) < 0.55
