"""Which part of a model a method trains and sends: a piece that any method can take."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import torch
from pydantic import Field
from torch import nn

from motet.core import ConfigError
from motet.core.groups import HEAD, frozen_names
from motet.methods.parts import Part
from motet.nn.peft import (
    Prototype,
    add_adapters,
    add_lora,
    add_prompts,
    freeze_all_but,
    train_biases,
)


class Tuning(Part):
    """A small trained part of an otherwise frozen model; the class head is always of it."""

    prototype: Prototype = Field(
        "bias",
        description="full: everything; head: only the class head; bias: the biases; adapter: a "
        "bottleneck after each block's MLP; prompt: learnt tokens at each block; lora: low-rank "
        "terms of q and v",
    )
    bottleneck: int = Field(8, ge=1, description="units of an adapter")
    tokens: int = Field(10, ge=1, description="prompt tokens per block")
    rank: int = Field(8, ge=1, description="rank of the LoRA terms")
    alpha: int = Field(16, ge=1, description="LoRA scale; its terms count alpha / rank times")

    def apply(self, model: nn.Module) -> nn.Module:
        """Freezes the model but for the part, which is put in; the model itself, changed.

        Raises ConfigError for a model without a class head, or into which the part does not fit.
        """
        if self.prototype == "full":
            return model
        if getattr(model, HEAD, None) is None:
            raise ConfigError(
                f"prototype {self.prototype} trains the class head, and the model has none; write "
                "classify: true at the recipe's top (hub) and in each population"
            )
        freeze_all_but(model, HEAD)
        encoders: Any = model.encoders
        for encoder in encoders.values():
            self._put_into(encoder)
        return model

    def _put_into(self, encoder: nn.Module) -> None:
        if self.prototype == "bias":
            train_biases(encoder)
        elif self.prototype == "adapter":
            add_adapters(encoder, self.bottleneck)
        elif self.prototype == "prompt":
            add_prompts(encoder, self.tokens)
        elif self.prototype == "lora":
            add_lora(encoder, self.rank, self.alpha)


def frozen_digest(model: nn.Module) -> str:
    """A hash of everything frozen in a model, names and values: 16 hex digits."""
    state = model.state_dict()
    found = blake2b(digest_size=8)
    for name in sorted(frozen_names(model) & state.keys()):
        found.update(name.encode())
        # Byte by byte: numpy knows no bfloat16.
        found.update(state[name].contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
