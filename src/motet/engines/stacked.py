"""Fits of several sites as one: their models are stacked, and steps are taken for all at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from motet.core.batch import Batch
from motet.core.learner import Taken
from motet.engines.fits import Fit, alone, close, whole_batch
from motet.engines.rules import by_site
from motet.engines.tape import Product, Tape, Unlike, record
from motet.engines.tapes import Tapes, nothing_changed, share, stacking

# Of a chunk's parameters, their gradients and their moments: what stays in a processor's cache
# is worth more than a few kernels less.
CHUNK_BYTES = 2**25
# Of the batches that are gathered at a time.
GATHERED_BYTES = 2**26
NO_LABEL = -100


def fit_together(
    fits: Sequence[Fit], tapes: Tapes, *, chunk_bytes: int = CHUNK_BYTES
) -> list[Taken]:
    """Trains the models of equal fits.

    Raises Unlike when it cannot be done, or does not give what single steps give, and Broken where
    a step fails; all models are then as they were.
    """
    tapes.hold(fits[0])
    most = max(1, chunk_bytes // max(_bytes(fits[0]), 1))
    size = share(len(fits), most)
    # Those with the most steps come first, so that whoever is done drops off the end.
    order = sorted(range(len(fits)), key=lambda i: (-len(fits[i].sizes), fits[i].sizes))
    found: dict[int, Taken] = {}
    done: list[_Chunk] = []
    with nothing_changed():
        if tapes.undecided(fits[0].form):
            # By two of them: to find out that a model is too large is dear with more.
            _Chunk([fits[i] for i in order[:2]], tapes).weigh()
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            chunk = _Chunk([fits[i] for i in numbers], tapes)
            found.update(zip(numbers, chunk.run(), strict=True))
            done.append(chunk)
    for chunk in done:
        chunk.write_back()
    return [found[i] for i in range(len(fits))]


def _bytes(fit: Fit) -> int:
    held = sum(value.nbytes for value in fit.optimizer.parameters)
    gradients = 0 if fit.rule.takes_products and fit.adjust is None else 1
    return held * (1 + gradients + fit.rule.moments)


class _Call(nn.Module):
    """A model on which a function is called, for ``functional_call``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], batch: Batch | None) -> Any:
        return function(self.model, batch)


