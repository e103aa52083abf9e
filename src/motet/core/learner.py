"""What hub and sites have in common: a model, optimisers, batches, fitting and encoding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from motet.core.batch import Batch, Dataset
from motet.core.batches import Batches
from motet.core.errors import DataError, SiteError
from motet.core.groups import frozen_to_eval, is_frozen
from motet.core.mould import Mould
from motet.core.optim import Optimizer, OptimizerSpec
from motet.core.rng import generator, numpy_generator
from motet.core.secret import Secret
from motet.core.tree import Tree, load, weights_of

Loss: TypeAlias = Callable[[nn.Module, Batch], Tensor]
Adjust: TypeAlias = Callable[[nn.Module, Batch], None]


@runtime_checkable
class Fitter(Protocol):
    """Trains in a learner's place on rows that may be used in no other way."""

    def seal(self, data: Dataset) -> Dataset:
        """A party's own rows, which only ``fit`` reads from here on."""

    def draw(
        self, data: Dataset, size: int, *, epochs: int, steps: int | None, key: str | int
    ) -> Iterator[Batch] | None:
        """What stands for the batches of such rows until ``fit`` gets it; None for other rows."""

    def fit(
        self,
        learner: Learner,
        loss: Loss,
        batches: Iterable[Batch],
        optimizer: Optimizer,
        adjust: Adjust | None,
    ) -> float | None:
        """Trains on what ``draw`` gave, and returns a loss; None for other batches."""


@dataclass(frozen=True)
class Taken:
    """What the steps of a fit came to.

    total: the sum of their losses. finite: whether the weights were seen to be finite.
    """

    total: float
    steps: int
    finite: bool = False


class Learner:
    """One party that learns. ``key`` names the moment, so that its random draws are its own.

    fitter: takes over where the party's rows are sealed. secret: a party's own, for noise that the
    others must not know; without one that comes from the run's seed, as all else does.
    """

    fitter: Fitter | None = None
    secret: Secret | None = None

    def __init__(self, name: str, seed: int, build: Callable[[], nn.Module] | None) -> None:
        self.name = name
        self.seed = seed
        self.key: tuple[str | int, ...] = ()
        self._build = build
        self._model: nn.Module | None = None
        self._optimizers: dict[str, Optimizer] = {}
        self._initial: Tree = {}
        self._stale = False
        self._waiting: Tree = {}

    @property
    def model(self) -> nn.Module:
        """This party's model, built when it is first asked for."""
        model = self._shell()
        if self._stale:
            load(model, self._initial)
            self._stale = False
        return model

    def load(self, weights: Tree) -> None:
        """Copies the weights, which must be all, into the model, as ``motet.load`` does.

        Quicker than that where the model is new, since it need not get its initial weights first.
        """
        load(self._shell(), weights)
        self._stale = False

    def _shell(self) -> nn.Module:
        """The model, whose weights are not yet those that it should have where it is stale."""
        if self._model is None:
            if self._build is None:
                raise DataError(f"{self.name} has no model: name one for it in the recipe")
            if isinstance(self._build, Mould):
                self._model, self._stale = self._build.take(), True
                self._initial = self._build.initial
            else:
                self._model, self._stale = self._build(), False
                self._initial = weights_of(self._model)
        return self._model

    def release(self) -> None:
        """Lets go of model and optimisers, if equal ones can be had again."""
        if self._model is not None and isinstance(self._build, Mould):
            self._build.give_back(self._model)
            self._model, self._optimizers, self._waiting = None, {}, {}

    def optimizer(self, name: str, spec: OptimizerSpec, *, clip: float | None = None) -> Optimizer:
        """This party's optimiser of this name, with the moments it had when last used.

        Hyper-parameters, the learning rate among them, are those of ``spec`` from here on.
        """
        if name not in self._optimizers:
            self._optimizers[name] = Optimizer(self.model, spec, clip)
            if name in self._waiting:
                self._optimizers[name].load(self._waiting.pop(name))
        self._optimizers[name].retune(spec, clip)
        return self._optimizers[name]

    def rng(self, *key: str | int) -> torch.Generator:
        """A generator of this party, moment and key alone."""
        return generator(self.seed, self.name, *self.key, *key)

    def hidden_rng(self, *key: str | int) -> torch.Generator:
        """The same as ``rng``, from the party's secret where it has one: for what protects it."""
        if self.secret is None:
            return self.rng(*key)
        return self.secret.generator(self.seed, self.name, *self.key, *key)

    def numpy_rng(self, *key: str | int) -> np.random.Generator:
        """The same as ``rng`` for numpy."""
        return numpy_generator(self.seed, self.name, *self.key, *key)

    def prepared(self, data: Dataset) -> Dataset:
        """The data as this party's model reads them (decoded, tokenised, frozen trunk applied)."""
        prepare = getattr(self.model, "prepare", None)
        result: Dataset = data if prepare is None else prepare(data)
        return result

    def batches(
        self,
        data: Dataset,
        size: int,
        *,
        epochs: int = 1,
        steps: int | None = None,
        least: int = 1,
        key: str | int = "batches",
    ) -> Iterator[Batch]:
        """Shuffled batches of ``size`` rows, ``epochs`` times over the data.

        steps: exactly so many batches instead, in as many epochs as that takes. The last batch of
        an epoch may be smaller; one of fewer than ``least`` rows is left out where the epoch has
        others. The order depends on party, moment, ``key`` and epoch alone: two passes in one
        operation need two keys.
        """
        if self.fitter is not None:
            drawn = self.fitter.draw(data, size, epochs=epochs, steps=steps, key=key)
            if drawn is not None:
                return drawn
        return self._batches(data, size, epochs, steps, least, key)

    def _batches(
        self,
        data: Dataset,
        size: int,
        epochs: int,
        steps: int | None,
        least: int,
        key: str | int,
    ) -> Batches:
        def begin() -> tuple[Dataset, Iterator[Tensor]]:
            if not len(data):
                raise DataError(f"{self.name} has no rows to train on")
            ready = self.prepared(data)
            endless = itertools.count() if steps is not None else range(epochs)
            rows = len(ready)
            return ready, (self._order(rows, size, least, (key, epoch)) for epoch in endless)

        return Batches(begin, size, steps)

    def _order(self, rows: int, size: int, least: int, key: tuple[str | int, ...]) -> Tensor:
        """The order of the rows in one epoch."""
        order = torch.randperm(rows, generator=self.rng(*key))
        rest = rows % size
        return order[: rows - rest] if 0 < rest < least and rest < rows else order

    def fit(
        self,
        loss: Loss,
        batches: Iterable[Batch],
        optimizer: Optimizer | OptimizerSpec,
        *,
        adjust: Adjust | None = None,
    ) -> float:
        """Trains the model on the batches; returns the mean loss per step.

        A spec gives a fresh optimiser, an ``Optimizer`` goes on where it was. adjust: called with
        model and batch when the gradients are there and before they are clipped and used; it may
        change them, or go through the batch again. Raises SiteError for a loss, or weights, that
        are not finite.
        """
        model = self.model
        stepper = optimizer if isinstance(optimizer, Optimizer) else Optimizer(model, optimizer)
        train_mode(model)
        if self.fitter is not None:
            found = self.fitter.fit(self, loss, batches, stepper, adjust)
            if found is not None:
                return found
        taken = TAKE_STEPS.get()(self, loss, batches, stepper, adjust)
        name = getattr(loss, "__name__", type(loss).__name__)
        problem = _not_finite(name, taken, model, stepper.parameters)
        if problem:
            raise SiteError(
                f"{self.name}: {problem}; lower the learning rate, or look for damaged rows in "
                "the data"
            )
        return taken.total / max(taken.steps, 1)

    def encode(self, data: Dataset, modality: str, *, batch: int = 512) -> Tensor:
        """The unit embeddings [n, d] of one modality, rows in the data's order, in eval mode."""
        ready = self.prepared(data.only([modality]))
        parts: list[Tensor] = []
        with evaluating(self.model), torch.no_grad():
            for rows in ready.batches(batch):
                parts.append(self.model(rows).features[modality])
        return torch.cat(parts)

    def tree(self) -> Tree:
        """Model and optimisers, to be kept."""
        optimizers = {name: value.tree() for name, value in self._optimizers.items()}
        kept: Tree = {"optimizers": {**self._waiting, **optimizers}}
        if self._model is not None:
            kept["model"] = weights_of(self.model)
        return kept

    def load_tree(self, tree: Tree) -> None:
        """Takes model and optimisers up again, in place; what is not in the tree starts afresh."""
        moments = dict(tree.get("optimizers", {}))
        for name, optimizer in self._optimizers.items():
            optimizer.load(moments.pop(name, {}))
        self._waiting = moments
        if "model" in tree:
            self.load(tree["model"])
        else:
            # Not now, since most operations begin with weights from the hub.
            self._stale = self._model is not None


