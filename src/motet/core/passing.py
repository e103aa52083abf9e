"""A model's pass over all rows of a data set, which an engine may make for several sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from motet.core.batch import Dataset, Output
from motet.core.learner import evaluating


@dataclass(frozen=True)
class Passed:
    """What a model made of all rows.

    names: the modalities that it read. features: of the wanted modalities where it read them all,
    [n, d] each; else empty. logits: [n, classes], or None.
    """

    names: tuple[str, ...]
    features: dict[str, Tensor]
    logits: Tensor | None


@torch.no_grad()
def pass_over(model: nn.Module, data: Dataset, wanted: Sequence[str], batch: int) -> Passed:
    """Goes through rows that the model has prepared, ``batch`` at a time, in eval mode."""
    names: tuple[str, ...] = ()
    features: dict[str, list[Tensor]] = {}
    logits: list[Tensor] = []
    with evaluating(model):
        for rows in data.batches(batch):
            output = model(rows)
            names = tuple(output.features)
            for name, value in wanted_features(output, wanted).items():
                features.setdefault(name, []).append(value)
            if output.logits is not None:
                logits.append(output.logits)
    joined = {name: torch.cat(parts) for name, parts in features.items()}
    return Passed(names, joined, torch.cat(logits) if logits else None)


def wanted_features(output: Output, wanted: Sequence[str]) -> dict[str, Tensor]:
    """The features of these modalities where a model gives them all; else none.

    They are worked out when they are read, and nobody reads a part of them.
    """
    there = set(wanted) <= output.features.keys()
    return {name: output.features[name] for name in wanted} if there else {}


Pass: TypeAlias = Callable[[nn.Module, Dataset, Sequence[str], int], Passed]
# How an evaluation goes over its rows. An engine that does so for several sites says so here.
PASS_OVER: ContextVar[Pass] = ContextVar("PASS_OVER", default=pass_over)
