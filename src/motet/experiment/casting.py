"""The models of a recipe's parties; what equal ones have in common is held once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from motet.core import Dataset, wire
from motet.core.groups import frozen_names
from motet.core.mould import Mould
from motet.core.rng import generator, seeded
from motet.experiment.spec import Experiment
from motet.models.base import MultimodalModel
from motet.models.registry import ModelSpec, build_model


class Models:
    """Builds the parties' models; what is frozen in them is held once."""

    def __init__(self, experiment: Experiment, public: Dataset | None) -> None:
        self.seed = experiment.seed
        self.common = experiment.common_start
        self.transform = experiment.method.transform
        self.public = public
        self.frozen: dict[str, torch.Tensor] = {}
        # Parties with equal models have one mould.
        self.moulds: dict[tuple[Any, ...], Mould[MultimodalModel]] = {}

    def builder(
        self, spec: ModelSpec, modalities: Sequence[str] | None, classes: int, party: str
    ) -> Callable[[], MultimodalModel]:
        """A function that builds this party's model, equal at every call."""
        key = (self.seed, "model") if self.common else (self.seed, party, "model")
        # The recipe holds its specifications for as long as there is anything to build.
        equal = (id(spec), None if modalities is None else tuple(modalities), classes)
        if equal in self.moulds:
            return self.moulds[equal]

        def build() -> MultimodalModel:
            model = build_model(spec, modalities, classes, generator(*key))
            if self.public is not None:
                model.calibrate(self.public)
            with seeded(*key, "transform"):
                made = self.transform(model)
            share_frozen(made, self.frozen)
            assert isinstance(made, MultimodalModel)
            return made

        if not self.common:
            return build
        self.moulds[equal] = Mould(build)
        return self.moulds[equal]


def share_frozen(model: nn.Module, pool: dict[str, torch.Tensor]) -> None:
    """Has the model hold frozen tensors that another one holds already, in place of its own."""
    frozen = frozen_names(model)
    for path, module in model.named_modules():
        for slots in (module._parameters, module._buffers):
            for name, value in slots.items():
                if value is not None and f"{path}.{name}".lstrip(".") in frozen:
                    value.data = pool.setdefault(wire.digest({"value": value.detach()}), value.data)
