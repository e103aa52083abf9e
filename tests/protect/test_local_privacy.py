import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from motet.core.errors import BudgetError, ConfigError
from motet.core.guard import SPENT, Passage
from motet.core.kinds import Kind
from motet.core.rng import generator
from motet.core.tree import Tree
from motet.nn.bits import pack_order
from motet.protect.accountant import gaussian_epsilon
from motet.protect.local_privacy import LocalPrivacy, noise_share
from motet.protect.privacy import PrivacySpec


def guard(**fields: Any) -> LocalPrivacy:
    made = PrivacySpec.model_validate({"mode": "local", "delta": 1e-3, **fields})
    return LocalPrivacy(made, sites=10, cohort=8)


def passage(sends: Mapping[str, Kind], received: Tree | None = None, seed: int = 0) -> Passage:
    return Passage(
        site="a",
        op="train",
        tag="0.0.1",
        round=0,
        sends=sends,
        received=received or {},
        rng=partial(generator, seed),
        memory={},
    )


BOTH = {"weights": Kind.WEIGHTS, "change": Kind.CONTROL}
KINDS = ["weights", "control"]


def reply(size: float) -> Tree:
    drawn = torch.randn(2, 500, generator=generator(1))
    drawn *= size / drawn.norm()
    return {"weights": {"w": drawn[0] + 5}, "change": drawn[1], "samples": 3}


SENT: Tree = {"weights": {"w": torch.full((500,), 5.0)}}


def test_all_updates_of_a_reply_are_clipped_together_as_what_they_changed() -> None:
    given = reply(1e4)
    found = guard(kinds=KINDS, clip=2.0, noise=0.0).leave(given, passage(BOTH, SENT))
    change = torch.cat([found["weights"]["w"] - 5, found["change"]])
    assert float(change.norm()) == pytest.approx(2.0, rel=1e-4)
    assert found["samples"] == 3
    # The reply itself is as it was.
    assert float(given["change"].norm()) > 100


def test_a_short_update_stays_and_is_noised_by_z_clips() -> None:
    still = guard(kinds=KINDS, clip=2.0, noise=0.0).leave(reply(1.0), passage(BOTH, SENT))
    torch.testing.assert_close(still["weights"]["w"], reply(1.0)["weights"]["w"])
    noisy = guard(kinds=KINDS, clip=2.0, noise=1.5).leave(reply(1.0), passage(BOTH, SENT))
    noise = [noisy["weights"]["w"] - still["weights"]["w"], noisy["change"] - still["change"]]
    assert float(torch.cat(noise).std()) == pytest.approx(3.0, rel=0.1)
    assert not torch.equal(*noise)


