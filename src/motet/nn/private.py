"""The mean of updates with differential privacy, whose unit is one whole update."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped(updates: Tensor, bound: float) -> Tensor:
    """Updates [n, d], each shortened to an L2 norm of at most ``bound``: [n, d].

    One that is not finite counts as 0, so that nobody moves a sum by more than the bound.
    """
    norms = updates.norm(dim=1, keepdim=True)
    shares = (bound / norms).clamp(max=1).where(norms.isfinite(), 0.0)
    return updates.nan_to_num(0.0, 0.0, 0.0) * shares


def private_mean(
    updates: Tensor, bound: float, noise: float, cohort: int, rng: torch.Generator
) -> Tensor:
    """The sum of the clipped updates [n, d] plus N(0, (noise * bound)^2), over ``cohort``: [d].

    cohort: how many were asked, a constant however many answered, so that the noise covers any
    one of them. The noise of a value does not depend on d; the noise's norm grows with its root,
    which is why small updates fare well. McMahan et al., ICLR 2018.
    """
    total = clipped(updates, bound).sum(dim=0)
    drawn = torch.randn(total.shape, generator=rng, dtype=total.dtype)
    return (total + noise * bound * drawn) / cohort
