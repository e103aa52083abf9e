"""Federated algorithms written out on flat vectors, to hold methods against.

Local steps go over all rows of a site at once, so that the order of its batches does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.methods import labelled
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from motet.core import Dataset, Federation, Tree, weights_of
from motet.core.tree import clone
from motet.experiment.runner import Result

Gradient = Callable[[Tensor], Tensor]
# More rows than a site has: every step is one of gradient descent.
WHOLE = {"lr": 0.1, "batch": 96}


class Plain:
    """The start, and the gradient of every site's loss as a function of the flat parameters."""

    def __init__(self, method: dict[str, Any], *settings: str, data: Dataset | None = None) -> None:
        found = labelled.parties(labelled.recipe(method, *settings), data)
        assert found.build_server is not None
        self.start = parameters_to_vector(found.build_server().parameters()).detach()
        self.sizes = {site.name: len(site.data) for site in found.sites}
        self.gradients: dict[str, Gradient] = {}
        for site in found.sites:
            assert site.build is not None
            self.gradients[site.name] = self._gradient(site.build(), site.data)

    def _gradient(self, model: nn.Module, data: Dataset) -> Gradient:
        batch = next(model.prepare(data).batches(len(data)))

        def gradient(flat: Tensor) -> Tensor:
            vector_to_parameters(flat.clone(), model.parameters())
            loss = F.cross_entropy(model(batch).logits, batch.labels)
            return parameters_to_vector(torch.autograd.grad(loss, list(model.parameters())))

        return gradient


def cohorts(result: Result) -> list[list[str]]:
    """The sites that answered, round by round."""
    found: dict[int, list[str]] = {}
    for event in result.events:
        if event["event"] == "replied" and event["op"] == "train":
            found.setdefault(event["round"], []).append(event["site"])
    return [sorted(found[number]) for number in sorted(found)]


def flat(result: Result) -> Tensor:
    """The hub's final parameters as one vector."""
    assert result.model is not None
    return parameters_to_vector(result.model.parameters()).detach()


def watched(fed: Federation) -> list[Tree]:
    """Runs to the end; {"weights", "hub", "sites"} as they stand at every report."""
    kept: list[Tree] = []

    def report(*args: object, **more: object) -> None:
        doors: dict[str, Any] = fed.engine._doors
        states = {name: clone(door._kept["state"]) for name, door in doors.items()}
        kept.append({"weights": weights_of(fed.model), "hub": clone(fed.state), "sites": states})

    fed.report = report
    fed.start()
    return kept