def take_steps(
    learner: Learner,
    loss: Loss,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    adjust: Adjust | None,
) -> Taken:
    """One step of the learner's model per batch."""
    model = learner.model
    total = torch.zeros(())
    steps = 0
    for batch in batches:
        value = loss(model, batch)
        optimizer.step(value, None if adjust is None else partial(adjust, model, batch))
        total += value.detach()
        steps += 1
    return Taken(float(total), steps)


Steps: TypeAlias = Callable[[Learner, Loss, Iterable[Batch], Optimizer, Adjust | None], Taken]
# How ``fit`` takes its steps. An engine that takes those of several sites at once says so here.
TAKE_STEPS: ContextVar[Steps] = ContextVar("TAKE_STEPS", default=take_steps)


def _not_finite(loss: str, taken: Taken, model: nn.Module, trained: Sequence[Tensor]) -> str:
    """What a fit has spoilt, in words; empty when all is well."""
    if not math.isfinite(taken.total):
        return f"the loss {loss!r} became {taken.total} within {taken.steps} steps"
    if taken.finite:
        return ""
    # A root at 0 has a finite value and an infinite slope: the last step may spoil the weights.
    # A sum tells, and costs a hundredth of looking at every number; one of all the sums tells
    # whether any of them is worth a look.
    if math.isfinite(sum(_sum(value) for value in trained)):
        return ""
    for name, value in model.named_parameters():
        if not math.isfinite(_sum(value)):
            return f"the weights {name!r} became infinite or NaN under the loss {loss!r}"
    return ""


def _sum(tensor: Tensor) -> float:
    plain = tensor.detach() if tensor.requires_grad else tensor
    return plain.sum(dtype=torch.float32).item()


def skips_unlabelled(loss: Loss) -> Loss:
    """Says of a loss that rows labelled -100 count for nothing in it, so that they may fill up."""
    loss.skips_unlabelled = True  # type: ignore[attr-defined]
    return loss


def train_mode(model: nn.Module) -> None:
    """Train mode, but for what is frozen."""
    if type(model).train is not nn.Module.train:
        model.train()
        frozen_to_eval(model)
        return
    # As ``train`` does, module by module; setting what is set already takes nn.Module a while.
    training = not is_frozen(model)
    if model.training is not training:
        model.training = training
    for child in model._modules.values():
        if child is not None:
            train_mode(child)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, the former mode afterwards."""
    mode = model.training
    model.eval()
    try:
        yield
    finally:
        if mode:
            train_mode(model)
