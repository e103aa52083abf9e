"""Defences of a gradient before it leaves, and what an attacker makes of knowing them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from motet.audit.upload import Defence, DefenceName, Upload, last_layer, logits_of
from motet.core.errors import ConfigError

EPSILON = 1e-10


def add_noise(upload: Upload, relative: float, rng: torch.Generator) -> Upload:
    """Adds normal noise of standard deviation ``relative`` * ||g|| / sqrt(d) to every coordinate.

    With 1 the noise is as long as the gradient itself. d counts all coordinates together.
    """
    _check("noise", relative, relative >= 0, "a number of at least 0")
    values = upload.gradients.values()
    std = relative * float(_norm(upload.gradients)) / math.sqrt(sum(v.numel() for v in values))
    noisy = {
        name: value + std * torch.randn(value.shape, generator=rng).to(value)
        for name, value in upload.gradients.items()
    }
    text = f"noise of {relative:g} times the gradient's length"
    return _protected(upload, noisy, "noise", relative, text)


def clip(upload: Upload, bound: float = 4.0) -> Upload:
    """Shortens the gradient, as one vector, to a length of at most ``bound``."""
    _check("clipping", bound, bound > 0, "a positive number")
    shorter = _clipped(upload.gradients, bound)
    return _protected(upload, shorter, "clipping", bound, f"clipped to a length of {bound:g}")


def sparsify(upload: Upload, percentile: float) -> Upload:
    """Sets to 0, tensor by tensor, what is below this percentile (0..100) of its magnitudes."""
    _check("sparsification", percentile, 0 <= percentile <= 100, "a percentile in 0..100")
    kept = {name: _largest(value, percentile) for name, value in upload.gradients.items()}
    text = f"the smallest {percentile:g} % of every tensor are 0"
    return _protected(upload, kept, "sparsification", percentile, text)


def soteria(upload: Upload, percentile: float, pixels: Tensor) -> Upload:
    """Zeroes columns of the last layer's weight gradient whose units tell the most of the pixels.

    pixels: [B, C, H, W], the site's own pictures. Unit j of the last layer's input r is ranked by
    ||dr_j / dx|| / (|r_j| + 1e-10), summed over the batch; columns below the percentile (0..100)
    are zeroed. Costs one backward pass per unit. Sun et al., "Soteria", CVPR 2021.
    """
    _check("soteria", percentile, 0 <= percentile <= 100, "a percentile in 0..100")
    weight, _ = last_layer(upload)
    scores = _unit_scores(upload, weight.rpartition(".")[0], pixels)
    keep = scores >= float(np.percentile(scores.numpy(), percentile))
    changed = {**upload.gradients, weight: upload.gradients[weight] * keep}
    text = f"Soteria: {percentile:g} % of the last layer's columns are 0"
    return _protected(upload, changed, "soteria", percentile, text, weight)


def mirrored(
    defence: Defence | None, dummy: Mapping[str, Tensor], seen: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A candidate's gradient treated as the defence treated the one that is ``seen``.

    Clipping is done again; where sparsification and Soteria left zeros, the candidate's become 0.
    Noise cannot be mirrored. Differentiable in ``dummy``.
    """
    if defence is None:
        return dict(dummy)
    made = mirrored(defence.before, dummy, seen)
    if defence.name == "clipping":
        return _clipped(made, defence.amount)
    if defence.name == "sparsification":
        return {name: value * (seen[name] != 0) for name, value in made.items()}
    if defence.name == "soteria":
        filled = (seen[defence.only] != 0).any(dim=0)
        return {**made, defence.only: made[defence.only] * filled}
    return made


def _clipped(gradients: Mapping[str, Tensor], bound: float) -> dict[str, Tensor]:
    factor = (bound / _norm(gradients).clamp(min=EPSILON)).clamp(max=1.0)
    return {name: value * factor for name, value in gradients.items()}


def _norm(gradients: Mapping[str, Tensor]) -> Tensor:
    length: Tensor = torch.stack([value.norm() for value in gradients.values()]).norm()
    return length


def _largest(value: Tensor, percentile: float) -> Tensor:
    sizes = value.abs()
    # Numpy's percentile knows no largest size, torch's quantile stops at 16 million elements.
    bound = float(np.percentile(sizes.numpy(force=True), percentile))
    return torch.where(sizes >= bound, value, torch.zeros_like(value))


def _unit_scores(upload: Upload, layer: str, pixels: Tensor) -> Tensor:
    """How much each input unit of a layer tells of the pixels: [units]."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0])

    hook = upload.model.get_submodule(layer).register_forward_pre_hook(catch)
    try:
        leaf = pixels.detach().clone().requires_grad_()
        logits_of(upload.model, leaf, upload.mean, upload.std)
    finally:
        hook.remove()
    units = caught[0].flatten(1)
    scores = []
    for unit in units.unbind(dim=1):
        (slope,) = torch.autograd.grad(unit.sum(), leaf, retain_graph=True)
        scores.append((slope.flatten(1).norm(dim=1) / (unit.detach().abs() + EPSILON)).sum())
    return torch.stack(scores)


def _protected(
    upload: Upload,
    gradients: Mapping[str, Tensor],
    name: DefenceName,
    amount: float,
    text: str,
    only: str = "",
) -> Upload:
    defence = Defence(name, amount, text, upload.defence, only)
    return replace(upload, gradients=dict(gradients), defence=defence)


def _check(name: str, value: float, fits: bool, wanted: str) -> None:
    if not fits or not math.isfinite(value):
        raise ConfigError(f"the defence {name} takes {wanted}, not {value}")
