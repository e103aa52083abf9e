"""Draws that nobody repeats who does not have a party's secret: the noise that protects it."""

from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import torch
from torch import Tensor

BYTES = 32
# Of 64 random bits, what a float64 between 0 and 1 can hold.
_GRAIN = 2.0**-53


class Secret:
    """A party's own random bytes, and the generators that come from them by name."""

    def __init__(self, data: bytes) -> None:
        if len(data) != BYTES:
            raise ValueError(f"a secret has {BYTES} bytes, and these are {len(data)}")
        self._data = data

    def __repr__(self) -> str:
        return "Secret(...)"

    def generator(self, seed: int, *key: str | int) -> Concealed:
        """A generator of this secret, seed and key."""
        name = json.dumps([seed, *key], separators=(",", ":")).encode()
        return Concealed(hashlib.blake2b(name, key=self._data, digest_size=BYTES).digest())


class Concealed(torch.Generator):
    """A generator for noise that has to stay unknown.

    torch's own generators begin from 32 bits, which can be tried out, and betray the rest of their
    numbers by some of them. ``uniform`` and ``normal`` are SHAKE-256 instead. What they give also
    hangs on the values that it is to hide: the same question about the same values draws the same
    noise, so that a repeated reply tells nothing new, and any other values draw another one, so
    that two replies cannot be held against each other. As a torch generator it serves what hides
    nothing, such as rounding.
    """

    _key: bytes

    def __new__(cls, key: bytes) -> Concealed:
        """torch's generator, which takes no key."""
        made = super().__new__(cls)
        made._key = key
        return made

    def __init__(self, key: bytes) -> None:
        super().__init__()
        first = hashlib.blake2b(b"torch", key=key, digest_size=8).digest()
        self.manual_seed(int.from_bytes(first, "big") >> 1)

    def uniform(self, hidden: Tensor, use: str = "") -> Tensor:
        """A number from 0 to below 1 for each of ``hidden``: float64 of its shape."""
        return self._drawn(hidden, use, hidden.numel()).view(hidden.shape)

    def normal(self, hidden: Tensor) -> Tensor:
        """A standard normal number for each of ``hidden``: float64 of its shape. Box and Muller."""
        half = (hidden.numel() + 1) // 2
        angles, lengths = self._drawn(hidden, "normal", 2 * half).view(2, half)
        radius = (-2 * torch.log1p(-lengths)).sqrt()
        both = [radius * torch.cos(2 * math.pi * angles), radius * torch.sin(2 * math.pi * angles)]
        return torch.cat(both)[: hidden.numel()].view(hidden.shape)

    def _drawn(self, hidden: Tensor, use: str, count: int) -> Tensor:
        stream = hashlib.shake_256(self._key)
        about = json.dumps([use, str(hidden.dtype), list(hidden.shape)]).encode()
        stream.update(len(about).to_bytes(8, "big") + about)
        values = hidden.detach().cpu().reshape(-1).contiguous()
        stream.update(values.view(torch.uint8).numpy().data)
        words = np.frombuffer(stream.digest(8 * count), dtype="<u8") >> 11
        return torch.from_numpy(words.astype(np.float64) * _GRAIN)
