"""Texts read piece by piece: a recurrent network and a small transformer.

Both make their vocabulary from the PUBLIC texts (``calibrate``). It is no part of the weights:
whoever loads them calibrates on the same public texts again and gets the same vocabulary.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from motet.core.batch import Column
from motet.core.errors import ConfigError
from motet.models.base import Encoder
from motet.models.columns import texts_of
from motet.models.options import Dropout, Hidden, MaxTokens, Pie, Vocabulary, Width
from motet.models.tokenizer import PAD, Tokenizer, train_tokenizer
from motet.nn.layers import PIE
from motet.nn.packed import PackedLayer, Packing

Embedding = Annotated[int, Field(ge=1, le=8192, description="size of a piece's vector")]


class _PieceText(Encoder):
    """What both encoders share: vocabulary, preparation, vectors of the pieces."""

    modality = "text"

    def __init__(self, width: int, vocabulary: int, embedding: int, max_tokens: int) -> None:
        super().__init__()
        self.width = width
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens
        self.tokenizer: Tokenizer | None = None
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=PAD)

    @property
    def key(self) -> str:
        """Names the preparation: the same vocabulary and length prepare alike."""
        made = self.tokenizer.digest if self.tokenizer else "uncalibrated"
        return f"pieces-{made}-{self.max_tokens}"

    def calibrate(self, column: Column) -> None:
        """Makes the vocabulary from public texts."""
        self.tokenizer = train_tokenizer(texts_of(column), self.vocabulary)

    def prepare(self, column: Column) -> Tensor:
        """n strings -> piece numbers int64 [n, max_tokens], 0 where there is none."""
        if self.tokenizer is None:
            raise ConfigError(
                f"{type(self).__name__} has no vocabulary yet; call calibrate with public texts"
            )
        return self.tokenizer.encode(texts_of(column), self.max_tokens)

    def _trim(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cuts padding that all rows share: [n, l] -> [n, longest], mask of the same shape."""
        mask = x != PAD
        longest = int(mask.sum(dim=1).max()) if len(x) else 1
        return x[:, :longest], mask[:, :longest]


class GRUText(_PieceText):
    """Texts through a gated recurrent network: its last states, Linear, PIE block if asked.

    Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014.
    """

    def __init__(
        self,
        width: Width = 64,
        hidden: Hidden = 64,
        embedding: Embedding = 64,
        layers: Annotated[int, Field(ge=1, le=8, description="stacked layers")] = 1,
        bidirectional: Annotated[bool, Field(description="read backwards too")] = True,
        pie: Pie = False,
        vocabulary: Vocabulary = 2048,
        max_tokens: MaxTokens = 32,
        dropout: Dropout = 0.0,
    ) -> None:
        super().__init__(width, vocabulary, embedding, max_tokens)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(embedding, hidden, layers, batch_first=True, bidirectional=bidirectional)
        self.directions = 2 if bidirectional else 1
        self.project = nn.Linear(hidden * self.directions, width)
        self.pie = PIE(embedding, width) if pie else None

    def forward(self, x: Tensor) -> Tensor:
        """Piece numbers [n, l] -> embedding [n, width], not normalised."""
        if not len(x):
            return self.project.weight.new_zeros(0, self.width)
        pieces, mask = self._trim(x)
        local = self.dropout(self.embedding(pieces))
        lengths = mask.sum(dim=1).cpu()
        packed = pack_padded_sequence(local, lengths, batch_first=True, enforce_sorted=False)
        _, states = self.gru(packed)
        last = states[-self.directions :].transpose(0, 1).flatten(1)
        whole: Tensor = self.project(self.dropout(last))
        if self.pie is not None:
            whole = self.pie(whole, local, mask)
        return whole


class TransformerText(_PieceText):
    """Texts through a small pre-norm transformer: mean of its outputs, Linear.

    Vaswani et al., "Attention Is All You Need", NeurIPS 2017.
    """

    def __init__(
        self,
        width: Width = 64,
        dim: Annotated[
            int, Field(ge=8, le=4096, multiple_of=8, description="size of its states")
        ] = 64,
        depth: Annotated[int, Field(ge=1, le=24, description="layers")] = 2,
        heads: Annotated[Literal[1, 2, 4, 8], Field(description="attention heads")] = 4,
        vocabulary: Vocabulary = 2048,
        max_tokens: MaxTokens = 32,
        dropout: Dropout = 0.0,
    ) -> None:
        super().__init__(width, vocabulary, dim, max_tokens)
        self.places = nn.Parameter(0.02 * torch.randn(max_tokens, dim))
        # nn.TransformerEncoder would start all its layers from copies of one.
        self.layers = nn.ModuleList(PackedLayer(dim, heads, 4 * dim, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, width)

    def forward(self, x: Tensor) -> Tensor:
        """Piece numbers [n, l] -> embedding [n, width], not normalised."""
        if not len(x):
            return self.project.weight.new_zeros(0, self.width)
        pieces, mask = self._trim(x)
        packing = Packing(mask)
        local = self.embedding(packing.pack(pieces)) + self.places.index_select(0, packing.places())
        for layer in self.layers:
            local = layer(local, packing)
        embedding: Tensor = self.project(packing.mean(self.norm(local)))
        return embedding
