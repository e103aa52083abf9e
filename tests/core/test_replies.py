"""The answers of a group, in the order of names."""

from __future__ import annotations

import pytest
import torch

from motet.core import ConfigError, Replies, Tree


@pytest.fixture
def replies() -> Replies:
    values: dict[str, Tree] = {
        "cleo": {"w": torch.tensor([6.0]), "samples": 1},
        "ada": {"w": torch.tensor([0.0]), "samples": 5, "extra": "x"},
        "ben": {"samples": 3},
    }
    return Replies(values, {"eve": "down", "dan": "late"})


def test_names_are_in_order_whoever_answered_first(replies: Replies) -> None:
    assert list(replies) == ["ada", "ben", "cleo"]
    assert len(replies) == 3
    assert replies["ada"]["samples"] == 5
    assert list(replies.failed.items()) == [("dan", "late"), ("eve", "down")]


def test_a_key_is_gathered_from_those_that_sent_it(replies: Replies) -> None:
    assert list(replies.having("w")) == ["ada", "cleo"]
    assert replies.having("nothing") == {}
    assert replies.stack("w").tolist() == [[0], [6]]


def test_means_are_equal_or_weighed(replies: Replies) -> None:
    assert replies.mean("w").tolist() == [3]
    assert replies.mean("w", by="samples").tolist() == [1]
    assert replies.mean("samples") == 3


def test_the_mean_of_nothing_says_who_failed(replies: Replies) -> None:
    with pytest.raises(ConfigError, match=r"no reply has the key 'v'; failed: .*'dan': 'late'"):
        replies.mean("v")
    with pytest.raises(ConfigError, match="failed: none"):
        Replies({}, {}).mean("v")
