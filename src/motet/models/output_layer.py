"""A model of which the class head alone is trained, over a frozen body that everyone has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from motet.core import ConfigError, Facts, wire
from motet.core.groups import freeze, frozen_names
from motet.models.base import MultimodalModel


def frozen_body(model: nn.Module) -> MultimodalModel:
    """Freezes the encoders, in place; the head loses its bias and starts at 0."""
    assert isinstance(model, MultimodalModel)
    freeze(model.encoders)
    if model.head is not None:
        model.head = nn.Linear(model.width, model.head.out_features, bias=False)
        nn.init.zeros_(model.head.weight)
    return model


def body_hash(model: nn.Module) -> str:
    """A hash of all that is frozen: equal for equal bodies."""
    weights = model.state_dict()
    return wire.digest({name: weights[name] for name in frozen_names(model)})


def output_layer(model: nn.Module) -> Tensor:
    """A copy of the head's weights with a column per class: [H, C]."""
    columns = _head(model).weight.detach().T
    return columns.clone(memory_format=torch.contiguous_format)


def set_output_layer(model: nn.Module, layer: Tensor) -> None:
    """Puts these weights [H, C] in place of the head's."""
    with torch.no_grad():
        _head(model).weight.copy_(layer.T)


def check_one_body(method: str, facts: Facts) -> None:
    """Refuses sites with different bodies or heads, for a method of this name."""
    heads = {facts.heads[site] for site in facts.sites}
    if len(heads) > 1 or 0 in heads:
        raise ConfigError(
            f"{method}'s peers exchange class heads, and not all have one of the same classes; "
            "write classify: true in each population"
        )
    bodies = {key: body for key, body in facts.encoders.items() if key[0] in facts.sites}
    if len(set(bodies.values())) > len({modality for _, modality in bodies}):
        raise ConfigError(
            f"{method}'s peers have one and the same frozen body; give all populations the same "
            "encoders (populations.N.models)"
        )


def _head(model: nn.Module) -> nn.Linear:
    assert isinstance(model, MultimodalModel)
    assert model.head is not None
    return model.head
