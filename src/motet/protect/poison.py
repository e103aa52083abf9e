"""Attacks on the attackers' own data: labels that are turned, and pictures with a trigger."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from motet.core.batch import Dataset
from motet.core.errors import ConfigError, DataError
from motet.core.rng import generator
from motet.protect.attack_spec import DATA_ATTACKS, AttackSpec

# What the metric of a backdoor is called: the share of triggered rows taken for the target.
ATTACK_SUCCESS = "attack success"


def flipped(
    data: Dataset, *, mirror: bool = False, source: int | None = None, target: int = 0
) -> Dataset:
    """The same rows with class y + 1 (the first after the last) in place of every class y.

    mirror: last class - y instead. source: rows of this class become ``target``, and all others
    stay. Rows without a label stay so. Raises DataError for data without labels or such a class.
    """
    labels, classes = _labels(data)
    if source is not None:
        _check_class(classes, source, "source")
        _check_class(classes, target, "target")
        made = labels.where(labels != source, target)
    elif mirror:
        made = classes - 1 - labels
    else:
        made = (labels + 1) % classes
    return replace(data, labels=made.where(labels >= 0, labels))


def with_trigger(
    data: Dataset,
    *,
    target: int | None,
    share: float = 1.0,
    side: int = 4,
    piece: int = 0,
    pieces: int = 1,
    rng: torch.Generator | None = None,
) -> Dataset:
    """The data with a white square at the lower right of a share of all pictures.

    target: the class that these rows get; None keeps theirs. share: of the rows, rounded up,
    drawn by ``rng``. piece, pieces: only this one (from 0) of so many parts of the square's
    pixels, for attackers that share it out (Xie et al., DBA, ICLR 2020). Gu, Dolan-Gavitt, Garg,
    BadNets, 2017. Raises DataError for data without pictures or such a class.
    """
    name, pictures = _pictures(data)
    height, width = pictures.shape[-2:]
    if side > min(height, width):
        raise DataError(f"a trigger of side {side} does not fit pictures of {height} x {width}")
    if not 0 <= piece < pieces <= side * side:
        raise ConfigError(f"a square of {side} x {side} has no part {piece} of {pieces}")
    count = -int(-round(share * len(data), 9) // 1)
    at = torch.arange(len(data))
    if count < len(data):
        at = torch.randperm(len(data), generator=rng)[:count].sort().values
    number = torch.arange(side * side)
    own = number[number * pieces // (side * side) == piece]
    rows, columns = height - side + own // side, width - side + own % side
    made = pictures.clone()
    made[at[:, None], :, rows, columns] = 255
    labels = data.labels
    if target is not None:
        known, classes = _labels(data)
        _check_class(classes, target, "target")
        labels = known.clone()
        labels[at] = target
    return replace(data, columns={**data.columns, name: made}, labels=labels)


def triggered_test(spec: AttackSpec, test: Dataset) -> Dataset | None:
    """Test rows of other classes with the whole trigger, and the target as their label.

    The accuracy on them is the attack's success. None for attacks without a trigger, or when all
    rows are of the target class.
    """
    if spec.name != "backdoor":
        return None
    labels, _ = _labels(test)
    others = ((labels >= 0) & (labels != spec.target)).nonzero().flatten()
    if not len(others):
        return None
    return with_trigger(test.take(others), target=spec.target, side=spec.side)


def poisoned(
    spec: AttackSpec | None, data: Dataset, site: str, attackers: frozenset[str], seed: int
) -> Dataset:
    """The site's training rows, changed when it is one of ``attackers`` and attacks with data.

    attackers: those of ``AttackSpec.attackers``; with a distributed trigger each of them has one
    part of the square, by name order, in turn.
    """
    if spec is None or spec.name not in DATA_ATTACKS or site not in attackers:
        return data
    if spec.name == "label-flip":
        mirror = spec.labels == "mirror"
        return flipped(data, mirror=mirror, source=spec.source, target=spec.target)
    pieces = min(len(attackers), spec.side**2) if spec.distributed else 1
    return with_trigger(
        data,
        target=spec.target,
        share=spec.rows,
        side=spec.side,
        piece=sorted(attackers).index(site) % pieces,
        pieces=pieces,
        rng=generator(seed, site, "trigger"),
    )


def _labels(data: Dataset) -> tuple[Tensor, int]:
    """Labels and the number of classes."""
    if data.labels is None:
        raise DataError("these data have no labels that an attack could turn")
    return data.labels, len(data.classes) or int(data.labels.max()) + 1


def _check_class(classes: int, wanted: int, name: str) -> None:
    if wanted >= classes:
        raise DataError(f"attack.{name} is class {wanted}, and there are {classes}, from 0 on")


def _pictures(data: Dataset) -> tuple[str, Tensor]:
    """The first modality of pictures: uint8 [n, channels, height, width]."""
    for name in data.modalities:
        column = data.columns[name]
        if isinstance(column, Tensor) and column.dtype == torch.uint8 and column.dim() == 4:
            return name, column
    raise DataError(f"a backdoor needs pictures, and the data have {', '.join(data.modalities)}")
