"""Parameter-efficient fine-tuning: what is put into a frozen transformer, and how much it weighs.

A transformer is any module with ``blocks`` (each with ``attention.q``, ``attention.v`` and ``mlp``,
tokens [n, t, d] -> [n, t, d], class token first) and a final ``norm``.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from motet.core.errors import ConfigError
from motet.core.groups import freeze

Prototype: TypeAlias = Literal["full", "head", "bias", "adapter", "prompt", "lora"]
PROJECTIONS = r".*blocks\.\d+\.attention\.(q|v)"


class Adapter(nn.Module):
    """A residual bottleneck: h + up(GELU(down(h))), up = 0 at first, so that it changes nothing.

    Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019.
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        """[n, t, d] -> [n, t, d]."""
        return h + self.up(nn.functional.gelu(self.down(h)))


class Prompted(nn.Module):
    """A block that sees ``tokens`` learnt tokens of its own between class token and patches.

    They are dropped at its output, so the next block's take their place. Jia et al., "Visual
    Prompt Tuning", ECCV 2022, the deep variant.
    """

    def __init__(self, block: nn.Module, width: int, tokens: int) -> None:
        super().__init__()
        self.block = block
        bound = (6 / (2 * width)) ** 0.5
        self.prompt = nn.Parameter(torch.empty(tokens, width).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, d] -> [n, t, d]."""
        prompt = self.prompt.expand(len(x), -1, -1)
        out = self.block(torch.cat([x[:, :1], prompt, x[:, 1:]], dim=1))
        return torch.cat([out[:, :1], out[:, 1 + len(self.prompt) :]], dim=1)


def freeze_all_but(model: nn.Module, kept: str) -> None:
    """Fixes every child of the model but the one of this name, buffers included."""
    for name, child in model.named_children():
        if name != kept:
            freeze(child)


def train_biases(module: nn.Module) -> None:
    """Has all biases of a frozen module trained; it stays in eval mode, its buffers fixed."""
    for name, value in module.named_parameters():
        if name.rsplit(".", 1)[-1] == "bias":
            value.requires_grad_(True)


def add_adapters(module: nn.Module, bottleneck: int) -> None:
    """Puts an adapter after the MLP of every block, before the MLP's residual sum."""
    for transformer in transformers_in(module):
        width = _width(transformer)
        for block in transformer.blocks:
            block.mlp = nn.Sequential(block.mlp, Adapter(width, bottleneck))


def add_prompts(module: nn.Module, tokens: int) -> None:
    """Gives every block prompt tokens of its own."""
    for transformer in transformers_in(module):
        width = _width(transformer)
        prompted = [Prompted(block, width, tokens) for block in transformer.blocks]
        transformer.blocks = nn.ModuleList(prompted)


def add_lora(module: nn.Module, rank: int, alpha: int) -> None:
    """Adds B A * alpha / rank to the q and v projections of every block, B = 0 at first.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, by the package
    peft; raises ConfigError where it is missing.
    """
    transformers_in(module)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError(
            'prototype lora needs the package peft; write pip install "motet[peft]"'
        ) from None
    wanted: Any = LoraConfig(r=rank, lora_alpha=alpha, target_modules=PROJECTIONS)
    inject_adapter_in_model(wanted, module)


def transformers_in(module: nn.Module) -> list[Any]:
    """The transformers inside a module; raises ConfigError when there is none."""
    found = [
        part
        for part in module.modules()
        if isinstance(getattr(part, "blocks", None), nn.ModuleList) and hasattr(part, "norm")
    ]
    if not found:
        raise ConfigError(
            "prototypes adapter, prompt and lora need a transformer of blocks, and the model has "
            "none; take the encoder vit, or the prototype bias or head"
        )
    return found


def _width(transformer: Any) -> int:
    return int(transformer.norm.normalized_shape[0])


def trainable_values(
    prototype: Prototype,
    *,
    width: int = 768,
    depth: int = 12,
    ratio: int = 4,
    patches: int = 196,
    pixels: int = 768,
    classes: int = 100,
    bottleneck: int = 8,
    tokens: int = 10,
    rank: int = 8,
) -> int:
    """How many numbers travel each way per site and round; by default ViT-B/16 with 100 classes.

    ratio: units of a block's MLP by width. patches: per picture. pixels: numbers per patch.
    """
    head = classes * (width + 1)
    if prototype == "full":
        layers = 4 * (width**2 + width) + (2 * ratio * width**2 + (ratio + 1) * width)
        embedding = width * (pixels + 1) + width * (patches + 2)
        return embedding + depth * (layers + 4 * width) + 2 * width + head
    added = {
        "head": 0,
        # Per block q, k, v, out, two norms and the MLP; then the final norm and the patches.
        "bias": depth * (4 + 2 + ratio + 1) * width + 2 * width,
        "adapter": depth * (2 * width * bottleneck + bottleneck + width),
        "prompt": depth * tokens * width,
        "lora": depth * 2 * (2 * width * rank),
    }
    return head + added[prototype]
