"""A subword tokenizer made from the data: frequent words whole, rare ones in pieces.

Byte-level byte-pair encoding: Sennrich et al., "Neural Machine Translation of Rare Words with
Subword Units", ACL 2016. Bytes are the last resort, so no text in any language is unknown.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from motet.core.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

PAD = 0
START = 1


class Tokenizer:
    """Strings -> rows of piece numbers; ``train_tokenizer`` makes one."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.digest = hashlib.blake2b(backend.to_str().encode(), digest_size=6).hexdigest()

    @property
    def size(self) -> int:
        """Number of pieces, padding and start mark included."""
        return self._backend.get_vocab_size()

    def pieces(self, text: str) -> list[str]:
        """The pieces of one text, without the start mark; bytes above ASCII look garbled."""
        tokens: list[str] = self._backend.encode(text).tokens
        return tokens

    def encode(self, texts: tuple[str, ...], max_tokens: int) -> Tensor:
        """n strings -> int64 [n, max_tokens]: start mark, pieces, padding (0)."""
        out = torch.full((len(texts), max_tokens), PAD, dtype=torch.int64)
        for row, found in zip(out, self._backend.encode_batch(list(texts)), strict=True):
            ids = [START, *found.ids[: max_tokens - 1]]
            row[: len(ids)] = torch.tensor(ids)
        return out


@lru_cache(maxsize=4)
def train_tokenizer(texts: tuple[str, ...], vocabulary: int) -> Tokenizer:
    """The tokenizer of these texts, of at most ``vocabulary`` pieces (256 of them bytes).

    Deterministic. Raises ConfigError where the package ``tokenizers`` is missing.
    """
    try:
        from tokenizers import Tokenizer as Backend
        from tokenizers import models, normalizers, pre_tokenizers, trainers
    except ImportError:
        raise ConfigError(
            'texts in pieces need the package tokenizers; write pip install "motet[text]"'
        ) from None
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    # Plain BPE, not WordPiece: the latter numbers its pieces in an order that varies by process.
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=["<pad>", "<start>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)
