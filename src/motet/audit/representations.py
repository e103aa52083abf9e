"""What uploaded representations give away: pictures made from them, texts recognised by them.

Whoever runs the hub knows the public rows and what a site sent for them. From these pairs it learns
the way back, and goes it for representations of rows that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from motet.core.errors import DataError

WIDTHS = (0.1, 0.3, 1.0, 3.0)
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
LEAST_ROWS = 10
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Regression:
    """Kernel ridge regression with a Gaussian kernel: from rows [m, d] to outputs [m, ...].

    unit: mean squared distance of the inputs, of which ``width`` is a multiple. width and ridge are
    those that predict left-out rows best.
    """

    inputs: Tensor
    centre: Tensor
    weights: Tensor
    unit: float
    width: float
    ridge: float

    def __call__(self, rows: Tensor) -> Tensor:
        """The outputs [m, ...] that belong to these rows [m, d]."""
        found = _kernel(rows, self.inputs, self.unit * self.width) @ self.weights
        return found.reshape(-1, *self.centre.shape) + self.centre


def fit(inputs: Tensor, outputs: Tensor) -> Regression:
    """Learns outputs [n, ...] from inputs [n, d] in closed form.

    Every width and ridge is tried on each row as predicted from all others. Raises DataError for
    fewer than 10 rows, or as many outputs as there are no inputs for.
    """
    if len(inputs) != len(outputs) or len(inputs) < LEAST_ROWS:
        raise DataError(
            f"the way back is learnt from at least {LEAST_ROWS} rows with what was sent for them, "
            f"not from {len(inputs)} for {len(outputs)} rows"
        )
    x, y = inputs.flatten(1).double(), outputs.double()
    centre = y.mean(dim=0)
    rest = (y - centre).flatten(1)
    unit = float(torch.cdist(x, x).square().mean()) or 1.0
    best: tuple[float, float, float, Tensor] | None = None
    for width in WIDTHS:
        sizes, axes = torch.linalg.eigh(_kernel(x, x, unit * width))
        along = axes.T @ rest
        for ridge in RIDGES:
            inverse = 1 / (sizes.clamp(min=0) + ridge)
            weights = axes @ (inverse.unsqueeze(1) * along)
            # What a row's own output differs by from its prediction without the row.
            left_out = weights / (axes.square() @ inverse).unsqueeze(1)
            error = float(left_out.square().sum())
            if best is None or error < best[0]:
                best = (error, width, ridge, weights)
    assert best is not None
    _, width, ridge, weights = best
    return Regression(inputs.flatten(1), centre.float(), weights.float(), unit, width, ridge)


def _kernel(a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.exp(-torch.cdist(a.flatten(1), b.flatten(1)).square() / scale)


def pictures_from(known: Tensor, pictures: Tensor, unknown: Tensor) -> Tensor:
    """Pictures [m, c, h, w] in 0..1 made from representations [m, ...] of unknown rows.

    known: representations [n, ...] of the rows whose pictures [n, c, h, w] are known.
    """
    decoder = fit(known.flatten(1), pictures)
    return decoder(unknown.flatten(1)).clamp(0, 1)


def mean_picture(pictures: Tensor, count: int) -> Tensor:
    """The mean of the known pictures, ``count`` times: what one draws who was sent nothing."""
    return pictures.mean(dim=0, keepdim=True).expand(count, *pictures.shape[1:])


def nearest_pictures(known: Tensor, pictures: Tensor, unknown: Tensor) -> Tensor:
    """For each unknown representation the known picture whose own is nearest: [m, c, h, w]."""
    return pictures[torch.cdist(unknown.flatten(1), known.flatten(1)).argmin(dim=1)]


def ranks_among(known: Tensor, features: Tensor, unknown: Tensor, candidates: Tensor) -> Tensor:
    """Place of each unknown row among the candidates, 1 for the first, by what was sent: [m].

    known: representations [n, d] of rows with known features [n, f]. unknown: those [m, d] of
    rows that are the first m of the candidates, whose features [k, f] anyone can work out. A
    stand-in for the site's encoder is learnt from the known rows. Of equals the right one is last.
    """
    encoder = fit(features, known)
    made = torch.nn.functional.normalize(encoder(candidates), dim=1)
    scores = torch.nn.functional.normalize(unknown, dim=1) @ made.T
    own = scores.diagonal().unsqueeze(1)
    return (scores >= own).sum(dim=1)


def nearest_texts(known: Tensor, texts: Sequence[str], unknown: Tensor) -> list[str]:
    """For each unknown representation the known text whose own is nearest."""
    return [texts[i] for i in torch.cdist(unknown, known).argmin(dim=1).tolist()]


def overlap(text: str, other: str) -> float:
    """Share of the words of two texts that they have in common, 0 for two without words."""
    mine, theirs = set(_WORD.findall(text.lower())), set(_WORD.findall(other.lower()))
    return len(mine & theirs) / len(mine | theirs) if mine | theirs else 0.0
