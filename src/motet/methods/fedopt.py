"""Optimisers at the hub: FedAvgM, FedAdagrad, FedAdam, FedYogi."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from motet.core import (
    Federation,
    Tree,
    load,
    minus,
    parameters_of,
    plus,
    scaled,
    weights_of,
    zeros,
)
from motet.methods.fedavg import FedAvg
from motet.methods.local import weight_key


class ServerOptimised(FedAvg):
    """What the four have in common: the hub's optimiser moves the parameters, buffers are means."""

    lr: float = Field(1.0, gt=0, description="server's learning rate (eta_g)")

    def start(self, parameters: Tree) -> Tree:
        """The optimiser's state before the first round."""
        return {"m": zeros(parameters)}

    def step(self, state: Tree, delta: Tree) -> tuple[Tree, Tree]:
        """(new state, change of the parameters) from the sites' mean change."""
        raise TypeError(f"{type(self).__name__} has no step(state, delta)")

    def run(self, fed: Federation) -> None:
        fed.state["optimizer"] = self.start(parameters_of(fed.model))
        for _ in fed.rounds(self.rounds):
            before = parameters_of(fed.model)
            averaged = {"weights": weight_key(self.weighting)}
            replies = self.ask(fed, self.train, averaged=averaged, weights=weights_of(fed.model))
            load(fed.model, replies.mean("weights"))
            delta = minus(parameters_of(fed.model), before)
            fed.state["optimizer"], change = self.step(fed.state["optimizer"], delta)
            load(fed.model, plus(before, change), partial=True)
            fed.report()


class FedAvgM(ServerOptimised):
    """FedAvg with momentum at the hub.

    Paper: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
    Visual Classification", arXiv 1909.06335, 2019.

    Travels: the model's weights down and up.

    Use: few of many unlike sites take part in a round, so that rounds pull in different ways.

    Avoid: few rounds: momentum of 0.9 goes ten times as far with the same learning rate.
    """

    beta: float = Field(0.9, ge=0, lt=1, description="momentum")

    def step(self, state: Tree, delta: Tree) -> tuple[Tree, Tree]:
        m = plus(delta, state["m"], self.beta)
        return {"m": m}, scaled(m, self.lr)


class Adaptive(ServerOptimised):
    """What the three adaptive ones have in common."""

    lr: float = Field(0.1, gt=0, description="server's learning rate (eta_g)")
    b1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    tau: float = Field(1e-3, gt=0, description="adaptivity: added to the root; v starts at tau^2")

    def start(self, parameters: Tree) -> Tree:
        v = {name: torch.full_like(value, self.tau**2) for name, value in parameters.items()}
        return {"m": zeros(parameters), "v": v}

    def second(self, v: Tensor, delta: Tensor) -> Tensor:
        """The new second moment."""
        raise TypeError(f"{type(self).__name__} has no second(v, delta)")

    def step(self, state: Tree, delta: Tree) -> tuple[Tree, Tree]:
        m = plus(scaled(state["m"], self.b1), delta, 1 - self.b1)
        v = {name: self.second(value, delta[name]) for name, value in state["v"].items()}
        change = {name: self.lr * m[name] / (v[name].sqrt() + self.tau) for name in m}
        return {"m": m, "v": v}, change


class FedAdagrad(Adaptive):
    """Adagrad at the hub: coordinates that moved much in the past move less.

    Paper: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2.

    Travels: the model's weights down and up.

    Use: sparse features, such as words, of which some move in few rounds.

    Avoid: many rounds on dense models: its rate only ever falls.
    """

    b1: float = Field(0.0, ge=0, lt=1, description="decay of the first moment")

    def second(self, v: Tensor, delta: Tensor) -> Tensor:
        return v + delta.square()


class FedAdam(Adaptive):
    """Adam at the hub, without bias correction.

    Paper: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2.

    Travels: the model's weights down and up.

    Use: parts of the model learn at very different rates, as embeddings and heads do.

    Avoid: server's rate and tau cannot be tuned; a large rate with a small tau shakes the model.
    """

    b2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment")

    def second(self, v: Tensor, delta: Tensor) -> Tensor:
        return self.b2 * v + (1 - self.b2) * delta.square()


class FedYogi(Adaptive):
    """Yogi at the hub: as FedAdam, but the second moment changes by no more than a fixed share.

    Paper: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2.

    Travels: the model's weights down and up.

    Use: as FedAdam, where single rounds are much larger or smaller than the rest.

    Avoid: as FedAdam.
    """

    b2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment")

    def second(self, v: Tensor, delta: Tensor) -> Tensor:
        square = delta.square()
        return v - (1 - self.b2) * square * torch.sign(v - square)
