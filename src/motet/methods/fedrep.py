"""FedRep: first the head for many epochs, then the base for few; the base is shared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import Field
from torch import nn

from motet.core import Site
from motet.core.groups import group
from motet.methods.personal import PartlyShared


class FedRep(PartlyShared):
    """Sites fit a head of their own to the shared base, and then the base to that head.

    Paper: Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for
    Personalized Federated Learning", ICML 2021, algorithm 1.

    Travels: the weights of the base down and up, batch-norm statistics among them.

    Use: sites agree on what is in the data but not on the labels, and each can afford many epochs
    of the cheap head.

    Avoid: a model for new sites is wanted (there is no head for them); sites have so few rows
    that a head of their own overfits.

    Deviations: the part that is not trained rests altogether, batch norms of the base included.
    Sites are weighed by their rows; the paper has them alike. The hub's model has the initial
    head and is not reported.
    """

    head_epochs: int = Field(10, ge=0, description="epochs on the head alone, before the base")

    def kept(self, model: nn.Module) -> frozenset[str]:
        """The class head."""
        return group(model, "head")

    def fit(self, site: Site) -> None:
        """The head with the base at rest, and then the base with the head at rest."""
        first = self.local.model_copy(update={"epochs": self.head_epochs, "steps": None})
        with only(site.model, group(site.model, "head")):
            first.train(site, key="head")
        with only(site.model, group(site.model, "base")):
            self.local.train(site)


@contextmanager
def only(model: nn.Module, names: frozenset[str]) -> Iterator[None]:
    """Inside, these parameters alone are trained; modules without any of them are in eval mode."""
    resting = [
        value
        for name, value in model.named_parameters()
        if name not in names and value.requires_grad
    ]
    modules = [module for path, module in model.named_modules() if not _owns(path, module, names)]
    marks = [getattr(module, "frozen", False) for module in modules]
    try:
        for value in resting:
            value.requires_grad_(False)
        for module in modules:
            module.frozen = True
        yield
    finally:
        for value in resting:
            value.requires_grad_(True)
        for module, mark in zip(modules, marks, strict=True):
            module.frozen = mark


def _owns(path: str, module: nn.Module, names: frozenset[str]) -> bool:
    """Whether the module itself, not a part of it, holds parameters or buffers of these names."""
    held = [*module._parameters, *module._buffers]
    return not held or any(f"{path}.{name}".lstrip(".") in names for name in held)
