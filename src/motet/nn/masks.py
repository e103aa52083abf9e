"""Masks that multiply a model's weights, entry by entry, and what holds both of them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from motet.core.groups import group


class Mask(nn.Module):
    """A factor for every entry of a weight, 1 at first; in evaluation small ones count as 0."""

    def __init__(self, weight: Tensor, prune: float = 0.0) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.ones_like(weight))
        self.prune = prune

    def forward(self, weight: Tensor) -> Tensor:
        """weight * mask, of the weight's shape."""
        if self.training:
            return weight * self.mask
        return weight * self.mask.where(self.mask.abs() >= self.prune, 0.0)


def add_masks(model: nn.Module, prune: float = 0.0) -> nn.Module:
    """The same model with a mask on every trained matrix; biases have none.

    prune: entries of a mask smaller than this are 0 in eval mode.
    """
    for module in list(model.modules()):
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim > 1 and weight.requires_grad:
            parametrize.register_parametrization(module, "weight", Mask(weight, prune))
    return model


def masks_of(model: nn.Module) -> list[Tensor]:
    """Every mask of the model."""
    return [module.mask for module in model.modules() if isinstance(module, Mask)]


def all_but_masks(model: nn.Module) -> frozenset[str]:
    """Names of the parameters and buffers that may change, without the masks."""
    owners = [name for name, module in model.named_modules() if isinstance(module, Mask)]
    return group(model, "all") - {f"{owner}.mask" for owner in owners}


def mean_size(masks: Sequence[Tensor]) -> Tensor:
    """Mean of |m| over all entries of all masks; 0 without any."""
    return torch.cat([mask.flatten() for mask in masks]).abs().mean() if masks else torch.zeros(())


def distance(model: nn.Module, received: Mapping[str, Tensor]) -> Tensor:
    """Sum over received tensors of the model's Euclidean distance to them, not squared.

    With a gradient into the model's weights, which is 0 where they are as received.
    """
    own = dict(model.named_parameters())
    parts = [torch.linalg.vector_norm(own[name] - value) for name, value in received.items()]
    return torch.stack(parts).sum()
