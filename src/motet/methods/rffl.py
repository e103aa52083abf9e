"""RFFL: who helps more gets more, and who does not help is shut out."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from motet.core import (
    ConfigError,
    Facts,
    Federation,
    Group,
    Kind,
    Method,
    Replies,
    Site,
    SiteError,
    Tree,
    at_site,
    load,
    minus,
    parameters_of,
    plus,
    zeros,
)
from motet.methods.local import LocalSGD, check_one_model
from motet.methods.parts import Quorum
from motet.nn.kept import largest, pack_kept, unpack_kept
from motet.nn.private import clipped
from motet.nn.robust import flat, unflat

# Reputations are differences of small numbers.
WIDE = torch.float64


class RFFL(Method):
    """Every site has a model of its own, and gets as much of all updates as its own one is worth.

    Paper: Xu, Lyu, "A Reputation Mechanism Is All You Need: Collaborative Fairness and Adversarial
    Robustness in Federated Learning", FL-ICML workshop 2021.

    Travels: clipped updates up; down, to every site its own share of their sum: the largest
    entries of each tensor, and one bit per entry that says which. Nothing to or from sites that
    were shut out.

    Use: sites want better models for better contributions, and some may contribute nothing.

    Avoid: one model for all is wanted; a site with classes that nobody else has must not be lost,
    since it looks like one that does not help; rewards must differ much, since the largest half of
    the entries is nearly the whole sum; most sites are dishonest.

    Deviations: the hub clips as well, since a dishonest site would not. A site that does not
    answer has sent nothing, which is a cosine of 0. The learning rate falls per round, not per
    local epoch. ``subtract_own`` takes a site's own part out of the entries that it gets.
    """

    setting: ClassVar[str] = "rffl-digits"

    rounds: int = Field(100, ge=1, description="communication rounds")
    quorum: Quorum = None
    local: LocalSGD = LocalSGD(lr=0.15, epochs=3, decay=0.93)
    norm: float = Field(0.5, gt=0, description="largest norm of an update (Gamma)")
    memory: float = Field(0.95, ge=0, lt=1, description="old reputation's part of the new (alpha)")
    threshold: float = Field(
        1 / 3, ge=0, lt=1, description="times an equal share: less reputation shuts a site out (c)"
    )
    trial: int = Field(10, ge=0, description="rounds in which nobody is shut out")
    subtract_own: bool = Field(False, description="a site's own update is no part of its reward")

    def check(self, facts: Facts) -> None:
        super().check(facts)
        check_one_model(self, facts)
        if not facts.common_start:
            raise ConfigError(
                "RFFL adds the same updates to models that never meet again, so that they must "
                "start alike; write common_start: true at the recipe's top"
            )

    def run(self, fed: Federation) -> None:
        fed.state["reputation"] = dict.fromkeys(fed.all, 0.0)
        for number in fed.rounds(self.rounds):
            sites = fed.at(fed.state["reputation"])
            old = torch.tensor([fed.state["reputation"][site] for site in sites], dtype=WIDE)
            replies = sites.ask(self.train, quorum=self.quorum)
            updates, rows = self.read(fed, sites, replies)
            weights = shares(rows if number == 0 else old * (rows > 0))
            total = weights @ updates
            new = reputations(old, cosines(updates, total), self.memory)
            worth = self.judge(fed, sites, new)
            own = weights[:, None] * updates * self.subtract_own
            like = parameters_of(fed.model)
            each = {
                site: {"reward": reward(total, own[i], worth[site], like)}
                for i, site in enumerate(sites)
                if site in worth and site in replies
            }
            fed.at(each).ask(self.receive, each=each, quorum=self.quorum)
            fed.report(sites=fed.all, hub=False)

    def read(self, fed: Federation, sites: Group, replies: Replies) -> tuple[Tensor, Tensor]:
        """Clipped updates [n, d] and numbers of rows [n]; a site that is silent has sent zeros."""
        nothing = zeros(parameters_of(fed.model))
        sent = [replies[site]["update"] if site in replies else nothing for site in sites]
        # Adding to zeros puts every name in its place, and refuses a stranger.
        updates = torch.stack([flat(plus(nothing, update)) for update in sent])
        rows = [replies[site]["samples"] if site in replies else 0 for site in sites]
        return clipped(updates.to(WIDE), self.norm), torch.tensor(rows, dtype=WIDE)

    def judge(self, fed: Federation, sites: Group, reputation: Tensor) -> dict[str, float]:
        """Shuts sites out for good, and says why; the share of the sum that each other one gets."""
        bound = self.threshold / len(sites) if fed.round >= self.trial else -math.inf
        low = [site for site, rho in zip(sites, reputation.tolist(), strict=True) if rho < bound]
        for site in low:
            fed.log(removed=site, reason=f"its reputation is below {bound:.3f}")
        final = shares(reputation.where(reputation >= bound, 0.0)).tolist()
        told = dict(zip(sites, final, strict=True))
        fed.log(active=len(sites) - len(low), **{f"{s}/reputation": told[s] for s in sites})
        fed.state["reputation"] = {site: told[site] for site in sites if site not in low}
        return {site: rho / max(final) for site, rho in fed.state["reputation"].items()}

    @at_site(sends={"update": Kind.WEIGHTS}, keeps="model")
    def train(self, site: Site) -> Tree:
        start = parameters_of(site.model)
        self.local.train(site)
        moved = minus(parameters_of(site.model), start)
        update = unflat(clipped(flat(moved)[None], self.norm)[0], moved)
        load(site.model, plus(start, update), partial=True)
        return {"update": update, "samples": len(site.data)}

    @at_site(takes={"reward": Kind.WEIGHTS}, keeps="model")
    def receive(self, site: Site, reward: Tree) -> Tree:
        own = parameters_of(site.model)
        news = {name: unpack_kept(reward[name], value) for name, value in own.items()}
        load(site.model, plus(own, news), partial=True)
        return {}


def shares(values: Tensor) -> Tensor:
    """Values [n] over their sum: [n]; SiteError where the sum is not above 0."""
    total = float(values.sum())
    if not total > 0:
        raise SiteError(
            f"the sites' reputations sum to {total:.3g}, and nothing can be shared out by them: "
            "their updates do not agree; look for attackers, or lower the learning rate"
        )
    return values / total


def cosines(updates: Tensor, total: Tensor) -> Tensor:
    """Cosine of every update [n, d] with their weighted sum [d]: [n]; 0 for an empty update."""
    return F.cosine_similarity(updates, total[None], dim=1, eps=1e-10)


def reputations(old: Tensor, cosine: Tensor, memory: float) -> Tensor:
    """``memory`` * old + (1 - ``memory``) * cosine, made to sum to 1: all [n]."""
    return shares(memory * old + (1 - memory) * cosine)


def reward(total: Tensor, own: Tensor, share: float, like: Tree) -> Tree:
    """What a site gets of the sum ``total`` [d] minus ``own`` [d], as it travels, by name.

    Of each tensor of ``like`` those entries where ``total`` is largest, the share of them.
    """
    rest = unflat(total - own, like)
    return {
        name: pack_kept(rest[name], largest(value, share))
        for name, value in unflat(total, like).items()
    }
