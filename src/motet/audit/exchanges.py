"""Attacks on what sites send for public rows: pictures and texts sought, members told by a copy.

"Rows" are representations [n, d] or class scores [n, classes] of public rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.audit.membership import (
    by_prototype,
    calibrated_scores,
    likelihood_scores,
    prototypes_of,
    threshold_scores,
)
from motet.audit.representations import Regression, fit
from motet.audit.tap import Seen
from motet.audit.updates import NotTriedError, visible
from motet.audit.upload import DefenceName
from motet.core.batch import Dataset
from motet.core.kinds import Kind

ROWS = frozenset({Kind.REPRESENTATIONS, Kind.LOGITS})
HELD_OUT = 0.25
EPSILON = 1e-10


def rows_sent(seen: Seen, key: str, public: Dataset | None) -> tuple[Tensor, Dataset]:
    """What the site sent [n, d], and the public rows that it sent it for.

    Raises NotTriedError for what does not belong to public rows.
    """
    value = visible(seen, key)
    if public is None:
        raise NotTriedError("there is no public set, whose rows the server could learn from")
    if not isinstance(value, Tensor) or value.ndim != 2:
        raise NotTriedError(f"{key!r} is not one vector per public row")
    chosen = seen.sent.get("rows")
    if isinstance(chosen, Tensor) and chosen.dtype == torch.int64 and len(chosen) == len(value):
        return value.float(), public.take(chosen)
    if len(value) != len(public):
        raise NotTriedError(
            f"{key!r} has {len(value)} rows, and the public set {len(public)}: it is sent for "
            "other things than public rows"
        )
    return value.float(), public


def split_rows(count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions of three quarters of the public rows, and of the rest, taken for unknown."""
    order = torch.randperm(count, generator=rng)
    left = max(1, round(count * HELD_OUT))
    return order[left:], order[:left]


def defended_rows(values: Tensor, name: DefenceName, amount: float, rng: torch.Generator) -> Tensor:
    """Rows [n, d] as they would have arrived from a site with this defence, row by row.

    noise: of ``amount`` times a row's length. clipping: to a length of ``amount``. sparsification:
    the smallest ``amount`` percent of every row are 0. Raises NotTriedError for Soteria.
    """
    if name == "noise":
        size = values.norm(dim=1, keepdim=True) / values.shape[1] ** 0.5
        noisy: Tensor = values + amount * size * torch.randn(values.shape, generator=rng)
        return noisy
    if name == "clipping":
        factor: Tensor = amount / values.norm(dim=1, keepdim=True).clamp(min=EPSILON)
        return values * factor.clamp(max=1)
    if name == "sparsification":
        bound = torch.quantile(values.abs(), amount / 100, dim=1, keepdim=True)
        return torch.where(values.abs() >= bound, values, torch.zeros_like(values))
    raise NotTriedError(
        "Soteria is a defence of gradients, and not of what is sent for public rows"
    )


def features_of(model: nn.Module, data: Dataset, modality: str) -> Tensor:
    """What anyone can work out of rows by themselves, before any weight is learnt: [n, f]."""
    prepare: Any = model.prepare
    column: Tensor = prepare(data.only([modality])).columns[modality]
    return column.float().flatten(1)


@dataclass(frozen=True)
class Copy:
    """A stand-in for a site's model, learnt from what it sent for public rows.

    maps: key -> regression from features. prototypes: key -> unit mean per class, or None without
    labels. logits: whether values are class scores.
    """

    maps: Mapping[str, Regression]
    prototypes: Mapping[str, Tensor | None]
    logits: bool

    def losses(self, features: Mapping[str, Tensor], labels: Tensor | None) -> Tensor:
        """The loss [n] of rows with these features (key -> [n, f]) and labels under the copy."""
        values = {key: found(features[key]) for key, found in self.maps.items()}
        if self.logits and labels is not None:
            (scores,) = values.values()
            return F.cross_entropy(scores, labels, reduction="none")
        if len(values) == 2:
            one, other = values.values()
            return 1 - F.cosine_similarity(one, other, dim=1)
        (key,) = values
        known = self.prototypes[key]
        if labels is None or known is None:
            raise NotTriedError("rows without labels and without pairs have no loss to go by")
        return by_prototype(values[key], labels, known)


def copy_of(
    sent: Mapping[str, tuple[Tensor, Dataset]],
    features: Mapping[str, Tensor],
    logits: bool,
) -> Copy:
    """Learns a copy from what a site sent under each key, and the public rows' features."""
    maps = {key: fit(features[key], values) for key, (values, _) in sent.items()}
    prototypes = {
        key: None
        if public.labels is None
        else prototypes_of(values, public.labels, len(public.classes))
        for key, (values, public) in sent.items()
    }
    return Copy(maps, prototypes, logits)


def copy_scores(
    target: Copy, others: Sequence[Copy], features: Mapping[str, Tensor], labels: Tensor | None
) -> dict[str, Tensor]:
    """Attack -> scores [n] of candidate rows, the higher, the likelier the site trained on them.

    others: copies of sites that never saw any of the candidates.
    """
    loss = target.losses(features, labels)
    scores = {"loss of a copy": threshold_scores(loss)}
    if others:
        references = torch.stack([copy.losses(features, labels) for copy in others])
        scores["calibrated loss of a copy"] = calibrated_scores(loss, references)
        if len(others) > 1 and target.logits:
            scores["likelihood ratio of a copy"] = likelihood_scores(loss, references)
    return scores
