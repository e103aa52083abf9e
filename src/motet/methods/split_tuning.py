"""Split federated tuning: sites hold the two ends of a frozen model, and the hub its middle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from motet.core import (
    Adam,
    Batch,
    ConfigError,
    Facts,
    Federation,
    Kind,
    Replies,
    Site,
    SiteError,
    Tree,
    at_site,
    load,
    weights_of,
)
from motet.core.optim import Optimizer
from motet.methods.local import Cohort, Weighting, weight_key
from motet.methods.split_parts import check_head, cross_entropy, labelled, rows_of, schedule
from motet.methods.tuning import frozen_digest
from motet.nn.split import head, split_of, split_transformers, tail, vjp


class SplitTuning(Cohort):
    """Sites tune prompts and the tail of a model through its frozen body, which is at the hub.

    Paper: Thapa, Arachchige, Camtepe, Sun, "SplitFed: When Federated Learning Meets Split
    Learning", AAAI 2022, cut twice, so that labels stay at the sites.

    Travels: prompts and tail down and up; for every batch activations up and down, and the
    gradients by them. Never pictures, labels, head or body.

    Use: the model is too large for the sites, and the network is fast.

    Avoid: bytes are dear, or answers slow: every batch takes three exchanges.

    Deviations: head and body are frozen, prompts and tail are what is trained.
    """

    setting: ClassVar[str] = "sfprompt-fashion"

    rounds: int = Field(200, ge=1, description="communication rounds")
    cohort: int = Field(5, ge=1, description="sites asked per round")
    lr: float = Field(1e-3, gt=0, description="Adam learning rate, its moments new in every round")
    epochs: int = Field(1, ge=1, description="epochs through the hub per round (E)")
    batch: int = Field(32, ge=1, description="rows per step")
    prompts: int = Field(5, ge=1, description="prompt tokens")
    cut: int = Field(1, ge=1, description="blocks of the head")
    weighting: Weighting = "samples"

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if len(facts.hub_modalities) != 1:
            raise ConfigError("only one encoder can be split; give the models one modality alone")

    def transform(self, model: nn.Module) -> nn.Module:
        split_transformers(model, self.cut, self.prompts)
        return model

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(self.rounds):
            head = frozen_digest(split_of(fed.model).head)
            begun = self.ask(fed, self.begin, weights=weights_of(fed.model), head=head)
            left = self.through_the_hub(fed, begun.having("steps"))
            replies = self.exchange(fed, left, self.upload)
            if len(replies) / (len(begun) + len(begun.failed)) < (self.quorum or 0):
                raise SiteError(f"only {len(replies)} of the cohort came to the end of the round")
            load(fed.model, replies.mean("weights", by=weight_key(self.weighting)))
            self.report(fed)

    def report(self, fed: Federation) -> None:
        """What is told at the end of a round."""
        fed.report()

    def through_the_hub(self, fed: Federation, steps: Mapping[str, int]) -> Sequence[str]:
        """The split phase, batch by batch; returns the sites that answered to the end."""
        body, left = split_of(fed.model).body, dict(steps)
        for step in range(max(steps.values(), default=0)):
            busy = [name for name in left if left[name] > step]
            sent = self.exchange(fed, busy, self.smash, step=step)
            through = {name: vjp(body, z) for name, z in sent.having("smashed").items()}
            down = {name: {"passed": value} for name, (value, _) in through.items()}
            back = self.exchange(fed, down, self.tail, each=down, step=step)
            gradients = back.having("gradient")
            down = {name: {"gradient": through[name][1](v)} for name, v in gradients.items()}
            done = self.exchange(fed, down, self.prompt, each=down, step=step)
            left = {name: left[name] for name in left if name in done or name not in busy}
        return list(left)

    def exchange(
        self, fed: Federation, names: Iterable[str], op: Callable[..., Any], **payload: Any
    ) -> Replies:
        """Asks these sites; with a quorum, one that falls silent does not stop the others."""
        return fed.at(names).ask(op, quorum=None if self.quorum is None else 0, **payload)

    @at_site(takes={"weights": Kind.WEIGHTS, "head": Kind.CONTROL}, keeps="model")
    def begin(self, site: Site, weights: Tree, head: str) -> Tree:
        split_of(site.model).give_away_body()
        check_head(site, head)
        site.load(weights)
        self.optimizer(site).load({})
        site.state["batches"] = schedule(site, self.choose(site), self.batch, self.epochs)
        return {"steps": len(site.state["batches"])}

    def choose(self, site: Site) -> Tensor:
        """Positions of the rows that go through the hub in this round: int64 [kept]."""
        return labelled(site)[0]

    @at_site(sends={"smashed": Kind.ACTIVATIONS}, keeps="model", varies=("smashed",))
    def smash(self, site: Site, step: int) -> Tree:
        with torch.no_grad():
            return {"smashed": head(site.model, rows_of(site, step))}

    @at_site(
        sends={"gradient": Kind.GRADIENTS},
        takes={"passed": Kind.ACTIVATIONS},
        keeps="model",
        varies=("gradient",),
    )
    def tail(self, site: Site, step: int, passed: Tensor) -> Tree:
        tokens = passed.detach().requires_grad_()

        def tail_loss(model: nn.Module, batch: Batch) -> Tensor:
            return cross_entropy(tail(model, tokens), batch)

        site.fit(tail_loss, [rows_of(site, step)], self.optimizer(site))
        return {"gradient": tokens.grad}

    @at_site(takes={"gradient": Kind.GRADIENTS}, keeps="model")
    def prompt(self, site: Site, step: int, gradient: Tensor) -> Tree:
        def pulled_back(model: nn.Module, batch: Batch) -> Tensor:
            # Its gradient by the prompts is the vector-Jacobian product of the head.
            return (head(model, batch) * gradient).sum()

        site.fit(pulled_back, [rows_of(site, step)], self.optimizer(site))
        return {}

    @at_site(sends={"weights": Kind.WEIGHTS}, keeps="model")
    def upload(self, site: Site) -> Tree:
        del site.state["batches"]
        return {"weights": weights_of(site.model), "samples": len(site.data)}

    def optimizer(self, site: Site) -> Optimizer:
        """The site's Adam over prompts and tail, one throughout a round."""
        return site.optimizer("prompts and tail", Adam(self.lr))
