"""Federated rank learning: sites vote on which edges of one frozen random network to keep."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from motet.core import (
    SGD,
    ConfigError,
    Facts,
    Federation,
    Kind,
    Replies,
    Site,
    SiteError,
    Tree,
    WireError,
    at_site,
    freeze,
)
from motet.core.optim import Optimizer
from motet.methods.local import LocalSGD, Sampled, classify
from motet.nn.bits import pack_order, unpack_order
from motet.nn.edge_popup import ScoreKey, kept_edges, mask_layers, masked_layers
from motet.nn.robust import elected, ranks_of


class FRL(Sampled):
    """Every site ranks the edges of one frozen random network; the hub adds up the ranks.

    Paper: Mozaffari, Shejwalkar, Houmansadr, "Every Vote Counts: Ranking-Based Training of
    Federated Learning to Resist Poisoning Attacks", USENIX Security 2023, arXiv 2110.04350.

    Travels: one order of the edges per layer, packed in as few bits as it needs, down and up.
    Never weights or scores.

    Use: some sites may be malicious, or upload is dear: a site has one vote per edge, whatever it
    sends, and an edge costs 12 to 20 bits in place of 32.

    Avoid: all sites can be trusted and bytes do not matter; the model has layers other than
    linear ones and convolutions.

    Deviations: which edges a sparse upload leaves out is the paper's, their rank is inferred. A
    ballot that is no order of the layer's edges is left out and logged. With "abs" the gradient
    is that of the official code, through the absolute value.
    """

    setting: ClassVar[str] = "frl-digits"

    local: LocalSGD = LocalSGD(
        lr=0.4, epochs=2, batch=8, momentum=0.9, weight_decay=1e-4, decay=0.999
    )
    cosine: bool = Field(True, description="cosine decay of the rate over a round's local epochs")
    keep: float = Field(0.5, gt=0, le=1, description="share of each layer's edges that stay (k)")
    score_key: ScoreKey = Field(
        "abs", description="edges stay by |score| (official code) or by score (the paper's text)"
    )
    named: float = Field(1.0, gt=0, le=1, description="share of an order that is sent, its top")
    unnamed: Literal["zero", "mean"] = Field(
        "zero", description="rank of edges that an upload does not name: 0, or their mean one"
    )
    counted: Literal["ranks", "uploads"] = Field(
        "ranks", description="what is added up; uploads (edge numbers in place of ranks): a control"
    )

    def transform(self, model: nn.Module) -> nn.Module:
        pair = getattr(model, "pair", None)
        if isinstance(pair, nn.Module):
            # Scale and shift of a contrast that this method does not use.
            freeze(pair)
        return mask_layers(model, self.keep, self.score_key)

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if not facts.common_start:
            raise ConfigError(
                "FRL's weights never travel: everybody draws them; write common_start: true"
            )
        if self.counted == "uploads" and self.named < 1:
            raise ConfigError("the control counted: uploads needs whole orders; write named: 1.0")

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            replies = self.ask(fed, self.train, orders=fed.state.get("orders"))
            fed.state["orders"] = self.elect(fed, replies)
            adopt(fed.model, fed.state["orders"])
            fed.report()

    @at_site(sends={"votes": Kind.VOTES}, takes={"orders": Kind.VOTES})
    def train(self, site: Site, orders: Tree | None = None) -> Tree:
        if orders is not None:
            adopt(site.model, orders)
        self.learn(site)
        votes: Tree = {}
        for name, layer in masked_layers(site.model).items():
            order = layer.ranking()
            top = order[len(order) - kept_edges(len(order), self.named) :]
            votes[name] = pack_order(top, len(order))
        return {"votes": votes}

    def learn(self, site: Site) -> None:
        """Trains the scores on the site's own rows; a fresh optimiser for all local epochs."""
        spec = SGD(self.local.rate(site.round), self.local.momentum, self.local.weight_decay)
        optimizer = Optimizer(site.model, spec, self.local.clip)
        single = self.local.model_copy(update={"epochs": 1})
        epochs = self.local.epochs if self.local.steps is None else 1
        for epoch in range(epochs):
            if self.cosine:
                optimizer.set_lr(spec.lr * (1 + math.cos(math.pi * epoch / epochs)) / 2)
            site.fit(classify, single.batches(site, site.data, f"private {epoch}"), optimizer)

    def elect(self, fed: Federation, replies: Replies) -> Tree:
        """Layer -> the order in which the sites' ballots put its edges, packed."""
        sizes = {name: len(layer.levels) for name, layer in masked_layers(fed.model).items()}
        ballots: list[dict[str, Tensor]] = []
        for site, reply in replies.items():
            try:
                ballots.append(read_ballot(reply.get("votes"), sizes))
            except WireError as error:
                fed.log(refused=site, reason=str(error))
        if not ballots:
            raise SiteError("no site sent an order of the model's edges; see the log's reasons")
        orders: Tree = {}
        for name, size in sizes.items():
            sent = [ballot[name] for ballot in ballots]
            if self.counted == "ranks":
                sent = [ranks_of(order, size, self.unnamed) for order in sent]
            orders[name] = pack_order(elected(sent), size)
        return orders


def adopt(model: nn.Module, orders: Tree) -> None:
    """Moves the model's initial scores to where these orders (layer -> packed) put them."""
    layers = masked_layers(model)
    whole = read_ballot(orders, {name: len(layer.levels) for name, layer in layers.items()})
    for name, layer in layers.items():
        layer.adopt(whole[name])


def read_ballot(votes: object, sizes: dict[str, int]) -> dict[str, Tensor]:
    """Layer -> order int64 [m]; WireError for what is not an order of each layer's edges."""
    if not isinstance(votes, dict) or votes.keys() != sizes.keys():
        raise WireError(f"votes are orders of {', '.join(sizes)}, and of nothing else")
    return {name: unpack_order(votes[name], size) for name, size in sizes.items()}
