"""Secrets in shares: any ``threshold`` of them restore the secret, fewer say nothing about it.

Shamir, "How to share a secret", CACM 1979, over the integers modulo 2^256 + 297, the first prime
beyond all secrets of 32 bytes. A wrong share restores a wrong secret: shares must come through a
channel that tells damage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from motet.core.errors import WireError

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
# 128 bits more than the prime has: the remainder is uniform to one part in 2^128.
_DRAW_BYTES = SHARE_BYTES + 16


def split(
    secret: bytes, points: Sequence[int], threshold: int, draw: Callable[[int], bytes]
) -> list[bytes]:
    """One share of 33 bytes for each point; any ``threshold`` of them restore the 32 bytes.

    points: different numbers from 1 up. draw: ``draw(n)`` gives n random bytes, which decide all
    shares. Raises ValueError for arguments that share nothing.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold={threshold} of {len(points)} shares can never be met")
    if len(set(points)) < len(points) or not all(0 < point < PRIME for point in points):
        raise ValueError("points must differ, and lie between 0 and the prime")
    drawn = [int.from_bytes(draw(_DRAW_BYTES), "big") % PRIME for _ in range(threshold - 1)]
    coefficients = [int.from_bytes(secret, "big"), *drawn]
    return [value_at(coefficients, x, PRIME).to_bytes(SHARE_BYTES, "big") for x in points]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The 32 bytes that ``split`` shared: point -> share, at least ``threshold`` of them.

    Fewer restore something else. Raises WireError for shares that are visibly not of one secret.
    """
    values = {point: int.from_bytes(share, "big") for point, share in shares.items()}
    fit = all(len(share) == SHARE_BYTES for share in shares.values())
    if not values or not fit or not all(0 <= value < PRIME for value in values.values()):
        raise WireError(f"a share has {SHARE_BYTES} bytes, and a number below the prime in them")
    secret = value_at_zero(values, PRIME)
    if secret >= 256**SECRET_BYTES:
        raise WireError("these shares do not belong to one secret")
    return secret.to_bytes(SECRET_BYTES, "big")


def value_at(coefficients: Sequence[int], point: int, prime: int) -> int:
    """A polynomial's value modulo a prime; its constant term comes first."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * point + coefficient) % prime
    return value


def value_at_zero(values: Mapping[int, int], prime: int) -> int:
    """At 0, modulo a prime, the polynomial of least degree through point -> value (Lagrange)."""
    total = 0
    for point, value in values.items():
        above, below = 1, 1
        for other in values:
            if other != point:
                above = above * other % prime
                below = below * (other - point) % prime
        total += value * above * pow(below, -1, prime)
    return total % prime
