"""Keyed randomness: every draw has a name, so the order of things cannot change a result."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch

_written = json.JSONEncoder(separators=(",", ":")).encode
_quoted = json.encoder.encode_basestring_ascii


def derive(seed: int, *key: str | int) -> int:
    """A seed of 63 bits for this key: equal keys give equal seeds, on every machine."""
    # What JSON makes of them, without the time that it takes to begin.
    parts = [
        _quoted(part) if type(part) is str else str(part) if type(part) is int else _written(part)
        for part in (seed, *key)
    ]
    text = f"[{','.join(parts)}]"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *key: str | int) -> torch.Generator:
    """A torch generator of this key alone."""
    return torch.Generator().manual_seed(derive(seed, *key))


def numpy_generator(seed: int, *key: str | int) -> np.random.Generator:
    """A numpy generator of this key alone."""
    return np.random.default_rng(derive(seed, *key))


class Kept:
    """The states of torch's default generators, which are put back at the end."""

    def __enter__(self) -> None:
        self._state = torch.default_generator.get_state()
        self._others = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None

    def __exit__(self, *error: object) -> None:
        torch.default_generator.set_state(self._state)
        if self._others is not None:
            torch.cuda.set_rng_state_all(self._others)


class seeded(Kept):  # noqa: N801
    """Inside, torch's default generator (dropout, augmentation) is keyed; outside, untouched."""

    def __init__(self, seed: int, *key: str | int) -> None:
        self._seed, self._key = seed, key

    def __enter__(self) -> None:
        super().__enter__()
        reseed(self._seed, *self._key)


def reseed(seed: int, *key: str | int) -> None:
    """Keys torch's default generators from here on; for use inside ``seeded`` alone."""
    number = derive(seed, *key)
    # Not torch.manual_seed: where there is no accelerator it keeps a note, with a stack trace,
    # of every call for the day there is one, which costs a millisecond and never goes away.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(number)
