"""Federated averaging per modality, and FedIoT, which trusts image-text sites more."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from motet.core import (
    Facts,
    Federation,
    Kind,
    Method,
    Replies,
    Site,
    Tree,
    at_site,
    load,
    weights_of,
)
from motet.core.errors import ConfigError
from motet.core.learner import Learner
from motet.methods.parts import Private, Quorum, ServerTask

WEIGHTS = {"image": Kind.WEIGHTS, "text": Kind.WEIGHTS}


class ModalFedAvg(Method):
    """FedAvg of each modality's encoder over the sites that hold the modality.

    Paper: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
    Data", AISTATS 2017, per modality as in Yu et al., ICLR 2023.

    Travels: encoder weights down and up, those of the site's own modalities. Heads stay.

    Use: every site can run the server's architecture.

    Avoid: sites differ in model; they must all be as large as the server.
    """

    needs_public: ClassVar[bool] = True
    needs_hub_model: ClassVar[bool] = True

    rounds: int = Field(30, ge=1, description="communication rounds")
    cohort: int = Field(10, ge=1, description="sites asked per round")
    quorum: Quorum = None
    server: ServerTask = ServerTask()
    private: Private = Private()
    pair_factor: float = Field(1.0, gt=0, description="factor on the weight of image-text sites")

    def check(self, facts: Facts) -> None:
        super().check(facts)
        # One architecture per modality, the hub's included.
        if len(set(facts.encoders.values())) > len({modality for _, modality in facts.encoders}):
            raise ConfigError(
                f"{type(self).__name__} averages weights: give all sites the server's encoders "
                "(populations.N.models)"
            )

    def run(self, fed: Federation) -> None:
        for number in fed.rounds(self.rounds):
            encoders = encoders_of(fed)
            weights: Tree = {name: weights_of(encoders[name]) for name in encoders}
            replies = fed.sample(self.cohort).ask(self.train, quorum=self.quorum, **weights)
            for name in encoders:
                if replies.having(name):
                    load(encoders[name], replies.mean(name, by=self.weights(replies, fed)))
            self.server.train(fed, fed.public, number / self.rounds, first=number == 0)
            fed.report(sites=fed.all)

    @at_site(sends=WEIGHTS, keeps="model", optional=WEIGHTS)
    def train(self, site: Site, **weights: Tree) -> Tree:
        encoders = encoders_of(site)
        for name in encoders:
            load(encoders[name], weights[name])
        for epoch in range(self.private.epochs):
            self.private.train(site, epoch)
        sent: Tree = {name: weights_of(encoders[name]) for name in encoders}
        return {**sent, "samples": len(site.data)}

    def weights(self, replies: Replies, fed: Federation) -> dict[str, float]:
        """Site -> its rows, those of sites with several modalities times ``pair_factor``."""
        held = fed.all.traits
        return {
            site: reply["samples"] * (self.pair_factor if len(held[site].modalities) > 1 else 1.0)
            for site, reply in replies.items()
        }


def encoders_of(learner: Learner) -> dict[str, nn.Module]:
    """Modality -> encoder of a party's model."""
    model: Any = learner.model
    return dict(model.encoders.items())


class FedIoT(ModalFedAvg):
    """Federated averaging per modality in which image-text sites weigh a hundred times more.

    Paper: Zhao, Barnaghi, Haddadi, "Multimodal Federated Learning on IoT Data", IoTDI 2022.

    Travels: encoder weights down and up, those of the site's own modalities. Heads stay.

    Use: as FedAvg per modality, where sites with both modalities align them better.

    Avoid: image-text sites are few and unlike the rest.
    """

    pair_factor: float = Field(100.0, gt=0, description="factor on the weight of image-text sites")
