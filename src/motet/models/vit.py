"""A vision transformer of any size, from a toy to ViT-B, from scratch or pre-trained.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021: pre-norm blocks, learnt positions,
the class token is what is read.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.errors import ConfigError
from motet.models.options import Width
from motet.models.pixels import Channels, Mean, PixelEncoder, Side, Spread
from motet.models.pretrained import take_weights

Depth: TypeAlias = Annotated[int, Field(ge=1, le=64, description="number of blocks")]
Heads: TypeAlias = Annotated[int, Field(ge=1, le=64, description="attention heads per block")]
Grid: TypeAlias = Annotated[
    int, Field(ge=1, le=64, description="patches per row and per column; it divides the side")
]
Ratio: TypeAlias = Annotated[
    int, Field(ge=1, le=16, description="units of a block's MLP, as a multiple of the width")
]
Pretrained: TypeAlias = Annotated[
    str | None,
    Field(
        description="weights to begin with: plain or augmented (Fashion-MNIST's first 20,000 "
        "pictures, as they are or also turned and inverted), a safetensors file, or null"
    ),
]


class Attention(nn.Module):
    """Multi-head self-attention with a linear layer of its own for each of q, k and v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [n, t, d] -> [n, t, d]."""
        q, k, v = (self._split(layer(x)) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """[n, t, d] -> [n, heads, t, d / heads]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): tokens [n, t, d] -> [n, t, d]."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [n, t, d] -> [n, t, d]; any number of tokens will do."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Embedding(nn.Module):
    """Pictures [n, channels, side, side] -> tokens [n, 1 + grid**2, d]: class token, patches."""

    def __init__(self, width: int, grid: int, side: int, channels: int) -> None:
        super().__init__()
        patch = side // grid
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.cls = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        places = torch.empty(1, 1 + grid * grid, width)
        self.positions = nn.Parameter(nn.init.trunc_normal_(places, std=0.02))

    def forward(self, pixels: Tensor) -> Tensor:
        """The class token comes first; every token has its position added."""
        patches = self.patches(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(len(pixels), -1, -1), patches], dim=1) + self.positions


class VisionTransformer(nn.Module):
    """``embed``, then ``blocks`` one after the other, then ``norm``: pictures -> tokens [n, t, d].

    Whoever splits it, or puts tokens between class token and patches, uses these three.
    """

    def __init__(
        self,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        ratio: int = 2,
        grid: int = 4,
        side: int = 28,
        channels: int = 1,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"vit: width {width} is not a multiple of heads {heads}; change one")
        if side % grid:
            raise ConfigError(f"vit: side {side} is not a multiple of grid {grid}; change one")
        self.embed = Embedding(width, grid, side, channels)
        self.blocks = nn.ModuleList(Block(width, heads, ratio * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pictures [n, channels, side, side] -> normed tokens [n, 1 + grid**2, d]."""
        tokens = self.embed(pixels)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class ViT(PixelEncoder):
    """Pictures through a vision transformer of the model's width; its class token is embedded."""

    def __init__(
        self,
        width: Width = 64,
        depth: Depth = 4,
        heads: Heads = 4,
        ratio: Ratio = 2,
        grid: Grid = 4,
        side: Side = 28,
        channels: Channels = 1,
        mean: Mean = 0.5,
        std: Spread = 0.5,
        pretrained: Pretrained = None,
    ) -> None:
        super().__init__(side, channels, mean, std)
        self.width = width
        sizes = {"width": width, "depth": depth, "heads": heads, "ratio": ratio, "grid": grid}
        self.vit = VisionTransformer(**sizes, side=side, channels=channels)
        if pretrained is not None:
            seen = {"side": side, "channels": channels, "mean": mean, "std": std}
            take_weights(self.vit, pretrained, {**sizes, **seen})

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [n, channels, side, side] -> embedding [n, width], not normalised."""
        return self.vit(x)[:, 0]
