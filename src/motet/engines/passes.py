"""Forward passes of several sites as one: what equal models make of rows of their own."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from motet.core.batch import Dataset
from motet.core.learner import evaluating
from motet.core.passing import Passed, pass_over, wanted_features
from motet.engines.alike import Structure
from motet.engines.fits import close, columns_form, form_of, rows_obstacle, whole_batch
from motet.engines.tape import Tape, Unlike, record
from motet.engines.tapes import Tapes, nothing_changed, share, stacking

# Rows of a site above which a pass of its own is as fast; those of 32 sites must fit in memory.
MOST_ROWS = 64
# Different numbers of rows are filled up to a multiple of this.
STEP = 16


class Pass:
    """A pass over all rows of a data set; raises Unlike where it is to be made alone.

    data: as the model reads it. wanted: modalities whose features are asked for.
    """

    def __init__(self, module: nn.Module, data: Dataset, wanted: Sequence[str], batch: int) -> None:
        self.module, self.data, self.wanted = module, data, wanted
        if why := rows_obstacle(data):
            raise Unlike(why)
        if not 0 < len(data) <= min(batch, MOST_ROWS):
            raise Unlike("its rows are enough for a pass of their own")
        if torch.is_autocast_enabled("cpu"):
            raise Unlike("it is made in a mode of its own")
        with evaluating(module):
            self.model = Structure(module)
        self.held: Any = self.model.held
        columns = [column for column in data.columns.values() if isinstance(column, Tensor)]
        self.columns = [*columns, data.rows]
        self.form: Hashable = form_of(("pass", self.model.key, columns_form(data), tuple(wanted)))
        self.key: Hashable = self.form
        self.tensors = [*self.model.parameters.values(), *self.model.buffers.values()]

    def alone(self) -> Passed:
        """The pass by itself."""
        return pass_over(self.module, self.data, self.wanted, len(self.data))

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
    size = share(len(passes), most)
    found: list[Passed] = []
    with nothing_changed():
        if tapes.undecided(passes[0].form):
            _play(passes[:2], tapes)
        for start in range(0, len(passes), size):
            found += _play(passes[start : start + size], tapes)
        _check(passes, found, tapes)
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
    tapes.weigh(first, recorded.tape, len(passes))
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
    names: tuple[str, ...]
    features: tuple[str, ...]
    logits: bool


def _recorded(one: Pass, inputs: Sequence[Tensor]) -> _Recorded:
    held = [*one.model.parameters, *one.model.buffers]
    seen: dict[str, Any] = {}

    def single(tensors: list[Tensor], columns: list[Tensor]) -> list[Tensor]:
        batch = whole_batch(list(one.data.columns), columns, None)
        output: Any = functional_call(one.module, dict(zip(held, tensors, strict=True)), (batch,))
        features = wanted_features(output, one.wanted)
        logits = [] if output.logits is None else [output.logits]
        names = tuple(output.features)
        seen.update(names=names, features=tuple(features), logits=bool(logits))
        return [*features.values(), *logits]

    def step(tensors: Sequence[Tensor]) -> list[Tensor]:
        count = len(held)
        found: list[Tensor] = vmap(single)(list(tensors[:count]), list(tensors[count:]))
        return found

    # On the tensors of other sites than those for which it is then checked.
    others = [item.roll(1, 0) for item in inputs]
    with stacking("pass"), evaluating(one.module):
        return _Recorded(record(step, others), **seen)


def _same(found: Passed, wanted: Passed) -> bool:
    pairs = [(found.features.get(name), value) for name, value in wanted.features.items()]
    every = [*pairs, (found.logits, wanted.logits)]
    return found.names == wanted.names and all(close(a, b, 1.0) for a, b in every)
