"""Differential privacy's mechanisms on tensors: clip, noise, and answers given by chance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from motet.core.errors import ConfigError
from motet.core.secret import Concealed


def clipped(updates: Tensor, bound: float) -> Tensor:
    """Updates [n, d], each shortened to an L2 norm of at most ``bound``: [n, d].

    One that is not finite counts as 0, so that nobody moves a sum by more than the bound.
    """
    norms = updates.norm(dim=1, keepdim=True)
    shares = (bound / norms).clamp(max=1).where(norms.isfinite(), 0.0)
    return updates.nan_to_num(0.0, 0.0, 0.0) * shares


def noised(values: Tensor, std: float, rng: torch.Generator) -> Tensor:
    """The values plus independent normal noise of standard deviation ``std``; as they are for 0."""
    if not std:
        return values
    # Halves are noised in float32: their own grid is coarser than a small noise.
    wide = values if values.dtype == torch.float64 else values.float()
    if isinstance(rng, Concealed):
        drawn = rng.normal(wide).to(wide.dtype)
    else:
        drawn = torch.randn(wide.shape, generator=rng, dtype=wide.dtype)
    return (wide + std * drawn).to(values.dtype)


def private_sum(updates: Tensor, bound: float, noise: float, rng: torch.Generator) -> Tensor:
    """The sum of the clipped updates [n, d] plus N(0, (noise * bound)^2), once: [d].

    No updates at all give the noise alone. Without one of the updates the sum would be off by
    ``bound`` at most. McMahan et al., ICLR 2018.
    """
    return noised(clipped(updates, bound).sum(dim=0), noise_size(bound, noise), rng)


def private_mean(
    updates: Tensor, bound: float, noise: float, cohort: float, rng: torch.Generator
) -> Tensor:
    """The sum of the clipped updates [n, d] plus N(0, (noise * bound)^2), over ``cohort``: [d].

    cohort: how many were asked, a constant however many answered, so that the noise covers any
    one of them. The noise of a value does not depend on d; the noise's norm grows with its root,
    which is why small updates fare well. McMahan et al., ICLR 2018.
    """
    return private_sum(updates, bound, noise, rng) / cohort


def private_rows(rows: Tensor, bound: float, noise: float, rng: torch.Generator) -> Tensor:
    """Rows [n, ...], each clipped to an L2 norm of ``bound`` and noised by itself: [n, ...].

    Every row is a release of its own with noise multiplier ``noise``.
    """
    wide = rows if rows.dtype == torch.float64 else rows.float()
    short = clipped(wide.reshape(len(rows), math.prod(rows.shape[1:])), bound)
    return noised(short, noise_size(bound, noise), rng).view_as(rows).to(rows.dtype)


def noise_size(bound: float, noise: float) -> float:
    """Standard deviation of noise with this multiplier on a sum of this sensitivity."""
    # Without noise the bound may be infinite, and 0 times that is not a number.
    return noise * bound if noise else 0.0


def update_noise(noise: float, bits: float) -> float:
    """The updates' noise multiplier z_delta that, beside noised counts, costs as much as ``noise``.

    bits: standard deviation of the noise on the count of updates within the bound; a count of
    halves (+1/2 or -1/2) has a multiplier of 2 * bits. Andrew et al., NeurIPS 2021, theorem 1.
    Raises ConfigError where the counts alone cost more than ``noise`` allows.
    """
    if not noise:
        return 0.0
    if 2 * bits <= noise:
        raise ConfigError(
            f"adaptive.bits_noise={bits:g} spends more than noise={noise:g} allows; write more "
            f"than {noise / 2:g}"
        )
    return float((noise**-2 - (2 * bits) ** -2) ** -0.5)


def next_bound(
    bound: float,
    within: Tensor,
    cohort: float,
    *,
    quantile: float,
    rate: float,
    bits: float,
    rng: torch.Generator,
) -> float:
    """The bound after one step towards the ``quantile`` of the updates' norms.

    within: bool [n], whether each update's norm was at most ``bound``. cohort: how many were
    asked. bits: standard deviation of the noise on their count. Andrew et al., NeurIPS 2021.
    """
    # Halves about 0, since one site then moves the count by 1/2 and not by 1.
    count = (within.double() - 0.5).sum()
    share = float(noised(count, bits, rng)) / cohort + 0.5
    return bound * math.exp(-rate * (share - quantile))


def response_chance(epsilon: float, choices: int) -> float:
    """With which probability an answer is drawn from all ``choices`` alike, for this epsilon."""
    if not math.isfinite(epsilon):
        return 0.0
    return choices / (math.expm1(epsilon) + choices)


def randomised(votes: Tensor, choices: int, epsilon: float, rng: torch.Generator) -> Tensor:
    """Votes from 0 to ``choices`` - 1, each by chance replaced by any of the choices: same shape.

    Randomised response: any two votes of one voter are told apart with exactly ``epsilon`` (and a
    delta of 0). Warner, JASA 1965; for more than two choices Kairouz et al., ICML 2016. Raises
    ConfigError for a vote that is not among the choices.
    """
    if votes.is_floating_point() or votes.dtype == torch.bool:
        raise ConfigError(f"votes are whole numbers, not {votes.dtype}")
    if votes.numel() and not 0 <= int(votes.min()) <= int(votes.max()) < choices:
        raise ConfigError(
            f"votes go from 0 to {choices - 1}, and these from {int(votes.min())} to "
            f"{int(votes.max())}; set vote_choices to the number of things to choose from"
        )
    if isinstance(rng, Concealed):
        drawn = (rng.uniform(votes, "answer") * choices).long()
        luck = rng.uniform(votes, "whether")
    else:
        drawn = torch.randint(choices, votes.shape, generator=rng, dtype=torch.int64)
        luck = torch.rand(votes.shape, generator=rng)
    replaced = luck < response_chance(epsilon, choices)
    return torch.where(replaced, drawn.to(votes.dtype), votes)


def unbiased_counts(counts: Tensor, epsilon: float) -> Tensor:
    """What the counts [..., choices] of randomised votes were before it, on average: float64.

    Single ones may come out negative, and all still add up to the number of votes.
    """
    wide = counts.double()
    choices = counts.shape[-1]
    chance = response_chance(epsilon, choices)
    return (wide - wide.sum(dim=-1, keepdim=True) * chance / choices) / (1 - chance)
