"""Personalised subgraph federated learning: similar sites share weights, each filters its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core import (
    Adam,
    Batch,
    ConfigError,
    Facts,
    Federation,
    Kind,
    Site,
    Tree,
    at_site,
    load,
    weights_of,
)
from motet.core.graph import GRAPH
from motet.core.learner import evaluating
from motet.core.rng import generator
from motet.core.tree import mean
from motet.data.graphs import random_blocks
from motet.methods.local import Cohort, classify
from motet.methods.parts import Part
from motet.nn.masks import add_masks, all_but_masks, distance, masks_of, mean_size


class Proxy(Part):
    """The random graph on which sites are compared: blocks of nodes, links inside them alone."""

    blocks: int = Field(5, ge=1, description="blocks")
    nodes: int = Field(100, ge=1, description="nodes per block")
    link: float = Field(0.1, ge=0, le=1, description="probability of a link inside a block")

    def graph(self, seed: int, features: int) -> Tensor:
        """The graph of this seed, a column of nodes as in ``motet.core.graph``."""
        rng = generator(seed)
        return random_blocks(self.blocks, self.nodes, self.link, features, rng)


class FedPub(Cohort):
    """Every site gets the mean of the models that do alike on a random graph, and masks it.

    Paper: Baek, Jeong, Jin, Yoon and Hwang, "Personalized Subgraph Federated Learning", ICML 2023.

    Travels: a site's own mixture of models down; its weights and one embedding of the random graph
    up. Masks and Adam's moments stay at the site.

    Use: parts of a graph that fall into communities, where one model does worse than none shared.

    Avoid: sites are alike (a plain mean does as well), or the hub must not see single models.

    Deviations: masks pay for the mean of their sizes, as the sum empties the network under Adam;
    both penalties have gradients, unlike in the official code (whose behaviour is our default, 0).
    GELU stands before the head instead of ReLU. Adam's weight decay is decoupled.
    """

    setting: ClassVar[str] = "fedpub-communities"

    rounds: int = Field(100, ge=1, description="communication rounds")
    cohort: int = Field(20, ge=1, description="sites asked per round; all of them in the paper")
    lr: float = Field(0.01, gt=0, description="Adam learning rate of weights and masks")
    weight_decay: float = Field(1e-6, ge=0, description="weight decay of weights and masks")
    epochs: int = Field(1, ge=0, description="local epochs per round, one full-graph step each")
    tau: float = Field(10.0, ge=0, description="sharpness of similarity; 0 is a plain mean")
    masks: bool = Field(True, description="sites keep masks of the weights")
    prune: float = Field(1e-3, ge=0, description="smaller entries of a mask are 0 in evaluation")
    sparsity: float = Field(0.0, ge=0, description="weight of the mean |entry| of the masks")
    proximity: float = Field(0.0, ge=0, description="weight of the distance to what was received")
    proxy: Proxy = Proxy()
    known: dict[str, str] = Field(
        {}, description="site -> its community, in place of similarity; one not named is alone"
    )

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if set(facts.hub_modalities) != {GRAPH}:
            raise ConfigError("FedPub compares models on a random graph; write graph: gcn in them")
        strangers = sorted(set(self.known) - set(facts.sites))
        if strangers:
            raise ConfigError(f"method.known: there is no site {strangers[0]!r}")

    def transform(self, model: nn.Module) -> nn.Module:
        return add_masks(model, self.prune) if self.masks else model

    def run(self, fed: Federation) -> None:
        proxy = int(torch.randint(2**31, (), generator=fed.rng("proxy")))
        for _ in fed.rounds(self.rounds):
            common = weights_of(fed.model, all_but_masks(fed.model))
            own = fed.state.get("own", {})
            asked = fed.sample(self.cohort)
            each = {site: {"weights": own.get(site, common)} for site in asked}
            replies = asked.ask(self.train, each=each, quorum=self.quorum, proxy=proxy)
            models = replies.having("weights")
            alpha = self.alpha(list(models), replies.stack("probe"))
            fed.state["own"] = {**own, **mixtures(models, alpha)}
            load(fed.model, replies.mean("weights"), partial=True)
            fed.report(sites=fed.all)

    def alpha(self, sites: Sequence[str], probes: Tensor) -> Tensor:
        """How much of every model goes into every site's: float64 [sites, sites]."""
        groups = [self.known.get(site, site) for site in sites]
        return same_group(groups) if self.known else similarity_weights(probes, self.tau)

    @at_site(sends={"weights": Kind.WEIGHTS, "probe": Kind.REPRESENTATIONS}, keeps="model")
    def train(self, site: Site, weights: Tree, proxy: int) -> Tree:
        load(site.model, weights, partial=True)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            value = classify(model, batch) + self.sparsity * mean_size(masks_of(model))
            if self.proximity and site.round:
                value = value + self.proximity * distance(model, weights)
            return value

        batches = site.batches(site.data, len(site.data), epochs=self.epochs)
        site.fit(loss, batches, site.optimizer("graph", Adam(self.lr, self.weight_decay)))
        encoder: Any = site.model.get_submodule(f"encoders.{GRAPH}")
        probe = embed_graph(encoder, self.proxy.graph(proxy, encoder.features))
        return {"weights": weights_of(site.model, all_but_masks(site.model)), "probe": probe}


def similarity_weights(probes: Tensor, tau: float) -> Tensor:
    """softmax(tau * cosine) of embeddings [k, H], each with itself among them: float64 [k, k]."""
    unit = F.normalize(probes.double(), dim=1)
    return torch.softmax(tau * unit @ unit.T, dim=1)


def same_group(groups: Sequence[str]) -> Tensor:
    """Equal weights for all of one's group and none for others: float64 [k, k]."""
    same = torch.tensor([[a == b for b in groups] for a in groups]).double()
    return same / same.sum(dim=1, keepdim=True)


def mixtures(models: Mapping[str, Tree], alpha: Tensor) -> dict[str, Tree]:
    """Site -> sum over all models j of alpha[i, j] * model j; alpha [k, k] in the models' order."""
    trees = list(models.values())
    return {site: mean(trees, row) for site, row in zip(models, alpha.tolist(), strict=True)}


def embed_graph(encoder: nn.Module, nodes: Tensor) -> Tensor:
    """Mean over the nodes of their embeddings before activation and head, in eval mode: [H]."""
    with evaluating(encoder), torch.no_grad():
        return encoder(nodes).mean(dim=0)
