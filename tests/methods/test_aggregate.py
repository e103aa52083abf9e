"""Rules for the sites' weights: what FedAvg does with them, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods import labelled

from motet.core import ConfigError, Replies
from motet.methods.aggregate import Aggregate
from motet.methods.fedavg import FedAvg
from motet.methods.fedopt import FedAvgM

RULES = ["trimmed-mean", "median", "krum", "multi-krum"]
LOCAL = {"lr": 0.1, "epochs": 2, "batch": 8}


def replies(*values: float, samples: tuple[float, ...] = ()) -> Replies:
    weights = samples or (1.0,) * len(values)
    found = {
        f"s{i}": {
            "weights": {"w": torch.full((2,), 5.0 + value), "n": torch.tensor(100 + i)},
            "samples": weights[i],
        }
        for i, value in enumerate(values)
    }
    return Replies(found, {})


SENT = {"w": torch.full((2,), 5.0), "n": torch.tensor(7)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("trimmed-mean", 0.2), ("median", 0.2), ("krum", 0.1), ("multi-krum", 0.15)],
)
def test_the_worked_example_on_updates(name: Any, expected: float) -> None:
    rule = Aggregate(name=name, share=0.2)
    found = rule.combine(replies(0, 0.1, 0.2, 0.3, 10), "weights", SENT, "samples")
    torch.testing.assert_close(found["w"], torch.full((2,), 5 + expected))
    # A counter is no update.
    assert int(found["n"]) == 7


def test_the_mean_is_weighted_and_the_rules_are_not() -> None:
    given = replies(0, 0, 0, 0, 9, samples=(1, 1, 1, 1, 5))
    mean = Aggregate().combine(given, "weights", SENT, "samples")
    torch.testing.assert_close(mean["w"], torch.full((2,), 10.0))
    assert int(mean["n"]) == 104
    for name in RULES:
        rule = Aggregate.model_validate({"name": name})
        assert torch.equal(rule.combine(given, "weights", SENT, "samples")["w"], SENT["w"])


def test_names_that_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match="same weights from every site"):
        Aggregate(name="median").combine(replies(1, 2), "weights", {"w": SENT["w"]}, None)


@pytest.mark.parametrize(("count", "bears"), [(10, 2), (9, 1), (4, 0)])
def test_how_many_it_bears(count: int, bears: int) -> None:
    assert Aggregate().bears(count) == bears
    assert Aggregate(share=0.07).bears(100) == 7


def test_too_few_sites_are_refused_before_the_first_round() -> None:
    method = {"name": "fedavg", "aggregate": {"name": "krum", "share": 0.4}}
    with pytest.raises(ConfigError, match="raise cohort or lower aggregate.share"):
        labelled.go(method)


@pytest.mark.parametrize("method", [FedAvg, FedAvgM])
def test_a_flipped_sign_ruins_the_mean_and_not_the_median(method: type[FedAvg]) -> None:
    attack = "attack={name: sign-flip, sites: [site-2], factor: 10}"

    def ended(rule: str, *settings: str) -> float:
        fields: dict[str, Any] = {"rounds": 10, "cohort": 5, "local": LOCAL}
        if method is FedAvgM:
            fields["beta"] = 0.0
        made = method.model_validate({**fields, "aggregate": {"name": rule}})
        result = labelled.go(made, "populations.site.count=5", *settings)
        return result.last("accuracy")

    clean = ended("mean")
    assert clean > 60
    assert ended("median", attack) > clean - 15
    assert ended("mean", attack) < 50
