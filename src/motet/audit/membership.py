"""Membership inference: was this row among those that a site trained on?

Scores are one number per candidate row, the higher, the likelier a member. They are judged on as
many members as others, all drawn alike: nothing tells them apart but that the site saw one half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.batch import Dataset
from motet.core.errors import DataError
from motet.core.learner import evaluating

FALSE_ALARMS = 0.01
LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class Membership:
    """How well scores tell members from others.

    auc: area under the ROC curve, 0.5 for a guess. advantage: largest difference between the
    rates of true and false alarms, 0 for a guess. hits: true alarms with at most 1 % false ones.
    rows: members, and as many others. intervals: figure -> where 95 % of the bootstrap draws lie.
    """

    auc: float
    advantage: float
    hits: float
    rows: int
    intervals: Mapping[str, tuple[float, float]]


def judge(
    members: Tensor, others: Tensor, rng: torch.Generator, *, repeats: int = 200
) -> Membership:
    """What the scores of members [n] and of as many others [n] come to, with a bootstrap.

    Both groups are drawn anew, each from itself. Raises DataError for groups of different sizes or
    without a row, and for scores that are no numbers.
    """
    _check_groups(members, others)
    draws: dict[str, list[float]] = {"auc": [], "advantage": [], "hits": []}
    count = len(members)
    for _ in range(repeats):
        mine = members[torch.randint(count, (count,), generator=rng)]
        theirs = others[torch.randint(count, (count,), generator=rng)]
        for name, value in figures(mine, theirs).items():
            draws[name].append(value)
    intervals = {name: _interval(values) for name, values in draws.items() if values}
    return Membership(**figures(members, others), rows=count, intervals=intervals)


def figures(members: Tensor, others: Tensor) -> dict[str, float]:
    """AUC, advantage, and hits at 1 % false alarms, of scores [n] and [m]; ties count half."""
    alarms, hits = roc(members, others)
    return {
        "auc": float(torch.trapezoid(hits, alarms)),
        "advantage": float((hits - alarms).max().clamp(min=0)),
        "hits": float(hits[alarms <= FALSE_ALARMS].max()),
    }


def roc(members: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """False and true alarms [k] when all rows of at least a score count as members, from none on.

    Equal scores enter together, so that an order among them cannot invent an advantage.
    """
    scores = torch.cat([members, others]).double()
    is_member = torch.cat([torch.ones(len(members)), torch.zeros(len(others))]).double()
    order = scores.argsort(descending=True)
    scores, is_member = scores[order], is_member[order]
    last = torch.ones(len(scores), dtype=torch.bool)
    last[:-1] = scores[1:] != scores[:-1]
    hits = is_member.cumsum(0)[last] / max(len(members), 1)
    alarms = (1 - is_member).cumsum(0)[last] / max(len(others), 1)
    start = torch.zeros(1, dtype=torch.float64)
    return torch.cat([start, alarms]), torch.cat([start, hits])


def _check_groups(members: Tensor, others: Tensor) -> None:
    if len(members) != len(others) or not len(members):
        raise DataError(
            f"a membership test needs as many members as others, not {len(members)} and "
            f"{len(others)}"
        )
    if not bool(torch.isfinite(members).all() and torch.isfinite(others).all()):
        raise DataError("a membership test needs finite scores, and some are infinite or NaN")


def _interval(values: Sequence[float]) -> tuple[float, float]:
    found = torch.tensor(values, dtype=torch.float64)
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def losses(model: nn.Module, data: Dataset, *, batch: int = 512) -> Tensor:
    """Each row's own loss under a model in eval mode: [n].

    Cross-entropy where the model has a class head and the rows have labels, else the distance
    1 - cosine between a row's two modalities. Raises DataError for rows with neither.
    """
    prepare: Any = getattr(model, "prepare", None)
    ready = data if prepare is None else prepare(data)
    found: list[Tensor] = []
    with evaluating(model), torch.no_grad():
        for rows in ready.batches(batch):
            output = model(rows)
            if output.logits is not None and rows.labels is not None:
                found.append(F.cross_entropy(output.logits, rows.labels, reduction="none"))
            elif len(output.features) == 2:
                one, other = output.features.values()
                found.append(1 - F.cosine_similarity(one, other, dim=1))
            else:
                raise DataError("rows without labels and without pairs have no loss to go by")
    return torch.cat(found)


def threshold_scores(loss: Tensor) -> Tensor:
    """Members have smaller losses: minus the loss [n].

    Yeom et al., "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting", CSF
    2018, their threshold attack without a fixed threshold.
    """
    return -loss


def calibrated_scores(loss: Tensor, references: Tensor) -> Tensor:
    """How much smaller a row's loss [n] is than under models that never saw it: [n].

    references: [k, n], losses under k such models. Watson et al., "On the Importance of Difficulty
    Calibration in Membership Inference Attacks", ICLR 2022.
    """
    return references.mean(dim=0) - loss


def likelihood_scores(loss: Tensor, references: Tensor) -> Tensor:
    """How far a row's confidence lies above that of models that never saw it, in deviations: [n].

    references: [k, n] cross-entropies under k >= 2 such models; one spread for all rows, since k is
    small. After the offline attack of Carlini et al., "Membership Inference Attacks From First
    Principles", S&P 2022.
    """
    confidence, known = logit_of(loss), logit_of(references)
    centre = known.mean(dim=0)
    spread = (known - centre).square().sum() / max((len(known) - 1) * known.shape[1], 1)
    return (confidence - centre) / spread.sqrt().clamp(min=LEAST_SPREAD)


def logit_of(loss: Tensor) -> Tensor:
    """The logit of the true class's probability, log(p / (1 - p)), given its cross-entropy."""
    safe = loss.double().clamp(min=1e-12)
    return (-safe - torch.log(-torch.expm1(-safe))).to(loss.dtype)