def test_noise_is_the_sites_own_and_not_the_same_twice() -> None:
    found = [
        guard(kinds=KINDS).leave(reply(1.0), passage(BOTH, SENT, seed))["change"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


ROWS = {"features": Kind.REPRESENTATIONS}


def test_rows_are_clipped_and_noised_one_by_one_wherever_they_stand() -> None:
    drawn = torch.randn(100, 30, generator=generator(2)) * 50
    value = {"features": {"image": drawn, "text": drawn[:40]}}
    still = guard(kinds=["representations"], clip=1.0, noise=0.0)
    found = still.leave(value, passage(ROWS))["features"]
    torch.testing.assert_close(found["image"].norm(dim=1), torch.ones(100))
    noisy = guard(kinds=["representations"], clip=1.0, noise=0.5).leave(value, passage(ROWS))
    noise = noisy["features"]["image"] - found["image"]
    assert float(noise.std()) == pytest.approx(0.5, rel=0.1)
    other = noisy["features"]["text"] - found["text"]
    assert not torch.equal(noise[:40], other)


def test_so_many_rows_are_so_many_releases_of_the_site() -> None:
    value = {"features": torch.randn(40, 8, generator=generator(0))}
    note = guard(kinds=["representations"], noise=20.0).leave(value, passage(ROWS))[SPENT]
    assert note["epsilon"] == pytest.approx(gaussian_epsilon(20.0, 1.0, 40, 1e-3), abs=1e-9)
    assert (note["unit"], note["delta"]) == ("site", 1e-3)


def test_a_whole_update_is_one_release_and_all_rounds_count() -> None:
    rule, passed = guard(kinds=KINDS, noise=3.0), passage(BOTH, SENT)
    for rounds in range(1, 4):
        note = rule.leave(reply(1.0), passed)[SPENT]
        assert note["epsilon"] == pytest.approx(gaussian_epsilon(3.0, 1.0, rounds, 1e-3), abs=1e-9)


def test_a_site_that_has_spent_its_budget_sends_nothing_more() -> None:
    rule, passed = guard(kinds=KINDS, noise=1.0, epsilon=6.0), passage(BOTH, SENT)
    count = 0
    with suppress(BudgetError):
        for _ in range(100):
            rule.leave(reply(1.0), passed)
            count += 1
    with pytest.raises(BudgetError, match="would be"):
        rule.leave(reply(1.0), passed)
    assert count > 0
    assert (
        gaussian_epsilon(1.0, 1.0, count, 1e-3) <= 6 < gaussian_epsilon(1.0, 1.0, count + 1, 1e-3)
    )


def voting(**fields: Any) -> LocalPrivacy:
    return guard(kinds=["votes"], vote_epsilon=1.0, vote_choices=3, **fields)


VOTES = {"votes": Kind.VOTES}


def test_votes_are_randomised_and_each_is_counted() -> None:
    cast = {"votes": {"a": torch.ones(9000, dtype=torch.int64), "b": torch.tensor([2])}}
    found = voting().leave(cast, passage(VOTES))
    shares = torch.bincount(found["votes"]["a"], minlength=3) / 9000
    assert math.log(float(shares[1] / shares[0])) == pytest.approx(1.0, abs=0.1)
    few = voting().leave({"votes": torch.tensor([1, 2])}, passage(VOTES))
    # Two votes of epsilon 1, and a little less for the delta.
    assert 1.9 < few[SPENT]["epsilon"] <= 2


def test_a_packed_order_is_refused() -> None:
    value = {"votes": {"layer": pack_order(torch.arange(5), 5)}}
    with pytest.raises(ConfigError, match=r"votes\.layer is a packed order"):
        voting().leave(value, passage(VOTES))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(5), "features is no floating-point tensor of rows"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, r"features\.x is no floating-point tensor"),
        ({"x": 3.0}, r"features\.x is no floating-point tensor"),
    ],
)
def test_what_is_no_row_is_refused(value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        guard(kinds=["representations"]).leave({"features": value}, passage(ROWS))


def test_whole_numbers_in_an_update_are_the_hubs_or_refused() -> None:
    sends = {"weights": Kind.WEIGHTS}
    value = {"weights": {"w": torch.zeros(3), "seen": torch.tensor(8)}}
    sent = {"weights": {"w": torch.zeros(3), "seen": torch.tensor(2)}}
    found = guard().leave(value, passage(sends, sent))
    assert int(found["weights"]["seen"]) == 2
    with pytest.raises(ConfigError, match=r"weights\.seen is a int64 tensor"):
        guard().leave(value, passage(sends))


def test_an_uncovered_kind_is_refused_and_a_metric_is_not() -> None:
    with pytest.raises(ConfigError, match="does not cover 'change'"):
        guard().leave(reply(1.0), passage(BOTH, SENT))
    value = {"metrics": {"accuracy": [0.5, 10]}}
    assert guard().leave(value, passage({"metrics": Kind.METRIC})) == value


def test_a_damaged_update_leaves_as_no_change() -> None:
    given = reply(1.0)
    given["change"][0] = math.nan
    found = guard(kinds=KINDS, noise=0.0).leave(given, passage(BOTH, SENT))
    assert torch.equal(found["weights"]["w"], SENT["weights"]["w"])


def test_shares_of_the_noise_add_up_to_that_of_the_sum() -> None:
    rule = guard(mode="distributed", kinds=KINDS, clip=2.0, noise=1.5, dropouts=3)
    zero = {"weights": {"w": torch.full((500,), 5.0)}, "change": torch.zeros(500)}
    sums = torch.zeros(500)
    # Three of eight drop out, and the noise of those that stay is enough.
    for seed in range(5):
        found = rule.leave(zero, passage(BOTH, SENT, seed))
        assert SPENT not in found
        sums += found["change"]
    assert float(sums.std()) == pytest.approx(3.0, rel=0.1)


def test_too_many_dropouts_leave_nobody_to_add_noise() -> None:
    assert noise_share(8, 4) == 0.5
    with pytest.raises(ConfigError, match="dropouts=8 of 8 sites leaves none"):
        guard(mode="distributed", dropouts=8)


def test_the_hub_reads_what_arrived() -> None:
    value = reply(1.0)
    passed = replace(passage(BOTH, SENT), memory={})
    assert guard().arrive(value, passed) is value
