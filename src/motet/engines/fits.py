"""A site's fit that waits for others: what it computes, and whether others compute the same."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from motet.core.batch import Batch, Dataset
from motet.core.batches import Batches
from motet.core.graph import GRAPH
from motet.core.learner import Adjust, Learner, Loss
from motet.core.optim import Optimizer
from motet.engines.alike import Structure, parted
from motet.engines.rules import Rule, rule_of

# Relative differences of loss and gradients that another order of additions may make.
CLOSE = 1e-5
ROUNDING = 1e-7


class Form:
    """What kernels depend on; equal ones are the same object, so that none is compared."""


@lru_cache(maxsize=1024)
def form_of(value: Hashable) -> Form:
    """The form of all that is described by equal values."""
    return Form()


class Fit:
    """One site's fit, ready to be put together with others; raises Unlike where that cannot be.

    key: equal for fits that are the same computation on other tensors.
    """

    def __init__(
        self,
        learner: Learner,
        loss: Loss,
        batches: Batches,
        optimizer: Optimizer,
        adjust: Adjust | None,
    ) -> None:
        self.learner, self.loss, self.adjust, self.optimizer = learner, loss, adjust, optimizer
        model = learner.model
        self.parts = [parted(loss, model), *([] if adjust is None else [parted(adjust, model)])]
        self.tensors = [tensor for part in self.parts for tensor in part.tensors]
        self.model = Structure(model)
        self.rule: Rule = rule_of(optimizer, self.model.parameters.values())
        form = (self.model.key, tuple([part.key for part in self.parts]), self.rule.form)
        # The last reason to refuse: from here on the batches are used up.
        self.data, self.order, self.sizes = batches.plan()
        self.form: Hashable = form_of((*form, _rows(self.data)))
        self.key: Hashable = (self.form, self.rule.options)

    @property
    def held(self) -> Any:
        """What the form names by its identity."""
        return self.parts, self.model.held

    def positions(self) -> tuple[Tensor, ...]:
        """Which rows each step takes."""
        found: tuple[Tensor, ...] = self.order.split(self.sizes)
        return found

    def batches(self) -> Iterator[Batch]:
        """Its batches, to be gone through one by one."""
        return (self.data.batch(index) for index in self.positions())


def columns_form(data: Dataset) -> Hashable:
    """The form of a data set's columns; ``rows_obstacle`` tells what speaks against stacking."""
    return tuple(
        (name, value.dtype, value.shape[1:], value.device) if isinstance(value, Tensor) else name
        for name, value in data.columns.items()
    )


def _rows(data: Dataset) -> Hashable:
    labels = None if data.labels is None else (data.labels.dtype, data.labels.shape[1:])
    return columns_form(data), labels


def rows_obstacle(data: Dataset) -> str:
    """Why rows of a data set cannot be stacked with those of others; empty where they can."""
    if GRAPH in data.columns:
        return "its rows are nodes of a graph"
    if not all(isinstance(column, Tensor) for column in data.columns.values()):
        return "its rows are not tensors"
    return "" if data.complete else "some of its rows lack a modality"


def obstacle(fit: Fit) -> str:
    """Why a fit cannot be stacked for its rows; empty where it can."""
    return rows_obstacle(fit.data) or ("" if any(fit.sizes) else "it takes no step")


def whole_batch(names: Sequence[str], columns: Sequence[Tensor], labels: Tensor | None) -> Batch:
    """A batch of columns of these names, and the rows' ids last, in which no row lacks anything."""
    rows = columns[-1]
    return Batch(
        inputs=dict(zip(names, columns, strict=False)),
        present={name: torch.ones(len(rows), dtype=torch.bool) for name in names},
        labels=labels,
        rows=rows,
    )


def alone(
    fit: Fit, values: Sequence[Tensor], names: Sequence[str], buffers: Sequence[str], step: int
) -> list[Tensor | None]:
    """Loss, gradients and buffers of one step of a fit from these parameters and buffers.

    On a copy of its model; torch's default generators are left as they are.
    """
    model = copy.deepcopy(fit.learner.model)
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.random.fork_rng():
        for name, value in zip((*names, *buffers), values, strict=True):
            held[name].detach().copy_(value)
        batch = fit.data.batch(fit.positions()[step])
        with torch.enable_grad():
            loss = fit.loss(model, batch)
            loss.backward()
            if fit.adjust is not None:
                fit.adjust(model, batch)
    return [
        loss.detach(),
        *[held[name].grad for name in names],
        *[held[name].detach() for name in buffers],
    ]


def close(found: Tensor | None, wanted: Tensor | None, scale: float) -> bool:
    """Whether two values are equal but for rounding; ``scale``: the size of what they belong to."""
    if found is None or wanted is None:
        return found is wanted
    if not wanted.is_floating_point():
        return torch.equal(found, wanted)
    if not bool(torch.isfinite(wanted).all()):
        # What has become of a site whose loss is not finite, the fit itself will tell.
        return not bool(torch.isfinite(found).all())
    size = float(torch.linalg.vector_norm(wanted))
    return float(torch.linalg.vector_norm(found - wanted)) <= CLOSE * size + ROUNDING * scale
