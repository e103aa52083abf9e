"""Shares of a secret: enough of them restore it, fewer say nothing, and damage is refused."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protect.room import uniform

from motet.core import WireError
from motet.protect.shamir import (
    PRIME,
    SECRET_BYTES,
    SHARE_BYTES,
    combine,
    split,
    value_at,
    value_at_zero,
)

examples = settings(max_examples=60, deadline=None, derandomize=True, database=None)
secrets = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)


def is_prime(number: int) -> bool:
    """Miller and Rabin, with the first 25 primes as witnesses."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (p for p in range(2, 98) if all(p % q for q in range(2, p))):
        power = pow(base, odd, number)
        squares = [pow(power, 2**i, number) for i in range(twos)]
        if power != 1 and number - 1 not in squares:
            return False
    return True


def test_the_prime_is_the_first_beyond_all_secrets() -> None:
    assert is_prime(PRIME)
    assert not any(is_prime(number) for number in range(2**256 + 1, PRIME, 2))


@examples
@given(secrets, st.integers(1, 9), st.integers(0, 6), st.randoms(use_true_random=False))
def test_any_threshold_of_shares_restore_the_secret(
    secret: bytes, threshold: int, spare: int, rng: random.Random
) -> None:
    points = rng.sample(range(1, 2**32), threshold + spare)
    shares = dict(zip(points, split(secret, points, threshold, rng.randbytes), strict=True))
    assert {len(share) for share in shares.values()} == {SHARE_BYTES}
    for count in range(threshold, len(points) + 1):
        some = rng.sample(points, count)
        assert combine({point: shares[point] for point in some}) == secret


@pytest.mark.parametrize("threshold", [2, 3])
def test_fewer_than_the_threshold_say_nothing(threshold: int) -> None:
    prime, points = 7, (1, 2, 5, 6)
    for known in combinations(points, threshold - 1):
        for secret in range(prime):
            seen = Counter(
                tuple(value_at([secret, *drawn], point, prime) for point in known)
                for drawn in product(range(prime), repeat=threshold - 1)
            )
            # Every view is there, each as often as any other, whatever the secret is.
            assert len(seen) == prime ** (threshold - 1)
            assert set(seen.values()) == {1}


def test_shares_of_one_secret_look_uniform() -> None:
    rng = random.Random(0)
    drawn = [split(bytes(32), [1, 2], 2, rng.randbytes) for _ in range(600)]
    assert uniform([list(share[1:]) for pair in drawn for share in pair[:1]])
    assert uniform([list(share[1:]) for pair in drawn for share in pair[1:]])


def test_too_few_shares_restore_something_else() -> None:
    secret, rng = b"s" * 32, random.Random(1)
    shares = split(secret, [1, 2, 3, 4], 3, rng.randbytes)
    for one, other in combinations(range(4), 2):
        try:
            assert combine({one + 1: shares[one], other + 1: shares[other]}) != secret
        except WireError:
            continue


@examples
@given(st.integers(0, 2), st.integers(0, SHARE_BYTES * 8 - 1))
def test_a_wrong_share_restores_no_secret(place: int, bit: int) -> None:
    secret, rng = b"t" * 32, random.Random(2)
    shares = split(secret, [1, 2, 3], 3, rng.randbytes)
    number = int.from_bytes(shares[place], "big") ^ (1 << bit)
    shares[place] = number.to_bytes(SHARE_BYTES, "big")
    try:
        restored = combine(dict(enumerate(shares, start=1)))
    except WireError:
        return
    assert restored != secret


def test_the_polynomial_through_known_points() -> None:
    # 5 + 3x + 2x^2 modulo 13, by hand: 10, 19 = 6, 32 = 6.
    assert [value_at([5, 3, 2], x, 13) for x in (1, 2, 3)] == [10, 6, 6]
    assert value_at_zero({1: 10, 2: 6, 3: 6}, 13) == 5


@pytest.mark.parametrize(
    ("secret", "points", "threshold", "message"),
    [
        (b"short", [1, 2], 2, "32 bytes"),
        (bytes(32), [1, 2], 3, "threshold=3 of 2"),
        (bytes(32), [1, 2], 0, "threshold=0"),
        (bytes(32), [1, 1], 2, "points must differ"),
        (bytes(32), [0, 1], 2, "points must differ"),
        (bytes(32), [1, PRIME], 2, "points must differ"),
    ],
)
def test_arguments_that_share_nothing(
    secret: bytes, points: list[int], threshold: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        split(secret, points, threshold, bytes)


@pytest.mark.parametrize(
    "shares", [{}, {1: b""}, {1: bytes(32)}, {1: b"\xff" * 33}, {1: bytes(33), 2: bytes(34)}]
)
def test_what_is_no_share_is_refused(shares: dict[int, bytes]) -> None:
    with pytest.raises(WireError, match="a share has 33 bytes"):
        combine(shares)


def test_a_number_beyond_all_secrets_is_refused() -> None:
    with pytest.raises(WireError, match="do not belong to one secret"):
        combine({1: (2**256 + 5).to_bytes(SHARE_BYTES, "big")})
