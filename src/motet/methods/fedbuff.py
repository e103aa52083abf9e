"""FedBuff: buffered asynchronous aggregation."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

import torch
from pydantic import Field

from motet.core import Federation, Replies, SiteError, Tree, load, weights_of
from motet.core.replies import together
from motet.methods.fedavg import FedAvg
from motet.methods.local import Weighting, weight_key
from motet.methods.parts import Part

Shape: TypeAlias = Literal["constant", "polynomial", "hinge"]


class Staleness(Part):
    """How much an update counts that started from an older model."""

    name: Shape = Field("polynomial", description="constant, polynomial or hinge")
    a: float = Field(0.5, ge=0, description="polynomial: the exponent; hinge: how steeply it falls")
    b: int = Field(4, ge=0, description="hinge: updates up to so old count whole")

    def __call__(self, tau: int) -> float:
        """The factor of an update that started from the model of ``tau`` versions ago."""
        match self.name:
            case "polynomial":
                return polynomial(tau, self.a)
            case "hinge":
                return hinge(tau, self.a, self.b)
        return 1.0


def polynomial(tau: int, a: float) -> float:
    """(1 + tau)^-a; 1 / sqrt(1 + tau) is FedBuff's own. Xie et al. 2019, section 5.2."""
    return float((1 + tau) ** -a)


def hinge(tau: int, a: float, b: int) -> float:
    """1 up to ``b``, then 1 / (a (tau - b) + 1). Xie et al. 2019, section 5.2."""
    return 1.0 if tau <= b else 1 / (a * (tau - b) + 1)


class FedBuff(FedAvg):
    """Sites work all the time; whenever K of their updates are there, the hub makes a new model.

    Paper: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered
    Asynchronous Aggregation", AISTATS 2022, algorithm 1. Staleness: Xie, Koyejo, Gupta,
    "Asynchronous Federated Optimization", arXiv 1903.03934, 2019.

    Travels: the model's weights down and up.

    Use: some sites are much slower than others, and a round would wait for the slowest.

    Avoid: sites are equally fast: then stale updates are all that it adds. Slow sites have the
    labels that no other has: fast ones come round more often, and the model follows them.

    Deviations: sites send their weights, and the hub takes the change of them; a site does one
    thing at a time, so that who is at work is not asked again. A site that fails is not asked
    again before the next model. Secure sums and central privacy are refused: both are made here
    for the answers to one question, and a buffer holds those to several.
    """

    asynchronous: ClassVar[bool] = True
    setting: ClassVar[str] = "fedbuff-digits"

    rounds: int = Field(100, ge=1, description="models that the hub makes, one after the other")
    cohort: int = Field(10, ge=1, description="sites that are at work at a time (concurrency M)")
    buffer: int = Field(10, ge=1, description="updates that make a new model (K)")
    lr: float = Field(1.0, gt=0, description="server's learning rate (eta_g)")
    staleness: Staleness = Staleness()
    weighting: Weighting = "uniform"

    def run(self, fed: Federation) -> None:
        for version in fed.rounds(self.rounds):
            weights = weights_of(fed.model)
            updates = self.fill_buffer(fed, weights)
            tau = {site: version - asked for site, asked in updates.rounds.items()}
            factors = {site: self.staleness(age) for site, age in tau.items()}
            by = weight_key(self.weighting)
            mean = updates.mean("weights", by=by, onto=weights, factors=factors)
            load(fed.model, {**mean, **moved(weights, mean, self.lr)})
            fed.log(staleness=sum(tau.values()) / len(tau))
            fed.report()

    def fill_buffer(self, fed: Federation, weights: Tree) -> Replies:
        """K updates; meanwhile whoever is done is replaced by a site drawn from those at rest."""
        parts: list[Replies] = []
        updates = together(parts)
        while (missing := self.buffer - len(updates)) > 0:
            rest = fed.at(set(fed.free) - set(updates.failed))
            idle = min(self.cohort - len(fed.busy), len(rest))
            if idle > 0:
                rest.sample(idle).post(self.train, weights=weights)
            if not len(fed.busy):
                break
            parts.append(fed.collect(most=missing))
            updates = together(parts)
            if self.quorum is None:
                self.check_quorum(updates)
        self.check_quorum(updates)
        return updates

    def check_quorum(self, updates: Replies) -> None:
        """Raises SiteError when too few of those that were asked for this model have answered."""
        asked = len(updates) + len(updates.failed)
        wanted = asked if self.quorum is None else self.quorum * asked
        if len(updates) < wanted or not asked:
            reason = next(iter(updates.failed.values()), "there is no site to ask")
            raise SiteError(
                f"{len(updates)} of {asked} sites answered, {wanted:g} were wanted: {reason}"
            )


def moved(weights: Tree, mean: Tree, lr: float) -> Tree:
    """The floating-point weights, ``lr`` of the way to the mean: just the mean for 1."""
    return {
        name: torch.lerp(value, mean[name], lr)
        for name, value in weights.items()
        if value.is_floating_point()
    }
