"""FedPer: a shared base, and last layers of its own at every site."""

from __future__ import annotations

from itertools import chain

from pydantic import Field
from torch import nn

from motet.core import ConfigError, Facts
from motet.core.groups import group
from motet.methods.personal import PartlyShared


class FedPer(PartlyShared):
    """Base and last layers are trained together at the site, and the base alone is averaged.

    Paper: Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization
    Layers", arXiv 1912.00818, 2019, algorithms 1 and 2.

    Travels: the weights of the base down and up, batch-norm statistics among them.

    Use: sites differ in which labels they have, or in what the labels mean to them.

    Avoid: a model for new sites is wanted (there are no last layers for them); sites have so few
    rows that a head of their own overfits.

    Deviations: the hub's model has the initial last layers and is not reported. Without personal
    layers this is FedAvg, tested at the sites too.
    """

    layers: int = Field(
        1, ge=0, description="personal layers (K_P) from the end: 1 is the class head, 0 none"
    )

    def kept(self, model: nn.Module) -> frozenset[str]:
        """The last layers."""
        return last_layers(model, self.layers)

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if self.layers > 1 and len(facts.hub_modalities) > 1:
            raise ConfigError(
                "FedPer's personal layers below the class head are those of one encoder, and the "
                "model has several; set method.layers: 1"
            )


def last_layers(model: nn.Module, count: int) -> frozenset[str]:
    """Names of the parameters and buffers of the last ``count`` modules that have any.

    The class head is the last one; what is frozen does not count.
    """
    changing = group(model, "all")
    layers: dict[str, list[str]] = {}
    for name in model.state_dict():
        path = name.rpartition(".")[0]
        if name in changing and path != "pair":
            layers.setdefault(path, []).append(name)
    found = list(layers.values())
    return frozenset(chain.from_iterable(found[max(len(found) - count, 0) :]))
