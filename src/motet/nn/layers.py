"""Layers that several encoders share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(inputs: int, hidden: int, width: int, dropout: float = 0.0) -> nn.Sequential:
    """One hidden layer with GELU: [n, inputs] -> [n, width]; dropout acts on the hidden layer."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, width),
    )


class PIE(nn.Module):
    """Adds to a global embedding what one attention head finds in the local features.

    r = sigmoid(Linear(softmax over positions (w2 tanh(w1 X))^T X)); out = LayerNorm(global + r).
    Song and Soleymani, "Polysemous Visual-Semantic Embedding for Cross-Modal Retrieval",
    CVPR 2019, with one head and inputs / 2 hidden units, as CreamFL uses it.

    inputs: size of a local feature. width: size of the global embedding.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        hidden = max(inputs // 2, 1)
        self.w1 = nn.Linear(inputs, hidden, bias=False)
        self.w2 = nn.Linear(hidden, 1, bias=False)
        self.project = nn.Linear(inputs, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, whole: Tensor, local: Tensor, mask: Tensor | None = None) -> Tensor:
        """Global [n, width] and local [n, positions, inputs] -> [n, width], not normalised.

        mask: bool [n, positions], true where there is something; every row needs one such.
        """
        scores = self.w2(torch.tanh(self.w1(local))).squeeze(-1)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = torch.softmax(scores, dim=1)
        found = torch.einsum("np,npi->ni", weights, local)
        out: Tensor = self.norm(whole + torch.sigmoid(self.project(found)))
        return out


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm over (at most) 8 groups: unlike batch norm, it has no statistics to average."""
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def channels_last(x: Tensor) -> Tensor:
    """A copy of pictures [n, c, h, w] that holds the c numbers of a cell one after the other.

    What follows keeps to it, and convolutions and pooling are faster so, above all in training.
    """
    # What torch.channels_last makes, but for one channel as well, and under vmap.
    rows = x.movedim(-3, -1).clone(memory_format=torch.contiguous_format)
    return rows.movedim(-1, -3)


class ReLU(nn.ReLU):
    """ReLU in the memory of its input, for what nobody else reads, such as a norm's output.

    A view it leaves alone: hooks of the layer before, such as those of Opacus, see their own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; the input itself where that may be."""
        return F.relu(x, inplace=not x._is_view())


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm beside a short cut: [n, c, h, w] -> [n, out, h', w'].

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (basic block).
    """

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = group_norm(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = group_norm(out)
        self.relu = ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, group_norm(out))

    def forward(self, x: Tensor) -> Tensor:
        """Feature map [n, channels, h, w] -> [n, out, h / stride, w / stride]."""
        y = self.relu(self.norm1(self.conv1(x)))
        # The sum is nobody else's either.
        y = self.norm2(self.conv2(y)) + self.shortcut(x)
        return self.relu(y)


def masked_mean(local: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions where mask [n, positions] is true: [n, positions, d] -> [n, d]."""
    weights = mask.unsqueeze(-1).to(local.dtype)
    return (local * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
