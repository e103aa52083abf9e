"""DP-SGD at a site: private rows are sealed, and opened only to draw the next step's batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import Tensor, nn

from motet.core.batch import Batch, Column, Dataset
from motet.core.errors import ConfigError, DataError, SiteError
from motet.core.graph import GRAPH
from motet.core.groups import BATCH_NORMS, is_frozen
from motet.core.guard import SPENT, Passage
from motet.core.learner import Adjust, Learner, Loss
from motet.core.optim import Optimizer
from motet.core.prepared import Prepared
from motet.core.secret import Concealed
from motet.core.tree import Tree
from motet.nn.private import noise_size, noised
from motet.protect.accountant import Accountant, Gaussian
from motet.protect.privacy import PrivacySpec, told
from motet.protect.row_gradients import RowGradients


def _refuse() -> NoReturn:
    raise ConfigError(
        "this method uses private rows in another way than by fitting the model on their batches, "
        "which protect.privacy.mode: rows does not cover; write mode: central or local, or choose "
        "another method"
    )


class Sealed(Dataset):
    """Private rows that nobody reads: only their number, modalities and class names are open.

    ``fit`` alone draws batches of them; everything else raises ConfigError.
    """

    def __init__(self, data: Dataset) -> None:
        # Not the parent's: that would lay the columns open.
        object.__setattr__(self, "_inside", _opened(data) if isinstance(data, Sealed) else data)

    def __len__(self) -> int:
        return len(_opened(self))

    def __repr__(self) -> str:
        return f"Sealed({len(self)} rows of {', '.join(self.modalities)})"

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, sorted."""
        return _opened(self).modalities

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return _opened(self).classes

    @property
    def columns(self) -> Mapping[str, Column]:
        """Sealed."""
        _refuse()

    @property
    def labels(self) -> Tensor | None:
        """Sealed."""
        _refuse()

    @property
    def rows(self) -> Tensor:
        """Sealed."""
        _refuse()

    @property
    def present(self) -> Mapping[str, Tensor]:
        """Sealed."""
        _refuse()

    @property
    def about(self) -> Mapping[str, Column]:
        """Sealed."""
        _refuse()

    @property
    def cache(self) -> Prepared:
        """Sealed."""
        _refuse()


def _opened(data: Sealed) -> Dataset:
    inside: Dataset = data.__dict__["_inside"]
    return inside


class SealedBatches(Iterator[Batch]):
    """Batches that are yet to be drawn; only ``fit`` can."""

    def __init__(
        self, data: Sealed, size: int, epochs: int, steps: int | None, key: str | int
    ) -> None:
        self.data = data
        self.key = key
        rows = len(data)
        self.steps = epochs * math.ceil(rows / size) if steps is None else steps
        self.expected = min(size, rows)

    def __iter__(self) -> Iterator[Batch]:
        _refuse()

    def __next__(self) -> Batch:
        _refuse()


class SealedBatch(Batch):
    """Stands for a batch where gradients are adjusted after they were noised."""

    def __init__(self) -> None:
        pass

    def __getattribute__(self, name: str) -> object:
        if name in ("inputs", "present", "labels", "rows"):
            _refuse()
        return super().__getattribute__(name)

    def __len__(self) -> int:
        _refuse()


@dataclass
class _Pending:
    """What a site released since its last reply left, in one operation."""

    key: tuple[str | int, ...]
    rows: int
    steps: list[tuple[Gaussian, int]] = field(default_factory=list)


