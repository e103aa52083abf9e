"""A model of any set of modalities: one encoder each, a common unit sphere, a head if asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.batch import Batch, Column, Dataset, Output


class Encoder(nn.Module):
    """One modality's encoder: raw column -> prepared tensor (once) -> embedding [n, width].

    ``prepare`` holds what is deterministic and never trained (resizing, tokenising, a frozen
    trunk): it runs once per data set and its result is kept, shared by all sites whose encoder
    has the same ``key``.

    ``calibrate`` is for what must be fitted before training and may see no private row (a
    vocabulary, the mean of a feature): the framework calls it once, with the public set's column.
    """

    modality: str = ""
    width: int

    @property
    def key(self) -> str:
        """Names the preparation: encoders with equal keys prepare alike."""
        return type(self).__name__

    def calibrate(self, column: Column) -> None:
        """Fits what is never trained to raw PUBLIC values of n rows; by default there is nothing.

        Deterministic and silent to the random state, so that sites which calibrate on the same
        public column agree without exchanging anything.
        """

    def prepare(self, column: Column) -> Tensor:
        """Raw values of n rows -> tensor [n, ...] that ``forward`` takes."""
        if not isinstance(column, Tensor):
            raise TypeError(f"{type(self).__name__} cannot prepare strings")
        return column

    def forward(self, x: Tensor) -> Tensor:
        """[n, ...] -> embedding [n, width], not normalised."""
        raise TypeError(f"{type(self).__name__} has no forward")


class MultimodalModel(nn.Module):
    """Encoders for any set of modalities, projected to one unit sphere; an optional class head.

    encoders: modality -> Encoder, all of the same ``width`` d.
    classes: number of classes; 0 for no head. The head reads GELU of the embeddings before
        they are normalised, averaged over the modalities that a row has: ``aux["embedding"]``.
    """

    def __init__(self, encoders: Mapping[str, Encoder], classes: int = 0) -> None:
        super().__init__()
        widths = {name: encoder.width for name, encoder in encoders.items()}
        if len(set(widths.values())) != 1:
            raise ValueError(f"encoders must share one embedding width, not {widths}")
        self.encoders = nn.ModuleDict({name: encoders[name] for name in sorted(encoders)})
        self.width = next(iter(widths.values()))
        self.head = nn.Linear(self.width, classes) if classes else None
        # Learnable scale and shift of the pairwise soft contrast (CreamFL's task loss): they
        # persist with the model, and a method that does not use them leaves them as they are.
        both = {"image", "text"} <= set(encoders)
        start = {"scale": torch.tensor(15.0), "shift": torch.tensor(15.0)} if both else {}
        self.pair = nn.ParameterDict({name: nn.Parameter(value) for name, value in start.items()})

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that the model can read, sorted."""
        return tuple(self.encoders)

    def calibrate(self, data: Dataset) -> None:
        """Lets every encoder with a column in this PUBLIC data set fit itself to it."""
        for name in self.modalities:
            if name in data.columns and data.present[name].any():
                rows = data.only([name])
                if not data.present[name].all():
                    rows = rows.take(data.present[name].nonzero().flatten())
                encoder = self.encoders[name]
                assert isinstance(encoder, Encoder)
                encoder.calibrate(rows.columns[name])

    def prepare(self, data: Dataset) -> Dataset:
        """The data set with every modality of this model made ready for ``forward``."""
        columns: dict[str, Column] = {}
        ready: dict[str, str] = {}
        for name, encoder in self.encoders.items():
            if name in data.columns:
                assert isinstance(encoder, Encoder)
                ready[name] = encoder.key
                columns[name] = _prepared(data, name, encoder, ready[name])
        return data.with_columns(columns, ready)

    def forward(self, batch: Batch) -> Output:
        """Encodes the modalities that batch and model share; any subset will do."""
        names = [name for name in self.modalities if name in batch.inputs]
        raw = {name: self.encoders[name](batch.inputs[name]) for name in names}
        features = UnitVectors(raw)
        if self.head is None or not raw:
            return Output(features=features)
        embedding = _mean_of_present(raw, batch)
        return Output(self.head(embedding), features, {"embedding": embedding})


class UnitVectors(Mapping[str, Tensor]):
    """Modality -> embedding on the unit sphere, worked out when it is first read.

    A loss on class scores alone has no use for them, and they cost a percent of a small CNN's step.
    """

    def __init__(self, raw: Mapping[str, Tensor]) -> None:
        self._raw = raw
        self._made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            self._made[name] = F.normalize(self._raw[name], dim=-1)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


def _prepared(data: Dataset, name: str, encoder: Encoder, encoders_key: str) -> Tensor:
    """What the encoder makes of a column, worked out once for as long as its data set lives."""
    column = data.columns[name]
    if data.ready.get(name) == encoders_key and isinstance(column, Tensor):
        return column
    key = (id(column), encoders_key)
    found = data.cache.get(key)
    if found is None:
        # The column is kept beside it, so that no other one can take over its id.
        prepared = encoder.prepare(column)
        if len(prepared) != len(column):
            raise ValueError(
                f"the encoder of {name!r} makes {len(prepared)} rows of {len(column)}; it should "
                "make one of each"
            )
        found = data.cache[key] = (column, prepared)
    return found[1]


def _mean_of_present(raw: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Mean of GELU(embedding) over the modalities that each row has: [n, d]."""
    if len(raw) == 1:
        ((name, value),) = raw.items()
        there = batch.present[name]
        return F.gelu(value) if bool(there.all()) else there.unsqueeze(-1) * F.gelu(value)
    masks = torch.stack([batch.present[name].to(next(iter(raw.values())).dtype) for name in raw])
    values = torch.stack([F.gelu(value) for value in raw.values()])
    total = (masks.unsqueeze(-1) * values).sum(dim=0)
    return total / masks.sum(dim=0).clamp(min=1).unsqueeze(-1)
