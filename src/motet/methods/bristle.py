"""Bristle: peers without a server, who judge one another's output layers class by class."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from motet.core import Dataset, Site, Tree
from motet.core.learner import evaluating
from motet.methods.output_peers import OutputPeers, labels_of
from motet.nn.integrate import integrated, prioritised


class Bristle(OutputPeers):
    """Peers with one frozen body weigh one another's output layers by what these achieve.

    Paper: Verbraeken, de Vos, Pouwelse, "Bristle: Decentralized Federated Learning in Byzantine,
    Non-i.i.d. Environments", 2021, arXiv 2110.11006.

    Travels: the output layer from peer to peer, and once which classes a peer has. There is no
    server: the hub passes letters on.

    Use: peers have few of the classes each, some may send anything, and a body pretrained on a
    related task is at hand.

    Avoid: the body must be trained as well; peers cannot spare a few clean test rows per class.

    Deviations: the paper counts the classes that two peers share by private set intersection;
    here they tell each other which they have. Adam's weight decay is decoupled. Layers that are
    not finite are left out. Peers are tested on rows that nobody trains on.
    """

    budget: int = Field(10, ge=1, description="peers that are tested per iteration, about")
    explore: float = Field(0.4, ge=0, le=1, description="how far to look beyond near layers")
    select: Literal["distance", "uniform"] = Field(
        "distance", description="peers to test: by thirds of distance, or any (an ablation)"
    )

    def merge(
        self, site: Site, own: Tensor, layers: Tree, tests: Dataset, familiar: Tensor
    ) -> Tensor:
        """Steps 3 to 9: own layer [H, C] with those of the peers that are tested, weighed."""
        # Peers that did not say are taken to share all: the most that an attacker can claim.
        common = site.state.get("common", {})
        shared = torch.tensor([common.get(peer, len(familiar)) for peer in layers])
        stack = torch.stack(list(layers.values()))
        tested = self.chosen(own, stack, site.rng("test"))
        features = embeddings(site, tests)
        return integrated(own, stack[tested], features, labels_of(tests), shared[tested], familiar)

    def chosen(self, own: Tensor, layers: Tensor, rng: torch.Generator) -> Tensor:
        """Positions among layers [P, H, C] of the peers that are worth a test."""
        if self.select == "uniform":
            return torch.randperm(len(layers), generator=rng)[: self.budget]
        distances = (layers - own).flatten(1).norm(dim=1)
        return torch.cat(prioritised(distances, self.budget, self.explore, rng))


def embeddings(site: Site, data: Dataset) -> Tensor:
    """What the output layer reads of these rows: [n, H]."""
    everything = site.prepared(data).batch(torch.arange(len(data)))
    with evaluating(site.model), torch.no_grad():
        found: Tensor = site.model(everything).aux["embedding"]
    return found