class _Chunk:
    """Some equal fits whose parameters, buffers and moments are stacked along a first axis."""

    def __init__(self, fits: Sequence[Fit], tapes: Tapes) -> None:
        self.fits = fits
        self.tapes = tapes
        self.names = list(fits[0].model.parameters)
        self.buffer_names = list(fits[0].model.buffers)
        self.parameters = _stacks([fit.optimizer.parameters for fit in fits])
        self.buffers = _stacks([list(fit.model.buffers.values()) for fit in fits])
        columns = list(zip(*(fit.tensors for fit in fits), strict=True))
        self.shared = [all(item is column[0] for item in column) for column in columns]
        self.captured = [
            column[0] if shared else torch.stack(column)
            for column, shared in zip(columns, self.shared, strict=True)
        ]
        self.rule = fits[0].rule
        self.rule.stack([fit.optimizer for fit in fits])
        self.full = max(max(fit.sizes) for fit in fits if fit.sizes)
        self.padding = bool(getattr(fits[0].loss, "skips_unlabelled", False))
        self.inputs = list(fits[0].data.columns)
        self.labelled = fits[0].data.labels is not None
        self.total = torch.zeros(len(fits))

    @torch.no_grad()
    def run(self) -> list[Taken]:
        """Takes all steps; what came of those of each fit."""
        longest = len(self.fits[0].sizes)
        row = sum(
            column[0].nbytes
            for column in self.fits[0].data.columns.values()
            if isinstance(column, Tensor)
        )
        block = max(1, GATHERED_BYTES // max(row * self.full * len(self.fits), 1))
        for start in range(0, longest, block):
            count = min(block, longest - start)
            gathered = self._gather(start, count)
            for step in range(count):
                for low, high, size, padded in self._runs(start + step):
                    batch = [item[low:high, step, :size] for item in gathered]
                    self._step(low, high, start + step, batch, padded)
        sums = [by_site(item).sum(dim=1, dtype=torch.float32) for item in self.parameters]
        finite = torch.stack(sums).sum(dim=0).isfinite().tolist()
        steps = [len(fit.sizes) for fit in self.fits]
        return list(map(Taken, self.total.tolist(), steps, finite))

    @torch.no_grad()
    def weigh(self) -> None:
        """Records a step without taking it; raises Unlike where several sites gain nothing."""
        gathered = self._gather(0, 1)
        low, high, size, padded = next(self._runs(0))
        inputs = self._inputs(low, high, [item[low:high, 0, :size] for item in gathered])
        self._tape(inputs, padded)

    def _gather(self, start: int, count: int) -> list[Tensor]:
        """Columns, labels where there are any, and row ids, each [fits, count, full, ...]."""
        active = [fit for fit in self.fits if len(fit.sizes) > start]
        sources: list[list[Any]] = [
            [
                *fit.data.columns.values(),
                *([fit.data.labels] if self.labelled else []),
                fit.data.rows,
            ]
            for fit in active
        ]
        made: list[Tensor] = [
            first.new_empty(len(active), count * self.full, *first.shape[1:])
            for first in sources[0]
        ]
        odd = False
        targets = zip(*[item.unbind(0) for item in made], strict=True)
        for fit, own, parts in zip(active, sources, targets, strict=True):
            index, even = self._positions(fit, start, count)
            odd |= not even
            for target, source in zip(parts, own, strict=True):
                torch.index_select(source, 0, index, out=target)
        made = [item.view(len(active), count, self.full, *item.shape[2:]) for item in made]
        if odd and self.padding and self.labelled:
            sizes = torch.tensor(
                [[*fit.sizes, *[0] * (start + count)][start : start + count] for fit in active]
            )
            made[-2][torch.arange(self.full) >= sizes.unsqueeze(-1)] = NO_LABEL
        return made

    def _positions(self, fit: Fit, start: int, count: int) -> tuple[Tensor, bool]:
        """Positions [count * full] of a fit's rows, and whether none had to be made up."""
        if fit.sizes[start : start + count] == [self.full] * count:
            first = sum(fit.sizes[:start])
            return fit.order[first : first + count * self.full], True
        padded = pad_sequence(list(fit.positions()[start : start + count]), batch_first=True)
        rest = (0, self.full - padded.shape[1], 0, count - len(padded))
        return F.pad(padded, rest).flatten(), False

    def _runs(self, step: int) -> Iterator[tuple[int, int, int, bool]]:
        """(from, to, rows, whether some are padding): fits that take this step together."""
        sizes = [fit.sizes[step] for fit in self.fits if len(fit.sizes) > step]
        if self.padding and self.labelled and any(size != self.full for size in sizes):
            bounds = [(0, len(sizes), self.full, True)]
        else:
            edges = [i for i in range(1, len(sizes)) if sizes[i] != sizes[i - 1]]
            pairs = zip([0, *edges], [*edges, len(sizes)], strict=True)
            bounds = [(low, high, sizes[low], False) for low, high in pairs]
        for low, high, size, padded in bounds:
            if high - low == len(self.fits):
                yield low, high, size, padded
                continue
            # Powers of two, since every number of sites needs a tape of its own.
            while low < high:
                count = 1 << ((high - low).bit_length() - 1)
                yield low, low + count, size, padded
                low += count

    def _step(self, low: int, high: int, step: int, batch: Sequence[Tensor], padded: bool) -> None:
        inputs = self._inputs(low, high, batch)
        tape, form = self._tape(inputs, padded), self._form(padded)
        if form in self.tapes.checked:
            losses, *gradients = tape(inputs)
        else:
            losses, gradients = self._checked(tape, inputs, low, high, step)
            self.tapes.checked.add(form)
        self.total[low:high] += losses
        self.rule.update([item[low:high] for item in self.parameters], gradients, low, high)

    def _inputs(self, low: int, high: int, batch: Sequence[Tensor]) -> list[Tensor]:
        """What a step of these sites is computed from."""
        captured = [
            item if shared else item[low:high]
            for item, shared in zip(self.captured, self.shared, strict=True)
        ]
        return [*[item[low:high] for item in (*self.parameters, *self.buffers)], *captured, *batch]

    def _form(self, padded: bool) -> Hashable:
        """What is checked once; with the numbers of sites and rows, what a tape goes by."""
        return self.fits[0].form, tuple(self.shared), padded

    def _tape(self, inputs: Sequence[Tensor], padded: bool) -> Tape:
        """The tape of such a step; raises Unlike where so many sites gain nothing by it."""
        sites, rows = inputs[-1].shape[:2]
        key = (self._form(padded), sites, rows)
        tape = self.tapes.get(key, lambda: self._record(inputs, padded))
        self.tapes.weigh(self.fits[0], tape, sites)
        return tape

    def _record(self, inputs: Sequence[Tensor], padded: bool) -> Tape:
        count = len(self.parameters)
        stacked = len(inputs) - len(self.inputs) - self.labelled - 1
        shared = {
            count + len(self.buffers) + number for number, same in enumerate(self.shared) if same
        }
        # On the tensors of other sites than those for which it is then checked: what a recording
        # takes for a constant by mistake does not pass.
        others = [
            item.clone() if number in shared else item.roll(1, 0)
            for number, item in enumerate(inputs)
        ]
        changing = range(count, count + len(self.buffers))
        dims = [None if number in shared else 0 for number in range(count, stacked)]

        def step(tensors: Sequence[Tensor]) -> list[Tensor | None]:
            return self._losses_and_gradients(tensors, dims, padded)

        with stacking("step"), torch.enable_grad():
            tape = record(step, others, changing)
        if self.rule.takes_products and self.fits[0].adjust is None:
            tape.leave_products(range(1, 1 + count))
        return tape

    def _losses_and_gradients(
        self, tensors: Sequence[Tensor], dims: Sequence[int | None], padded: bool
    ) -> list[Tensor | None]:
        """The step as it is recorded: losses [sites], then the gradients as they are used."""
        count, end = len(self.parameters), len(self.parameters) + len(dims)
        parameters = [value.detach().requires_grad_() for value in tensors[:count]]
        others, rows = list(tensors[count:end]), list(tensors[end:])
        call = _Call(self.fits[0].learner.model)
        makes = [part.make for part in self.fits[0].parts]
        names = [f"model.{name}" for name in (*self.names, *self.buffer_names)]

        def one(number: int, values: list[Tensor], others: list[Tensor], rows: list[Tensor]) -> Any:
            held = dict(zip(names, [*values, *others], strict=False))
            captured = iter(others[len(self.buffers) :])
            functions = [make(captured) for make in makes]
            batch = None if number and padded else self._batch(rows)
            return functional_call(call, held, (functions[number], batch))

        def loss(values: list[Tensor], others: list[Tensor], rows: list[Tensor]) -> Tensor:
            found: Tensor = one(0, values, others, rows)
            return found

        losses = vmap(loss, in_dims=(0, list(dims), 0))(parameters, others, rows)
        if losses.shape != tensors[0].shape[:1]:
            raise Unlike("its loss is not one number")
        gradients: list[Tensor | None]
        ones = torch.ones(losses.shape, dtype=losses.dtype)
        gradients = list(torch.autograd.grad(losses, parameters, ones, allow_unused=True))
        if len(makes) > 1:
            there = [value for value in gradients if value is not None]

            def adjusted(
                values: list[Tensor],
                given: list[Tensor],
                others: list[Tensor],
                rows: list[Tensor],
            ) -> list[Tensor]:
                left = iter(given)
                for value, gradient in zip(values, gradients, strict=True):
                    value.grad = None if gradient is None else next(left)
                one(1, values, others, rows)
                return [value.grad for value in values if value.grad is not None]

            plain = [value.detach() for value in parameters]
            changed = iter(
                vmap(adjusted, in_dims=(0, 0, list(dims), 0))(plain, there, others, rows)
            )
            gradients = [None if value is None else next(changed) for value in gradients]
        return [losses.detach(), *gradients]

    def _batch(self, rows: Sequence[Tensor]) -> Batch:
        return whole_batch(self.inputs, rows, rows[-2] if self.labelled else None)

    def _checked(
        self, tape: Tape, inputs: Sequence[Tensor], low: int, high: int, step: int
    ) -> tuple[Tensor, list[Any]]:
        """Plays a step back, and compares it for one site with the step as it takes it alone."""
        count, buffers = len(self.parameters), len(self.buffers)
        which = min(range(low, high), key=lambda i: self.fits[i].sizes[step])
        fit = self.fits[which]
        before = [item[which - low].clone() for item in inputs[: count + buffers]]
        losses, *gradients = tape(inputs)
        whole = [_multiplied(item) for item in gradients]
        found = [
            losses[which - low],
            *[None if item is None else item[which - low] for item in whole],
            *[item[which - low] for item in inputs[count : count + buffers]],
        ]
        wanted = alone(fit, before, self.names, self.buffer_names, step)
        scale = sum(
            float(item.double().square().sum())
            for item in wanted[1 : 1 + count]
            if item is not None
        )
        for number, (value, right) in enumerate(zip(found, wanted, strict=True)):
            spread = scale**0.5 if 1 <= number <= count else 1.0
            if not close(value, right, spread):
                raise Unlike("a stacked step gave something else than a single one")
        return losses, gradients

    def write_back(self) -> None:
        """Gives every model and optimiser what it has become."""
        with torch.no_grad():
            for number, stack in enumerate(self.parameters):
                targets: list[Tensor] = [fit.optimizer.parameters[number] for fit in self.fits]
                torch._foreach_copy_(targets, list(stack.unbind(0)))
            for name, stack in zip(self.buffer_names, self.buffers, strict=True):
                targets = [fit.model.buffers[name] for fit in self.fits]
                torch._foreach_copy_(targets, list(stack.unbind(0)))
            self.rule.unstack([fit.optimizer for fit in self.fits])


def _multiplied(value: Any) -> Any:
    return torch.bmm(value.left, value.right) if isinstance(value, Product) else value


@torch.no_grad()
def _stacks(columns: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(same) for same in zip(*columns, strict=True)]
