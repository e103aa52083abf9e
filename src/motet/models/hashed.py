"""Hashed words and character trigrams under a small MLP: texts without any vocabulary.

After Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009;
unsigned, because the square root wants counts.
"""

from __future__ import annotations

import re
import zlib
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from motet.core.batch import Column
from motet.models.base import Encoder
from motet.models.columns import texts_of
from motet.models.options import Dropout, Hidden, Width
from motet.nn.layers import mlp

WORD_WEIGHT = 1.0
TRIGRAM_WEIGHT = 0.3
NORM = 4.0
_WORD = re.compile(r"\w+")


class HashedMLP(Encoder):
    """Texts by hashed words and character trigrams, through an MLP bins-hidden-width."""

    modality = "text"

    def __init__(
        self,
        width: Width = 64,
        hidden: Hidden = 128,
        bins: Annotated[int, Field(ge=16, le=1 << 20, description="hash bins")] = 1024,
        dropout: Dropout = 0.0,
    ) -> None:
        super().__init__()
        self.width = width
        self.bins = bins
        self.layers = mlp(bins, hidden, width, dropout)

    @property
    def key(self) -> str:
        """Names the preparation: encoders with as many bins prepare alike."""
        return f"hashed-{self.bins}"

    def prepare(self, column: Column) -> Tensor:
        """n strings -> float32 [n, bins], of norm 4 (a text without a word: zeros)."""
        return text_features(texts_of(column), self.bins)

    def forward(self, x: Tensor) -> Tensor:
        """Features [n, bins] -> embedding [n, width], not normalised."""
        embedding: Tensor = self.layers(x)
        return embedding


def text_features(texts: tuple[str, ...], bins: int) -> Tensor:
    """n strings -> square roots of weighted hash counts [n, bins], scaled to norm 4."""
    places: dict[str, tuple[list[int], list[float]]] = {}
    counts = np.zeros((len(texts), bins), dtype=np.float32)
    for row, text in zip(counts, texts, strict=True):
        for word in _WORD.findall(text.lower()):
            if word not in places:
                places[word] = _places(word, bins)
            at, weights = places[word]
            np.add.at(row, at, weights)
    return F.normalize(torch.from_numpy(np.sqrt(counts)), dim=1) * NORM


def _places(word: str, bins: int) -> tuple[list[int], list[float]]:
    """Bins and weights of one word: itself, and its trigrams with a mark at either end."""
    marked = f"<{word}>"
    trigrams = [marked[i : i + 3] for i in range(len(marked) - 2)]
    at = [_bin(f"w:{word}", bins), *(_bin(f"t:{piece}", bins) for piece in trigrams)]
    return at, [WORD_WEIGHT, *(TRIGRAM_WEIGHT for _ in trigrams)]


def _bin(piece: str, bins: int) -> int:
    """A hash that is the same in every process: Python's own is salted."""
    return zlib.crc32(piece.encode()) % bins