class RowPrivacy:
    """DP-SGD in place of a site's training; the unit is one private row.

    Every step draws each row by an equal chance, so that the batch size varies and may be 0; it
    clips every row's gradient, noises their sum once and divides it by the expected size. Abadi et
    al., CCS 2016. Set it as ``fitter`` of every site whose data are ``Sealed``, and put it among
    the guards, where it counts each site's steps over all rounds, tells the hub what is spent and
    holds back a reply that would cost more than the budget.
    """

    name = "rows"

    def __init__(self, spec: PrivacySpec) -> None:
        self.spec = spec
        self._pending: dict[str, _Pending] = {}

    def seal(self, data: Dataset) -> Dataset:
        """A site's own rows, which only ``fit`` reads from here on."""
        return Sealed(data)

    def draw(
        self, data: Dataset, size: int, *, epochs: int, steps: int | None, key: str | int
    ) -> Iterator[Batch] | None:
        """Stands for the batches of sealed rows; None for open ones, such as the public set's."""
        if not isinstance(data, Sealed):
            return None
        return SealedBatches(data, size, epochs, steps, key)

    def fit(
        self,
        learner: Learner,
        loss: Loss,
        batches: Iterable[Batch],
        optimizer: Optimizer,
        adjust: Adjust | None,
    ) -> float | None:
        """Trains on sealed batches; None for open ones.

        Returns 0.0 and not the mean loss, which is a statistic of private rows. ``adjust`` gets
        noised gradients and a batch that cannot be read. Raises ConfigError for a model or a graph
        whose rows depend on each other, SiteError for weights that are not finite.
        """
        if not isinstance(batches, SealedBatches):
            return None
        if not len(batches.data):
            raise DataError(f"{learner.name} has no rows to train on")
        check_model(learner.model)
        data = _opened(batches.data)
        if GRAPH in data.columns:
            raise ConfigError(
                "the nodes of a graph depend on their neighbours, so that no row's gradient is its "
                "own; protect.privacy.mode: rows cannot cover it: write mode: central or local"
            )
        data = learner.prepared(data)
        before = _buffers(learner.model)
        gradients = RowGradients(learner.model, loss, optimizer.parameters, self.spec.clip)
        with gradients:
            for step in range(batches.steps):
                self._step(learner, batches, data, gradients, optimizer, adjust, step)
        _check_after(learner, before)
        self._note(learner, batches)
        return 0.0

    def _step(
        self,
        learner: Learner,
        batches: SealedBatches,
        data: Dataset,
        gradients: RowGradients,
        optimizer: Optimizer,
        adjust: Adjust | None,
        step: int,
    ) -> None:
        drawn = _luck(len(data), learner.hidden_rng(batches.key, "rows drawn", step))
        index = (drawn < batches.expected / len(data)).nonzero().flatten()
        total = gradients.clipped_sum(data.batch(index))
        rng = learner.hidden_rng(batches.key, "rows noise", step)
        noisy = noised(total, noise_size(self.spec.clip, self.spec.noise), rng) / batches.expected
        parts = noisy.split([value.numel() for value in optimizer.parameters])
        # Its gradient is what the optimiser is to see, and all else of a step stays as it is.
        stand_in = torch.stack(
            [
                (value * part.view_as(value)).sum()
                for value, part in zip(optimizer.parameters, parts, strict=True)
            ]
        ).sum()

        def adjusted() -> None:
            if adjust is not None:
                adjust(learner.model, SealedBatch())

        optimizer.step(stand_in, adjusted)

    def _note(self, learner: Learner, batches: SealedBatches) -> None:
        """Remembers the steps until the reply leaves."""
        rows = len(batches.data)
        pending = self._pending.get(learner.name)
        if pending is None or pending.key != learner.key:
            # An operation that failed has released nothing.
            pending = self._pending[learner.name] = _Pending(learner.key, rows)
        pending.steps.append((Gaussian(self.spec.noise, batches.expected / rows), batches.steps))

    def leave(self, value: Tree, passage: Passage) -> Tree:
        """The reply with what is spent by it; raises BudgetError where that is too much."""
        pending = self._pending.pop(passage.site, None)
        if pending is None or pending.key != (passage.op, passage.tag):
            return value
        before = Accountant.of(passage.memory.get("spent"), self.spec.accountant)
        after = Accountant.of(passage.memory.get("spent"), self.spec.accountant)
        for release, times in pending.steps:
            after.add(release, times)
        note = told(self.spec, before, after, self.spec.delta_for(pending.rows), "row")
        passage.memory["spent"] = after.tree()
        return {**value, SPENT: note}

    def arrive(self, value: Tree, passage: Passage) -> Tree:
        """The reply as it came."""
        return value


def _luck(rows: int, rng: torch.Generator) -> Tensor:
    """A number from 0 to below 1 for each row: by whom it was drawn is a part of the protection."""
    if isinstance(rng, Concealed):
        return rng.uniform(torch.zeros(rows))
    return torch.rand(rows, generator=rng)


def check_model(model: nn.Module) -> None:
    """Raises ConfigError for a model that mixes the rows of a batch by batch norm."""
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS) and not is_frozen(module):
            raise ConfigError(
                f"the model's {name or 'top'} is a {type(module).__name__}, which mixes the rows "
                "of a batch; protect.privacy.mode: rows needs GroupNorm in its place"
            )


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers()}


def _check_after(learner: Learner, before: Mapping[str, Tensor]) -> None:
    for name, value in learner.model.named_buffers():
        if name in before and not torch.equal(value, before[name]):
            raise ConfigError(
                f"training changes the model's {name}, a statistic of private rows that no noise "
                "covers; protect.privacy.mode: rows needs GroupNorm, or another layer without it"
            )
    for name, parameter in learner.model.named_parameters():
        if not math.isfinite(float(parameter.detach().sum(dtype=torch.float32))):
            raise SiteError(
                f"{learner.name}: the weights {name!r} became infinite or NaN; lower the learning "
                "rate, the clip or the noise"
            )
