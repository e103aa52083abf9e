"""The subspace of a layer's inputs: sketched at the sites, kept at the hub, and left alone.

Bakman, Yaldiz, Ezzeldin, Avestimehr, ICLR 2024. Inputs are columns: of a linear layer the vectors
that it reads, of a convolution all patches, unfolded. d is their length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.batch import Batch
from motet.core.errors import ConfigError
from motet.core.groups import frozen_names
from motet.core.learner import evaluating

Draw: TypeAlias = Literal["normal", "uniform"]
Layers: TypeAlias = dict[str, nn.Linear | nn.Conv2d]


def layers_of(model: nn.Module) -> Layers:
    """Name of its weight -> every linear layer and convolution that is trained."""
    frozen = frozen_names(model)
    found = {
        f"{path}.weight".lstrip("."): part
        for path, part in model.named_modules()
        if isinstance(part, nn.Linear | nn.Conv2d)
    }
    return {name: part for name, part in found.items() if name not in frozen}


def columns_of(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """What a layer reads, as columns [d, n]: n rows, or all patches of n pictures.

    x: [..., d] for a linear layer, [n, channels, H, W] for a convolution. Of a grouped
    convolution all groups' patches are columns. d is the length of a row of the flat weight.
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1]).T
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise ConfigError("inputs of a convolution are unfolded for padding with zeros, in numbers")
    patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    grouped = patches.reshape(len(x) * layer.groups, -1, patches.shape[-1])
    return grouped.transpose(0, 1).flatten(1)


def without(basis: Tensor | None, columns: Tensor) -> Tensor:
    """The columns [d, n] minus their part in the span of an orthonormal basis [d, r]."""
    return columns if basis is None else columns - basis @ (basis.T @ columns)


def projected(update: Tensor, basis: Tensor | None) -> Tensor:
    """An update [out, ...] of a weight without what it does to inputs in the span: D (I - U U^T).

    The side that is projected is that of the inputs. basis: [d, r], d the length of a flat row.
    """
    if basis is None:
        return update
    return without(basis, update.flatten(1).T).T.reshape(update.shape)


@dataclass
class Sketch:
    """A random sketch of one layer's inputs, gathered batch by batch.

    total: [d, s], (columns without the basis) @ G. inside, whole: squared norms of the columns
    without the basis and of all.
    """

    total: Tensor
    basis: Tensor | None
    rng: torch.Generator
    draw: Draw = "normal"
    inside: float = 0.0
    whole: float = 0.0

    def add(self, columns: Tensor) -> None:
        """Takes in columns [d, n]; G [n, s] is drawn afresh."""
        rest = without(self.basis, columns)
        size = (rest.shape[1], self.total.shape[1])
        if self.draw == "uniform":
            random = 2 * torch.rand(size, generator=self.rng) - 1
        else:
            random = torch.randn(size, generator=self.rng)
        self.total = self.total + rest @ random.to(rest)
        self.inside += float(rest.double().square().sum())
        self.whole += float(columns.double().square().sum())

    @property
    def ratio(self) -> float:
        """Norm without the basis over norm of all, NOT squared; 1 without a basis."""
        if self.basis is None or not self.whole:
            return 1.0
        return float((self.inside / self.whole) ** 0.5)


def sketch_inputs(
    model: nn.Module,
    batches: Iterable[Batch],
    bases: Mapping[str, Tensor],
    rng: torch.Generator,
    *,
    size: float = 1.0,
    draw: Draw = "normal",
) -> dict[str, Sketch]:
    """Weight name -> sketch of what the layer reads, in one pass in eval mode without gradients.

    bases: weight name -> orthonormal basis [d, r] of earlier inputs, taken out of the columns.
    size: columns of a sketch per length of the inputs. The layers draw from ``rng`` in turn.
    """
    found: dict[str, Sketch] = {}
    hooks = []

    def gather(sketch: Sketch, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        sketch.add(columns_of(layer, inputs[0]))

    for name, layer in layers_of(model).items():
        length = layer.weight[0].numel()
        total = layer.weight.new_zeros(length, max(round(size * length), 1)).detach()
        found[name] = Sketch(total, bases.get(name), rng, draw)
        hooks.append(layer.register_forward_pre_hook(partial(gather, found[name])))
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def threshold(ratio: float, keep: float) -> float:
    """The share of a sketch's energy that new directions must exceed: (rho - (1 - eps)) / rho.

    ratio: rho, norm of the inputs outside the old basis over norm of all, not squared. keep: eps.
    0 or less where little is left to learn.
    """
    return (ratio - (1 - keep)) / ratio if ratio > 0 else 0.0


def rank_for(singular: Tensor, share: float) -> int:
    """The smallest k whose largest singular values hold MORE than this share of the energy.

    singular: [m], in falling order. At least 1, however little is asked for; 0 where all is 0.
    """
    energy = singular.double().square()
    total = float(energy.sum())
    if total == 0:
        return 0
    enough = energy.cumsum(0) / total > share
    return int(enough.int().argmax()) + 1 if bool(enough.any()) else len(singular)


def grown(basis: Tensor | None, sketch: Tensor, ratio: float, keep: float) -> Tensor:
    """The basis with the main directions of a sketch added, orthonormal: [d, r + k].

    basis: [d, r] or None. sketch: [d, s], sum of the sites' sketches. ratio: see ``threshold``.
    keep: eps in 0..1. Never more than d columns.
    """
    old = sketch.new_zeros(len(sketch), 0) if basis is None else basis
    left, singular, _ = torch.linalg.svd(sketch.double(), full_matrices=False)
    count = min(rank_for(singular, threshold(ratio, keep)), len(sketch) - old.shape[1])
    # In double precision: what is projected out twice must be gone the first time.
    both = torch.cat([old.double(), left[:, :count]], dim=1)
    return torch.linalg.qr(both).Q.to(sketch.dtype)
