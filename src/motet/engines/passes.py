"""Forward passes of several sites as one: what equal models make of rows of their own."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from motet.core.batch import Batch, Dataset
from motet.core.graph import GRAPH
from motet.core.learner import evaluating
from motet.core.passing import Passed, pass_over
from motet.engines.alike import Structure
from motet.engines.fits import close, form_of
from motet.engines.tape import Broken, Tape, Unlike, record
from motet.engines.tapes import Tapes

# Rows of a site above which a pass of its own is as fast; those of 32 sites must fit in memory.
MOST_ROWS = 64
# Different numbers of rows are filled up to a multiple of this.
STEP = 16


class Pass:
    """A pass over all rows of a data set; raises Unlike where it is to be made alone.

    data: as the model reads it. wanted: modalities whose features are asked for.
    """

    def __init__(self, model: nn.Module, data: Dataset, wanted: Sequence[str], batch: int) -> None:
        self.model, self.data, self.wanted = model, data, tuple(wanted)
        columns = [column for column in data.columns.values() if isinstance(column, Tensor)]
        if GRAPH in data.columns or len(columns) < len(data.columns):
            raise Unlike("its rows are nodes of a graph, or no tensors")
        if not data.complete:
            raise Unlike("some of its rows lack a modality")
        if not 0 < len(data) <= min(batch, MOST_ROWS):
            raise Unlike("its rows are enough for a pass of their own")
        if torch.is_autocast_enabled("cpu"):
            raise Unlike("it is made in a mode of its own")
        with evaluating(model):
            self.structure = Structure(model)
        self.held: Any = self.structure.held
        self.columns = [*columns, data.rows]
        rows = tuple([(column.dtype, column.shape[1:], column.device) for column in self.columns])
        made_of = ("pass", self.structure.key, tuple(data.columns), rows, self.wanted)
        self.form: Hashable = form_of(made_of)
        self.key: Hashable = self.form
        self.tensors = [*self.structure.parameters.values(), *self.structure.buffers.values()]

    def alone(self) -> Passed:
        """The pass by itself."""
        return pass_over(self.model, self.data, self.wanted, len(self.data))

    @property
    def bytes(self) -> int:
        """What it adds to a stack."""
        return sum(tensor.nbytes for tensor in (*self.tensors, *self.columns))


@torch.no_grad()
def pass_together(passes: Sequence[Pass], tapes: Tapes, *, chunk_bytes: int) -> list[Passed]:
    """What equal passes give; so many of them at a time are stacked as fit into ``chunk_bytes``.

    Raises Unlike when it cannot be done, or does not give what single passes give, and Broken where
    the pass fails.
    """
    tapes.hold(passes[0])
    most = chunk_bytes // max(max(one.bytes for one in passes), 1)
    if most < 2:
        raise Unlike("its model and rows are large enough for a pass of their own")
    size = -(-len(passes) // -(-len(passes) // most))
    found: list[Passed] = []
    try:
        if tapes.undecided(passes[0].form):
            _play(passes[:2], tapes)
        for start in range(0, len(passes), size):
            found += _play(passes[start : start + size], tapes)
        _check(passes, found, tapes)
    except Unlike:
        raise
    except Exception as error:
        raise Broken(f"{type(error).__name__}: {error}") from error
    return found


def _check(passes: Sequence[Pass], found: Sequence[Passed], tapes: Tapes) -> None:
    """Compares one with the single pass, when there were none of this form before."""
    form = passes[0].form
    if form not in tapes.checked:
        # Of the one to which most rows were added.
        which = min(range(len(passes)), key=lambda i: len(passes[i].data))
        if not _same(found[which], passes[which].alone()):
            raise Unlike("a stacked pass gave something else than a single one")
        tapes.checked.add(form)


def _play(passes: Sequence[Pass], tapes: Tapes) -> list[Passed]:
    longest = _length([len(one.data) for one in passes])
    inputs = [
        *map(torch.stack, zip(*(one.tensors for one in passes), strict=True)),
        *map(torch.stack, zip(*(_filled_up(one, longest) for one in passes), strict=True)),
    ]
    first = passes[0]
    key = (first.form, len(passes), longest)
    recorded = tapes.get(key, lambda: _recorded(first, inputs))
    numbers = sum(value.numel() for value in first.structure.parameters.values())
    tapes.weigh(first.form, recorded.tape, len(passes), numbers)
    made = recorded.tape(inputs)
    found = []
    for number, one in enumerate(passes):
        own = [part[number, : len(one.data)] for part in made]
        logits = own.pop() if recorded.logits else None
        features = dict(zip(recorded.features, own, strict=True))
        found.append(Passed(recorded.names, features, logits))
    return found


def _length(sizes: Sequence[int]) -> int:
    """Rows to which all are filled up: few different numbers, since each needs a recording."""
    longest = max(sizes)
    return longest if min(sizes) == longest else -(-longest // STEP) * STEP


def _filled_up(one: Pass, length: int) -> list[Tensor]:
    """Its columns and row ids with the last row again and again, up to so many."""
    if len(one.data) == length:
        return one.columns
    index = torch.arange(length).clamp(max=len(one.data) - 1)
    return [column.index_select(0, index) for column in one.columns]


@dataclass
class _Recorded:
    """A pass as it is played back: the features of these modalities, then logits if any."""

    tape: Tape
    names: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    logits: bool = False


def _recorded(one: Pass, inputs: Sequence[Tensor]) -> _Recorded:
    held = [*one.structure.parameters, *one.structure.buffers]
    seen: dict[str, Any] = {}

    def single(tensors: list[Tensor], columns: list[Tensor]) -> list[Tensor]:
        present = {
            name: torch.ones(len(columns[-1]), dtype=torch.bool) for name in one.data.columns
        }
        given = dict(zip(one.data.columns, columns, strict=False))
        batch = Batch(inputs=given, present=present, labels=None, rows=columns[-1])
        output: Any = functional_call(one.model, dict(zip(held, tensors, strict=True)), (batch,))
        names = tuple(output.features)
        features = one.wanted if set(one.wanted) <= set(names) else ()
        seen.update(names=names, features=features, logits=output.logits is not None)
        made = [output.features[name] for name in features]
        return made if output.logits is None else [*made, output.logits]

    def step(tensors: Sequence[Tensor]) -> list[Tensor]:
        count = len(held)
        found: list[Tensor] = vmap(single)(list(tensors[:count]), list(tensors[count:]))
        return found

    # On the tensors of other sites than those for which it is then checked.
    others = [item.roll(1, 0) for item in inputs]
    try:
        with evaluating(one.model):
            return _Recorded(record(step, others), **seen)
    except Unlike:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:160] if str(error) else ""
        raise Unlike(f"its pass cannot be stacked: {type(error).__name__}: {reason}") from error


def _same(found: Passed, wanted: Passed) -> bool:
    pairs = [(found.features.get(name), value) for name, value in wanted.features.items()]
    every = [*pairs, (found.logits, wanted.logits)]
    return found.names == wanted.names and all(close(a, b, 1.0) for a, b in every)
