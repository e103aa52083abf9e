"""Gradients of single rows: all at once by Opacus where that is right, else one row at a time."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from motet.core.batch import Batch
from motet.core.errors import ConfigError
from motet.core.learner import Loss
from motet.nn.private import clipped

PROBE = 4
# Far above what the order of additions changes in float32, and far below any real dependence.
CLOSE = 1e-4


class RowGradients:
    """Clipped sums of the gradients of the loss on each row alone.

    Opacus works them out for a whole batch at once, and is right where the loss is a mean over
    rows that do not depend on each other and the model is built of layers that it knows. So the
    first batch of two rows or more is tried both ways: only where the gradients of a few rows
    agree does Opacus go on. A few rows are evidence and no proof; ``opacus=False`` does without.
    Used as a context, since it hooks into the model.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        parameters: Sequence[nn.Parameter],
        clip: float,
        *,
        opacus: bool = True,
    ) -> None:
        self.model = model
        self.loss = loss
        self.parameters = list(parameters)
        self.clip = clip
        # Opacus keeps its notes under this name, and a layer may have something of its own there.
        taken = any("activations" in vars(module) for module in model.modules())
        # None until it was tried.
        self.fast: bool | None = None if opacus and not taken else False
        self._hooks: Any = None

    def __enter__(self) -> RowGradients:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._unhook()

    def clipped_sum(self, batch: Batch) -> Tensor:
        """The sum over rows of their gradients, each clipped: [d]; 0 for a batch without rows."""
        found: Tensor | None = None
        # Where rows lack modalities, layers see fewer rows than the batch has.
        if len(batch) > 1 and self.fast is not False and _complete(batch):
            if self.fast is None:
                self.fast = self._agrees(batch)
            found = self._at_once(batch) if self.fast else None
            if self.fast and found is None:
                self.fast = False
                self._unhook()
        if found is not None:
            return clipped(found, self.clip).sum(dim=0)
        total = torch.zeros(sum(value.numel() for value in self.parameters))
        for number in range(len(batch)):
            total += clipped(self.alone(batch, number).unsqueeze(0), self.clip).squeeze(0)
        return total

    def alone(self, batch: Batch, number: int) -> Tensor:
        """The gradient of the loss on this one row as a batch of its own: [d]."""
        with self._still():
            value = self.loss(self.model, row_of(batch, number))
            if not value.requires_grad:
                return torch.zeros(sum(value.numel() for value in self.parameters))
            found: Sequence[Tensor | None] = torch.autograd.grad(
                value, self.parameters, allow_unused=True
            )
        parts = [
            torch.zeros_like(parameter) if part is None else part
            for part, parameter in zip(found, self.parameters, strict=True)
        ]
        return torch.cat([part.flatten() for part in parts])

    def _agrees(self, batch: Batch) -> bool:
        """Whether Opacus finds what each of the first rows gives alone."""
        if not self._hook():
            return False
        with _without_dropout(self.model):
            found = self._at_once(batch)
            few = [] if found is None else list(found[:PROBE])
            own = (self.alone(batch, number) for number in range(len(few)))
            agree = bool(few) and all(_close(a, b) for a, b in zip(few, own, strict=True))
        if not agree:
            self._unhook()
        return agree

    def _at_once(self, batch: Batch) -> Tensor | None:
        """Every row's gradient by Opacus [n, d]; None where it cannot tell them apart."""
        for parameter in self.parameters:
            parameter.grad = None
        try:
            with _silent():
                self.loss(self.model, batch).backward()
            found = [_samples(parameter, len(batch)) for parameter in self.parameters]
        except (RuntimeError, ValueError, AttributeError, TypeError):
            return None
        finally:
            _clear(self.model, self.parameters)
        if any(part is None for part in found):
            return None
        return torch.cat([part for part in found if part is not None], dim=1)

    def _hook(self) -> bool:
        try:
            module = importlib.import_module("opacus.grad_sample")
        except ImportError as error:
            raise ConfigError(
                "protect.privacy.mode: rows finds rows' gradients with Opacus, which is not there: "
                "pip install 'motet[privacy]'"
            ) from error
        try:
            with _silent():
                self._hooks = module.GradSampleModule(self.model, strict=True)
        except (ValueError, RuntimeError):
            return False
        return True

    def _unhook(self) -> None:
        if self._hooks is not None:
            self._hooks.to_standard_module()
            self._hooks = None

    @contextmanager
    def _still(self) -> Iterator[None]:
        """Inside, Opacus does not listen."""
        if self._hooks is None:
            yield
            return
        self._hooks.disable_hooks()
        try:
            with _silent():
                yield
        finally:
            self._hooks.enable_hooks()


def row_of(batch: Batch, number: int) -> Batch:
    """One row of a batch as a batch."""
    at = slice(number, number + 1)

    def cut(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value[at] for name, value in values.items()}

    labels = None if batch.labels is None else batch.labels[at]
    return Batch(cut(batch.inputs), cut(batch.present), labels, batch.rows[at])


def _complete(batch: Batch) -> bool:
    return all(bool(mask.all()) for mask in batch.present.values())


def _samples(parameter: nn.Parameter, rows: int) -> Tensor | None:
    """This parameter's gradients by row [rows, d]; None where they cannot be right."""
    found, grad = getattr(parameter, "grad_sample", None), parameter.grad
    if grad is None:
        return torch.zeros(rows, parameter.numel()) if found is None else None
    if not isinstance(found, Tensor) or len(found) != rows:
        return None
    flat = found.reshape(rows, -1)
    # Their mean is the batch's gradient, or a layer has seen other rows than the batch's.
    return flat if _close(flat.mean(dim=0), grad.flatten()) else None


def _close(a: Tensor, b: Tensor) -> bool:
    scale = max(float(a.norm()), float(b.norm()))
    return float((a - b).norm()) <= CLOSE * scale + 1e-8


def _clear(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Forgets what Opacus has noted."""
    for parameter in parameters:
        parameter.grad = None
        if hasattr(parameter, "grad_sample"):
            parameter.grad_sample = None
        if hasattr(parameter, "_forward_counter"):
            parameter._forward_counter = 0
        if hasattr(parameter, "_current_grad_sample"):
            del parameter._current_grad_sample
    for module in model.modules():
        for name in ("activations", "max_batch_len"):
            if name in vars(module):
                delattr(module, name)


@contextmanager
def _silent() -> Iterator[None]:
    # Torch warns of hooks on the first layer, whose input needs no gradient.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    dropped = [m for m in model.modules() if isinstance(m, _DropoutNd) and m.training]
    for module in dropped:
        module.training = False
    try:
        yield
    finally:
        for module in dropped:
            module.training = True
