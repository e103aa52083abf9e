"""Keyed randomness: the same on every machine, and never in anyone's way."""

from __future__ import annotations

import hashlib
import json
from enum import IntEnum
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from motet.core.kinds import Kind
from motet.core.rng import derive, generator, numpy_generator, reseed, seeded


def test_a_key_gives_the_same_seed_for_ever() -> None:
    assert derive(0) == 6197007067532723406
    assert derive(7, "site-1", 3, "batches") == 2494980764866020700
    assert derive(0, "ä") == derive(0, "\u00e4")


def test_keys_do_not_run_together() -> None:
    keys: list[tuple[str | int, ...]] = [
        (),
        (1,),
        ("1",),
        (1, 1),
        (11,),
        ("1", 1),
        ("1,1",),
        ("a", "b"),
        ("ab",),
        ("a,b",),
    ]
    seeds = [derive(0, *key) for key in keys] + [derive(1), derive(10)]
    assert all(one != other for one, other in combinations(seeds, 2))


def test_seeds_fit_every_generator() -> None:
    assert all(0 <= derive(seed, "x") < 2**63 for seed in range(500))


def test_generators_of_one_key_agree() -> None:
    draws = [torch.rand(3, generator=generator(1, "a", i)).tolist() for i in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    numbers = [numpy_generator(1, "a", i).random(3).tolist() for i in (0, 0, 1)]
    assert numbers[0] == numbers[1] != numbers[2]


@pytest.mark.usefixtures("rng_untouched")
def test_generators_leave_the_global_ones_alone() -> None:
    torch.rand(2, generator=generator(1))
    numpy_generator(1).permutation(np.arange(3))


@pytest.mark.usefixtures("rng_untouched")
def test_the_default_generator_is_keyed_inside_alone() -> None:
    with seeded(1, "a"):
        first = torch.rand(2).tolist()
        with seeded(1, "b"):
            other = torch.rand(2).tolist()
        further = torch.rand(2).tolist()
    with seeded(1, "a"):
        assert [torch.rand(2).tolist(), torch.rand(2).tolist()] == [first, further]
        reseed(1, "b")
        assert torch.rand(2).tolist() == other


@pytest.mark.usefixtures("rng_untouched")
def test_an_error_inside_puts_the_default_generator_back() -> None:
    with pytest.raises(AssertionError), seeded(1):
        assert torch.rand(1) < 0


class Level(IntEnum):
    LOW = 3


class Word(str):
    """A name that is more than a string."""


@pytest.mark.parametrize(
    "key",
    [
        ("a", 3, -1, 10**30),
        ("ü", "\u2028", "\ud83d\ude00", 'quo"te\\', "\n\x00", ""),
        (True, False, None, 0.5, -0.0, float("nan"), float("inf")),
        (Level.LOW, Kind.WEIGHTS, Word("ü")),
        (["a", [1]], (2, "b"), {"c": 1}),
    ],
)
def test_a_seed_is_the_hash_of_its_key_as_json(key: tuple[Any, ...]) -> None:
    for seed in (0, -3, True):
        text = json.dumps([seed, *key], separators=(",", ":"))
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        assert derive(seed, *key) == int.from_bytes(digest, "big") >> 1


@pytest.mark.usefixtures("rng_untouched")
def test_the_default_generator_is_put_back_after_an_error() -> None:
    with pytest.raises(ValueError, match="ill"), seeded(1, "a"):
        raise ValueError(f"ill {torch.rand(2)}")
