"""FedBN: averages everything but batch norm, which stays at the site."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from motet.core import Tree, weights_of
from motet.core.groups import group
from motet.methods.local import LocalSGD, Weighting
from motet.methods.personal import PartlyShared


class FedBN(PartlyShared):
    """Federated averaging in which every site keeps its own batch norm.

    Paper: Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via Local
    Batch Normalization", ICLR 2021, algorithm 1.

    Travels: weights down and up, but for scale, shift and statistics of the batch norms.

    Use: sites see the same classes in different looks (scanners, styles, lighting), and the model
    has batch norm.

    Avoid: sites differ in their labels and not in their looks; the model is meant for sites that
    have no data to train on, whose batch norm nobody knows.

    Deviations: a site that never trained has the initial batch norm. With ``fallback`` the sites
    also send theirs, and it has the mean of them, which the paper does not define; without it the
    hub's model is not one to use and is not reported.
    """

    setting: ClassVar[str] = "fedbn-styles"

    weighting: Weighting = "uniform"
    local: LocalSGD = LocalSGD(lr=0.01)
    fallback: bool = Field(
        False, description="average the batch norms too, for sites that have none of their own yet"
    )

    def kept(self, model: nn.Module) -> frozenset[str]:
        """The batch norms, by the type of the module."""
        return group(model, "norm")

    def shared(self, model: nn.Module) -> Tree:
        """Everything but batch norm; with the fallback, everything."""
        return weights_of(model) if self.fallback else super().shared(model)
