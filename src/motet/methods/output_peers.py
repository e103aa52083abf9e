"""What methods share in which peers exchange output layers, without a server."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from motet.core import ConfigError, DataError, Dataset, Facts, Federation, Kind, Method, Site
from motet.core.method import at_site
from motet.core.optim import SGD, Adam
from motet.core.peers import Pattern, deliver, due, neighbours, posted
from motet.core.tree import Tree
from motet.methods.local import classify
from motet.methods.parts import Part, Quorum
from motet.models.output_layer import (
    body_hash,
    check_one_body,
    frozen_body,
    output_layer,
    set_output_layer,
)
from motet.nn.integrate import centred, held_out, noise

Foreign: TypeAlias = Annotated[
    Literal["kept", "trained"],
    Field(description="columns of classes that a peer has no rows of, in its own step"),
]


class OutputStep(Part):
    """A peer's own training of its output layer; the optimiser goes on from one to the next."""

    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = Field(1e-3, gt=0, description="learning rate")
    weight_decay: float = Field(5e-3, ge=0, description="weight decay")
    batch: int = Field(5, ge=1, description="rows per step")
    steps: int = Field(1, ge=1, description="steps per iteration")

    def train(self, site: Site, data: Dataset) -> None:
        """Trains on these rows."""
        kind = Adam if self.optimizer == "adam" else SGD
        optimizer = site.optimizer("own", kind(self.lr, weight_decay=self.weight_decay))
        site.fit(classify, site.batches(data, self.batch, steps=self.steps), optimizer)


class OutputPeers(Method):
    """What peers have in common that train and exchange output layers [H, C] and nothing else."""

    setting: ClassVar[str] = "bristle-digits"

    rounds: int = Field(60, ge=1, description="iterations of all peers")
    quorum: Quorum = None
    pattern: Pattern = "all"
    latency: int = Field(0, ge=0, description="further iterations that a letter is under way")
    step: OutputStep = OutputStep()
    held: int = Field(8, ge=1, description="own rows per class kept for tests, at most half of it")
    foreign: Foreign = "kept"
    noisy: str | None = Field(None, description="control: population whose peers send noise")

    def merge(
        self, site: Site, own: Tensor, layers: Tree, tests: Dataset, familiar: Tensor
    ) -> Tensor:
        """What becomes of one's own layer [H, C] and those of peers; here nothing."""
        return own

    def transform(self, model: nn.Module) -> nn.Module:
        return frozen_body(model)

    def check(self, facts: Facts) -> None:
        super().check(facts)
        check_one_body(type(self).__name__, facts)

    def run(self, fed: Federation) -> None:
        peers = fed.all
        met = peers.ask(self.meet, quorum=self.quorum)
        everyone = neighbours(peers.names, "all", 0)
        peers.ask(self.note, each=deliver(met, "card", everyone), quorum=self.quorum)
        for number in fed.rounds(self.rounds):
            edges = neighbours(peers.names, self.pattern, number, fed.rng("edges"))
            # Everyone posts what it had before anyone trains: the order of peers cannot matter.
            letters = deliver(peers.ask(self.post, quorum=self.quorum), "layer", edges)
            peers.ask(self.iterate, each=letters, quorum=self.quorum)
            fed.report(sites=peers, hub=False)

    @at_site(sends={"card": Kind.LABELS}, keeps="model", optional=("card",))
    def meet(self, site: Site) -> Tree:
        """Which classes this peer has, bool [C], and a hash of its body; attackers keep silent."""
        if self.is_noisy(site):
            return {}
        classes = torch.zeros(len(site.data.classes), dtype=torch.bool)
        classes[labels_of(site.data).unique()] = True
        site.state["card"] = {"classes": classes, "body": body_hash(site.model)}
        return {"card": site.state["card"]}

    @at_site(takes={"card": Kind.LABELS})
    def note(self, site: Site, card: Tree) -> Tree:
        """Counts the classes in common with each peer; refuses peers with another body."""
        own = site.state.get("card")
        if own is None:
            return {}
        strangers = [peer for peer, other in card.items() if other["body"] != own["body"]]
        if strangers:
            raise ConfigError(
                f"{strangers[0]} has another frozen body; write common_start: true, or choose an "
                "encoder that is the same everywhere"
            )
        common = {peer: int((own["classes"] & has["classes"]).sum()) for peer, has in card.items()}
        site.state["common"] = common
        return {}

    @at_site(sends={"layer": Kind.WEIGHTS}, optional=("layer",))
    def post(self, site: Site) -> Tree:
        """The layer [H, C] that arrives now; nothing in the first iterations."""
        layer = due(site.state.get("outbox", []), self.latency)
        if layer is None:
            return {}
        return {"layer": noise(layer, site.rng("noise")) if self.is_noisy(site) else layer}

    @at_site(takes={"layer": Kind.WEIGHTS}, keeps="model")
    def iterate(self, site: Site, layer: Tree) -> Tree:
        """A step on own rows, then what the peers' layers make of it."""
        train, tests = self.own_rows(site)
        familiar = labels_of(train).unique()
        before = output_layer(site.model)
        self.step.train(site, train)
        own = output_layer(site.model)
        if self.foreign == "kept":
            # What own rows do to the columns of other classes is forgetting.
            own = before.index_copy(1, familiar, own[:, familiar])
        site.state["outbox"] = posted(site.state.get("outbox", []), own, self.latency)
        sound = {peer: value for peer, value in layer.items() if bool(value.isfinite().all())}
        if sound:
            own = self.merge(site, own, sound, tests, familiar)
        set_output_layer(site.model, centred(own))
        return {}

    def own_rows(self, site: Site) -> tuple[Dataset, Dataset]:
        """Own rows to train on, and others to test with, drawn once and for all."""
        if "held" not in site.state:
            site.state["held"] = held_out(labels_of(site.data), self.held, site.rng("held"))
        # The body runs once over all rows, and not again on every selection of them.
        site.prepared(site.data)
        held = site.state["held"]
        return site.data.take((~held).nonzero().flatten()), site.data.take(held.nonzero().flatten())

    def is_noisy(self, site: Site) -> bool:
        """Whether this peer sends noise in place of its layer."""
        return self.noisy is not None and site.name.rpartition("-")[0] == self.noisy


def labels_of(data: Dataset) -> Tensor:
    """The labels int64 [n]; raises DataError without any."""
    if data.labels is None:
        raise DataError("the peers classify, and these rows have no labels")
    return data.labels
