"""Fixed point, masks, keys, boxes and rings of neighbours, one by one."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protect.room import names

from motet.core import ConfigError, WireError
from motet.protect.secure_words import (
    add_mask,
    agreed,
    derived,
    digest,
    from_words,
    neighbourhoods,
    pair_mask,
    public_key,
    seal,
    self_mask,
    step_of,
    to_words,
    unseal,
)

examples = settings(max_examples=60, deadline=None, derandomize=True, database=None)
numbers = st.lists(st.floats(-20, 20, width=32), max_size=20)


@examples
@given(numbers, st.floats(0, 1), st.floats(0.01, 100), st.integers(8, 30))
def test_fixed_point_is_off_by_half_a_step(
    values: list[float], weight: float, clip: float, bits: int
) -> None:
    vector = torch.tensor(values, dtype=torch.float32)
    kept = vector.clone()
    found = from_words(to_words(vector, weight, clip, bits), clip, bits)
    expected = vector.double().clamp(-clip, clip) * weight
    assert bool(((found - expected).abs() <= step_of(clip, bits) * 0.500001).all())
    assert torch.equal(vector, kept)


@pytest.mark.parametrize(("sites", "bits"), [(1024, 22), (4, 30), (2**24, 8)])
@pytest.mark.parametrize("value", [-1e9, -8.0, 8.0, 1e9])
def test_the_largest_sum_does_not_run_over(sites: int, bits: int, value: float) -> None:
    words = to_words(torch.tensor([value]), 1.0, 8.0, bits) * np.uint32(sites)
    found = from_words(words, 8.0, bits)
    assert found.tolist() == pytest.approx([math.copysign(8.0 * sites, value)], rel=1e-9)


def test_rounding_at_random_is_right_on_average_and_within_a_step() -> None:
    step = step_of(8.0, 22)
    vector = torch.full((20_000,), 100.3 * step, dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    units = from_words(to_words(vector, 1.0, 8.0, 22, rng), 8.0, 22) / step
    assert sorted(set(units.round(decimals=6).tolist())) == [100, 101]
    # The deviation of the mean is sqrt(0.3 * 0.7 / 20,000) = 0.0032.
    assert float(units.mean()) == pytest.approx(100.3, abs=0.016)
    low = from_words(to_words(-vector, 1.0, 8.0, 22, rng), 8.0, 22) / step
    assert float(low.mean()) == pytest.approx(-100.3, abs=0.016)
    edge = to_words(torch.full((1000,), 9.0), 1.0, 8.0, 22, rng)
    assert set(edge.tolist()) == {2**21 - 1}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_all_real_dtypes_are_taken(dtype: torch.dtype) -> None:
    words = to_words(torch.tensor([0.5, -2.0], dtype=dtype), 0.5, 8.0, 22)
    assert from_words(words, 8.0, 22).tolist() == pytest.approx([0.25, -1], abs=1e-5)


@pytest.mark.parametrize(
    ("vector", "weight", "message"),
    [
        (torch.tensor([1.0, math.nan]), 1.0, "not finite"),
        (torch.tensor([-math.inf]), 1.0, "not finite"),
        (torch.tensor([1]), 1.0, "vector of real numbers"),
        (torch.ones(2, 2), 1.0, "vector of real numbers"),
        (torch.ones(2), 1.5, "a share from 0 to 1, not 1.5"),
        (torch.ones(2), -0.1, "a share from 0 to 1"),
        (torch.ones(2), math.nan, "a share from 0 to 1"),
    ],
)
def test_what_cannot_be_summed(vector: torch.Tensor, weight: float, message: str) -> None:
    with pytest.raises(WireError, match=message):
        to_words(vector, weight, 8.0, 22)


@pytest.mark.parametrize("size", [0, 1, 5, 2**16, 2**16 + 3, 3 * 2**16 + 1])
def test_a_mask_is_aes_in_counter_mode_and_comes_off(size: int) -> None:
    key = bytes(range(32))
    start = np.arange(size, dtype=np.uint32) + np.uint32(2**32 - 2)
    words = start.copy()
    add_mask(words, key)
    # Counter mode by hand: the blocks 0, 1, 2 ... encrypted one by one.
    blocks = -(-size // 4)
    counters = b"".join(i.to_bytes(16, "big") for i in range(blocks))
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(counters)
    assert np.array_equal(words - start, np.frombuffer(block, "<u4")[:size])
    add_mask(words, key, minus=True)
    assert np.array_equal(words, start)


def test_both_ends_find_one_mask_and_nobody_else_does() -> None:
    a, b, c = (bytes([i]) * 32 for i in (1, 2, 3))
    key = pair_mask(a, public_key(b), "1.2.3", "ann", "ben")
    assert key == pair_mask(b, public_key(a), "1.2.3", "ben", "ann")
    others = [
        pair_mask(c, public_key(b), "1.2.3", "ann", "ben"),
        pair_mask(a, public_key(b), "1.2.4", "ann", "ben"),
        pair_mask(a, public_key(b), "1.2.3", "ann", "cem"),
        self_mask(agreed(a, public_key(b)), "1.2.3", "ann"),
        self_mask(agreed(a, public_key(b)), "1.2.3", "ben"),
        derived(agreed(a, public_key(b)), "box", "1.2.3", "ann", "ben"),
    ]
    assert len({key, *others}) == 7


def test_a_public_key_that_agrees_on_nothing_is_refused() -> None:
    with pytest.raises(WireError, match="public key"):
        agreed(b"a" * 32, bytes(32))


@examples
@given(st.integers(0, 39), st.integers(1, 255))
def test_any_changed_byte_of_a_box_is_noticed(place: int, change: int) -> None:
    box = bytearray(seal(b"k" * 32, b"p" * 24, "1.2.3", "ann", "ben"))
    assert unseal(b"k" * 32, bytes(box), "1.2.3", "ann", "ben") == b"p" * 24
    box[place] ^= change
    with pytest.raises(WireError, match="changed on its way"):
        unseal(b"k" * 32, bytes(box), "1.2.3", "ann", "ben")


@pytest.mark.parametrize(
    ("secret", "about"),
    [
        (b"k" * 32, ("1.2.4", "ann", "ben")),
        (b"k" * 32, ("1.2.3", "ben", "ann")),
        (b"k" * 32, ("1.2.3", "an", "nben")),
        (b"l" * 32, ("1.2.3", "ann", "ben")),
    ],
)
def test_a_box_opens_for_its_question_sender_and_receiver_alone(
    secret: bytes, about: tuple[str, ...]
) -> None:
    box = seal(b"k" * 32, b"plain", "1.2.3", "ann", "ben")
    assert len(box) == len(b"plain") + 16
    with pytest.raises(WireError, match="another question"):
        unseal(secret, box, *about)


def test_a_digest_is_of_a_share_and_of_what_it_is_about() -> None:
    found = {
        digest(b"s", "1", "ann", "ben"),
        digest(b"t", "1", "ann", "ben"),
        digest(b"s", "2", "ann", "ben"),
        digest(b"s", "1", "ben", "ann"),
    }
    assert len(found) == 4


@examples
@given(st.integers(2, 30), st.integers(1, 15).map(lambda half: 2 * half), st.integers(0, 99))
def test_a_ring_is_regular_mutual_and_in_one_piece(count: int, near: int, seed: int) -> None:
    sites = names(count)
    found = neighbourhoods(sites, near, torch.Generator().manual_seed(seed))
    assert set(found) == set(sites)
    for site, others in found.items():
        assert len(set(others)) == len(others) == min(near, count - 1)
        assert list(others) == sorted(others)
        assert site not in others
        assert all(site in found[other] for other in others)
    reached, border = {sites[0]}, [sites[0]]
    while border:
        border = [other for site in border for other in found[site] if other not in reached]
        reached.update(border)
    assert reached == set(sites)


def test_neighbours_are_drawn() -> None:
    rings = {
        neighbourhoods(names(12), 2, torch.Generator().manual_seed(seed))["s00"]
        for seed in range(20)
    }
    assert len(rings) > 10
    everyone = neighbourhoods(names(4), None, torch.Generator())
    assert everyone["s01"] == ("s00", "s02", "s03")


def test_without_the_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
    with pytest.raises(ConfigError, match=r"pip install 'motet\[secure\]'"):
        add_mask(np.zeros(3, dtype=np.uint32), bytes(32))
