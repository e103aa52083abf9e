"""Edge-popup: networks whose random weights never change, and whose edges are kept or cut.

Ramanujan, Wortsman, Kembhavi, Farhadi, Rastegari, "What's Hidden in a Randomly Weighted Neural
Network?", CVPR 2020.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.errors import ConfigError
from motet.core.groups import BATCH_NORMS, freeze

ScoreKey: TypeAlias = Literal["abs", "identity"]


def kept_edges(count: int, keep: float) -> int:
    """How many of ``count`` edges stay: count - floor((1 - keep) * count)."""
    # 0.3 of 10 edges cut are 3, and not the 2 of 2.9999999999999996.
    return count - math.floor(round((1 - keep) * count, 9))


def top_mask(key: Tensor, count: int) -> Tensor:
    """1 for the ``count`` largest entries of ``key`` (any shape), else 0, as floats of its shape.

    Of equal entries the later ones are kept, as a stable ascending sort would have it.
    """
    flat = key.flatten()
    if not 1 <= count <= len(flat):
        raise ValueError(f"{count} of {len(flat)} entries cannot be kept")
    # A threshold is found ten times as fast as the whole order, and by NumPy fastest.
    at = len(flat) - count
    if flat.is_cpu:
        least = flat.new_tensor(np.partition(flat.detach().numpy(), at)[at])
    else:
        least = flat.kthvalue(at + 1).values
    mask = flat >= least
    surplus = int(mask.sum()) - count
    if surplus:
        mask[(flat == least).nonzero().flatten()[:surplus]] = False
    return mask.view_as(key).to(key.dtype)


class _Binarise(torch.autograd.Function):
    """``top_mask``, with the gradient passed on as it is."""

    @staticmethod
    def forward(ctx: Any, key: Tensor, count: int) -> Tensor:
        return top_mask(key, count)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def edge_mask(scores: Tensor, count: int, key: ScoreKey) -> Tensor:
    """The mask of the ``count`` edges of largest |score| ("abs") or score ("identity").

    The gradient of the mask is that of the key: with "abs" it takes the sign of the score, so
    that an edge which should go moves towards 0 from either side.
    """
    values = scores.abs() if key == "abs" else scores
    mask: Tensor = _Binarise.apply(values, count)  # type: ignore[no-untyped-call]
    return mask


class Masked(nn.Module):
    """A linear layer or convolution with frozen weights of one size, of which a mask cuts some.

    layer: gives the shape and settings; its weights are drawn anew, +-sqrt(2 / inputs per unit),
    and it loses its bias. Its ``levels`` are the initial scores in ascending order, from
    U(-1 / sqrt(inputs), 1 / sqrt(inputs)). Weights and levels never travel: whoever draws from
    the same seed has them. keep: share of the edges that stay.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, keep: float, key: ScoreKey) -> None:
        super().__init__()
        shape = layer.weight.shape
        inputs = layer.weight[0].numel()
        sign = torch.where(torch.rand(shape) < 0.5, -1.0, 1.0)
        self.scores = nn.Parameter((2 * torch.rand(shape) - 1) / math.sqrt(inputs))
        layer.weight = nn.Parameter(sign * math.sqrt(2 / inputs))
        layer.bias = None
        layer.register_buffer("levels", self.scores.detach().flatten().sort().values)
        self.edges = freeze(layer)
        self.count = kept_edges(shape.numel(), keep)
        self.key: ScoreKey = key

    @property
    def levels(self) -> Tensor:
        """The initial scores in ascending order, [edges]."""
        found = self.edges.levels
        assert isinstance(found, Tensor)
        return found

    def ranking(self) -> Tensor:
        """Numbers of the edges from least to most important: int64 [edges]."""
        return self.scores.detach().flatten().argsort(stable=True)

    def adopt(self, order: Tensor) -> None:
        """Gives the edges of ``order`` (int64 [edges]) the initial scores, in ascending order."""
        with torch.no_grad():
            self.scores.view(-1)[order] = self.levels

    def forward(self, x: Tensor) -> Tensor:
        """What the layer makes of [n, ...] with its cut edges at 0."""
        weight = self.edges.weight * edge_mask(self.scores, self.count, self.key)
        if isinstance(self.edges, nn.Linear):
            return F.linear(x, weight)
        return self.edges._conv_forward(x, weight, None)


def mask_layers(model: nn.Module, keep: float, key: ScoreKey) -> nn.Module:
    """The model with ``Masked`` in place of its linear layers and convolutions, in place.

    Norms lose what they learn and the statistics that they keep. Draws from torch's default
    generator, layer by layer. Raises ConfigError for a model that learns other weights too, or
    has no layer to mask.
    """
    for name, child in list(model.named_modules())[1:]:
        new = _replaced(child, keep, key)
        if new is not None:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, new)
    ours = {f"{name}.scores" for name in masked_layers(model)}
    others = [
        name for name, value in model.named_parameters() if value.requires_grad and name not in ours
    ]
    if others or not ours:
        listed = ", ".join(others[:4]) or "none"
        raise ConfigError(
            "edges can be cut in linear layers and convolutions alone, and the model's other "
            f"weights are {listed}; choose encoders made of such layers (pixel-mlp, cnn)"
        )
    return model


def _replaced(module: nn.Module, keep: float, key: ScoreKey) -> nn.Module | None:
    """What stands in place of this very module; None where it may stay."""
    # Subclasses use their weights in ways of their own, and what is frozen is somebody's trunk.
    if type(module) in (nn.Linear, nn.Conv2d):
        assert isinstance(module, nn.Linear | nn.Conv2d)
        return Masked(module, keep, key) if module.weight.requires_grad else None
    if isinstance(module, BATCH_NORMS):
        settings: dict[str, Any] = {"affine": False, "track_running_stats": False}
        return type(module)(module.num_features, module.eps, **settings)
    if type(module) is nn.GroupNorm:
        return nn.GroupNorm(module.num_groups, module.num_channels, module.eps, affine=False)
    if type(module) is nn.LayerNorm:
        return nn.LayerNorm(module.normalized_shape, module.eps, elementwise_affine=False)
    return None


def masked_layers(model: nn.Module) -> dict[str, Masked]:
    """Name -> masked layer, in the model's order."""
    return {name: part for name, part in model.named_modules() if isinstance(part, Masked)}
