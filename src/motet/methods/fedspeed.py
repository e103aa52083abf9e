"""FedSpeed: FedDyn's local objective with a gradient that looks a step uphill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from motet.core import Batch, ConfigError, Facts
from motet.methods.feddyn import DualSampled
from motet.methods.local import LocalSGD, classify


class FedSpeed(DualSampled):
    """A proximal term whose bias a dual vector cancels, and gradients from a small ascent step.

    Paper: Sun, Shen, Huang, Ding, Tao, "FedSpeed: Larger Local Interval, Less Communication
    Round, and Higher Generalization Accuracy", ICLR 2023, arXiv 2302.10429.

    Travels: the model's weights down and up. The dual vectors stay at the sites.

    Use: many local steps between exchanges, sites that differ in their labels, deep models.

    Avoid: computation is scarce: every step goes twice through its batch.

    Deviations: as in the official code, the hub adds the mean of the dual vectors of all sites,
    also of those that are not active, and the clip acts on gradient and constant part of the
    drift. Statistics of batch norm are those of the first pass.
    """

    local: LocalSGD = LocalSGD(
        lr=0.1, epochs=5, batch=50, weight_decay=1e-3, clip=10.0, decay=0.998
    )
    mu: float = Field(0.1, ge=0, description="weight of the drift term, 1 / lambda of the paper")
    rho: float = Field(0.1, ge=0, description="length of the ascent step, over all parameters")
    alpha: float = Field(1.0, ge=0, le=1, description="share of the second gradient in the mix")

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if self.mu == 0 and self.dual != "none":
            raise ConfigError(
                "FedSpeed without a drift term (mu: 0) has nothing to correct: set "
                "method.dual: none, or mu above 0"
            )

    @property
    def strength(self) -> float:
        """The weight of the drift term."""
        return self.mu

    def gradient(self, model: nn.Module, batch: Batch) -> None:
        """Mixes the gradient with that of the same batch a small step uphill, in place."""
        if self.alpha == 0 or self.rho == 0:
            return
        learned = [value for value in model.parameters() if value.grad is not None]
        first = [value.grad for value in learned if value.grad is not None]
        kept = [value.detach().clone() for value in learned]
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        with torch.no_grad():
            for value, step in zip(learned, ascent(first, self.rho), strict=True):
                value.add_(step)
        second = torch.autograd.grad(classify(model, batch), learned)
        restore(model, learned, kept, buffers)
        for value, mixed in zip(learned, mix(first, second, self.alpha), strict=True):
            value.grad = mixed


@torch.no_grad()
def restore(
    model: nn.Module,
    learned: Sequence[nn.Parameter],
    kept: Sequence[Tensor],
    buffers: Mapping[str, Tensor],
) -> None:
    """Puts parameters and buffers back, exactly as they were before the ascent step."""
    for value, old in zip(learned, kept, strict=True):
        value.copy_(old)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def ascent(gradients: Sequence[Tensor], rho: float) -> list[Tensor]:
    """The step of length ``rho`` along the gradients, whose norm is taken over all together."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    return [gradient * (rho / (norm + 1e-7)) for gradient in gradients]


def mix(first: Sequence[Tensor], second: Sequence[Tensor], alpha: float) -> list[Tensor]:
    """(1 - alpha) * first + alpha * second, tensor by tensor."""
    return [torch.lerp(a, b, alpha) for a, b in zip(first, second, strict=True)]
