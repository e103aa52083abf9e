"""SCAFFOLD: control variates take the sites' drift out of local SGD."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from motet.core import (
    Batch,
    ConfigError,
    Facts,
    Federation,
    Kind,
    Site,
    Tree,
    at_site,
    load,
    minus,
    parameters_of,
    plus,
    scaled,
    weights_of,
    zeros,
)
from motet.methods.local import Sampled
from motet.nn.gradients import add_to_gradients


class Scaffold(Sampled):
    """Sites correct their gradients by the difference between everybody's direction and their own.

    Paper: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled
    Averaging for Federated Learning", ICML 2020, algorithm 1 with option II.

    Travels: weights and a control variate of the same size, both ways: twice the bytes of FedAvg.

    Use: sites differ much in their labels, take many local steps, and come back often.

    Avoid: a site takes part once or twice in all (its control variate is then stale or empty);
    local momentum.

    Deviations: sites send their weights, not the change of them; the sum at the hub is the same.
    What is clipped, where a clip is set, is the corrected gradient.
    """

    lr: float = Field(1.0, gt=0, description="server's learning rate (eta_g)")

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if self.local.momentum:
            raise ConfigError(
                "SCAFFOLD's control variates are mean gradients of plain SGD; set "
                "method.local.momentum: 0"
            )

    def run(self, fed: Federation) -> None:
        fed.state["control"] = zeros(parameters_of(fed.model))
        for _ in fed.rounds(self.rounds):
            weights = weights_of(fed.model)
            control = fed.state["control"]
            replies = self.ask(fed, self.train, weights=weights, control=control)
            mean = replies.mean("weights")
            moved = {name: torch.lerp(weights[name], mean[name], self.lr) for name in control}
            load(fed.model, {**mean, **moved})
            # Sites that were not asked count too: their variates are what they were.
            share = len(replies) / len(fed.all)
            fed.state["control"] = plus(control, replies.mean("change"), share)
            fed.report()

    @at_site(
        sends={"weights": Kind.WEIGHTS, "change": Kind.CONTROL},
        takes={"control": Kind.CONTROL},
    )
    def train(self, site: Site, weights: Tree, control: Tree) -> Tree:
        site.load(weights)
        start = parameters_of(site.model)
        own = site.state.get("control", zeros(start))
        correction = minus(control, own)

        def correct(model: nn.Module, batch: Batch) -> None:
            add_to_gradients(model, correction)

        self.local.train(site, adjust=correct)
        moved = minus(start, parameters_of(site.model))
        distance = self.local.count(len(site.data)) * self.local.rate(site.round)
        change = control_change(control, moved, distance)
        site.state["control"] = plus(own, change)
        return {"weights": weights_of(site.model), "change": change}


def control_change(control: Tree, moved: Tree, distance: float) -> Tree:
    """By how much a site's control variate changes: c_i+ - c_i = (w - x) / (K eta) - c.

    control: the hub's variate c. moved: w - x, parameter name -> tensor. distance: K eta, the
    site's own number of steps times its learning rate; 0 (no steps, nothing learned) changes
    nothing. SCAFFOLD, equation 4, option II.
    """
    if distance == 0:
        return zeros(control)
    return minus(scaled(moved, 1 / distance), control)