def by_prototype(values: Tensor, labels: Tensor, prototypes: Tensor, tau: float = 0.1) -> Tensor:
    """Cross-entropy of representations [n, d] against a unit prototype per class [c, d]: [n].

    For sites that upload representations and no class scores. A class without a prototype has
    zeros there.
    """
    logits = F.normalize(values, dim=1) @ prototypes.T / tau
    return F.cross_entropy(logits, labels, reduction="none")


def prototypes_of(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The unit mean of the representations [n, d] of each class: [classes, d], zeros for none."""
    kept = labels >= 0
    total = values.new_zeros(classes, values.shape[1])
    total.index_add_(0, labels[kept], F.normalize(values[kept], dim=1))
    return F.normalize(total, dim=1)


def halves(data: Dataset, rng: torch.Generator, unit: str | None = None) -> tuple[Dataset, Dataset]:
    """Two random halves of the rows of equal size, those of one unit on one side.

    Drawn alike, they differ in nothing but that a site then trains on the first.
    """
    values = _units(data, unit)
    units = list(dict.fromkeys(values))
    order = torch.randperm(len(units), generator=rng).tolist()
    half = len(units) // 2
    chosen = {units[i] for i in order[:half]}
    left_out = {units[i] for i in order[half : 2 * half]}
    first = [i for i, value in enumerate(values) if value in chosen]
    second = [i for i, value in enumerate(values) if value in left_out]
    return data.take(first), data.take(second)


def candidates(
    members: Dataset, others: Dataset, rng: torch.Generator, unit: str | None = None
) -> tuple[Dataset, Dataset]:
    """As many rows of each, one at random per unit, in random order."""
    drawn = [_one_per(data, rng, unit) for data in (members, others)]
    count = min(len(data) for data in drawn)
    kept = [data.take(torch.randperm(len(data), generator=rng)[:count]) for data in drawn]
    return kept[0], kept[1]


def _one_per(data: Dataset, rng: torch.Generator, unit: str | None) -> Dataset:
    values = _units(data, unit)
    first: dict[Any, int] = {}
    for position in torch.randperm(len(data), generator=rng).tolist():
        first.setdefault(values[position], position)
    return data.take(sorted(first.values()))


def _units(data: Dataset, unit: str | None) -> list[Any]:
    """What each row belongs to: the value of the column, or the row itself without one."""
    if unit is None or unit not in data.about:
        return list(range(len(data)))
    column = data.about[unit]
    return column.tolist() if isinstance(column, Tensor) else list(column)
