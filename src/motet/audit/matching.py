"""How far a candidate's gradient is from the one that was sent, and the best candidate so far."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from motet.audit.defences import mirrored
from motet.audit.scores import matched, psnr
from motet.audit.upload import Upload, gradients_of

TINY = 1e-12


class Point(NamedTuple):
    """One candidate: gradients taken so far, stage, its distance, PSNR of the best if known."""

    evaluations: int
    stage: int
    distance: float
    psnr: float | None = None


@dataclass(frozen=True, eq=False)
class Inversion:
    """What an attack found.

    pictures: [B, C, H, W] in 0..1. labels: int64 [B]. distance: the attack's own matching score of
    them: 1 - cosine, or for dlg and idlg the squared distance. evaluations: gradients taken.
    history: every candidate, in order.
    """

    pictures: Tensor
    labels: Tensor
    distance: float
    evaluations: int
    history: tuple[Point, ...]


class Match:
    """Scores candidates against the upload, counts what that costs, and keeps the best."""

    def __init__(
        self,
        upload: Upload,
        budget: int,
        measure: Literal["cosine", "squared"],
        truth: Tensor | None,
    ) -> None:
        self.upload = replace(upload, model=copy.deepcopy(upload.model).eval())
        for name, value in self.upload.model.named_parameters():
            value.requires_grad_(name in upload.gradients)
        seen = {name: value.detach().float() for name, value in upload.gradients.items()}
        self._seen = seen
        self._target = mirrored(upload.defence, seen, seen)
        self._measure = cosine_distance if measure == "cosine" else squared_distance
        self._truth = truth
        self._cost = 1 if upload.local is None else upload.local.steps
        self._budget = budget
        self._used = 0
        self._best: tuple[float, Tensor, Tensor] | None = None
        self._psnr: float | None = None
        self._history: list[Point] = []

    @property
    def left(self) -> int:
        """How many more candidates can be scored."""
        return (self._budget - self._used) // self._cost

    def __call__(self, pixels: Tensor, targets: Tensor, stage: int = 0) -> Tensor:
        """The distance of these pictures' gradient to the upload's, differentiable in them."""
        upload = self.upload
        dummy = gradients_of(
            upload.model,
            pixels,
            targets,
            mean=upload.mean,
            std=upload.std,
            names=tuple(self._seen),
            local=upload.local,
            graph=True,
        )
        distance = self._measure(mirrored(upload.defence, dummy, self._seen), self._target)
        self._used += self._cost
        self._note(float(distance.detach()), pixels.detach(), targets.detach(), stage)
        return distance

    def _note(self, distance: float, pixels: Tensor, targets: Tensor, stage: int) -> None:
        # What overflowed is no candidate; the first is kept so that there is one at all.
        better = self._best is None or distance < self._best[0]
        if better:
            pictures = pixels.nan_to_num(0.5).clamp(0, 1)
            kept = distance if math.isfinite(distance) else math.inf
            self._best = (kept, pictures.clone(), targets.clone())
            if self._truth is not None:
                order = matched(pictures, self._truth)
                self._psnr = float(psnr(pictures[order], self._truth).mean())
        self._history.append(Point(self._used, stage, distance, self._psnr))

    def outcome(self) -> Inversion:
        """The best candidate of all."""
        assert self._best is not None
        distance, pictures, targets = self._best
        labels = targets.argmax(dim=1) if targets.is_floating_point() else targets
        return Inversion(pictures, labels, distance, self._used, tuple(self._history))

    def noise(self, rng: torch.Generator) -> Tensor:
        """Standard normal inputs of the model: [B, C, H, W]."""
        return torch.randn((self.upload.batch, *self.upload.image), generator=rng)

    def pixels(self, inputs: Tensor) -> Tensor:
        """The pictures in 0..1, as far as they are some, that are these inputs of the model."""
        return self.upload.mean + self.upload.std * inputs


def total_variation(pictures: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, across plus down: [n, C, H, W] -> scalar."""
    across = (pictures[..., :, 1:] - pictures[..., :, :-1]).abs().mean()
    down = (pictures[..., 1:, :] - pictures[..., :-1, :]).abs().mean()
    return across + down


def cosine_distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """1 - cosine of two gradients, each as one vector over all parameters."""
    dot, first, second = (_dot(x, y) for x, y in ((a, b), (a, a), (b, b)))
    return 1 - dot / (first * second).sqrt().clamp(min=TINY)


def squared_distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Sum of squared differences over all parameters."""
    gaps = {name: a[name] - b[name] for name in a}
    return _dot(gaps, gaps)


def project_l1(rows: Tensor, radius: float) -> Tensor:
    """Each row [n, d] moved to the nearest point whose absolute values sum to at most ``radius``.

    Duchi et al., ICML 2008.
    """
    sizes = rows.abs()
    ordered = sizes.sort(dim=1, descending=True).values
    excess = ordered.cumsum(dim=1) - radius
    count = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    above = (ordered * count > excess).sum(dim=1, keepdim=True).clamp(min=1)
    threshold = (excess.gather(1, above - 1) / above).clamp(min=0)
    return rows.sign() * (sizes - threshold).clamp(min=0)


def on_sphere(rows: Tensor, lengths: Tensor) -> Tensor:
    """Each row [n, d] scaled to its length [n, 1]."""
    now: Tensor = rows.norm(dim=1, keepdim=True)
    return rows * (lengths / now.clamp(min=TINY))


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    total: Tensor = torch.stack([(a[name] * b[name]).sum() for name in a]).sum()
    return total
