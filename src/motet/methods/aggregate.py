"""How the hub puts weights together: their mean, or a rule that single sites cannot steer."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from motet.core import ConfigError, Facts, Replies, Tree
from motet.core.tree import map_tensors
from motet.methods.parts import Part
from motet.nn.robust import flat, krum, median, multi_krum, trimmed_mean, unflat


class Aggregate(Part):
    """A rule for the sites' weights; all but the mean are unweighted and see updates.

    Counters and other whole numbers keep the hub's values under every rule but the mean.
    """

    name: Literal["mean", "trimmed-mean", "median", "krum", "multi-krum"] = Field(
        "mean", description="mean (by rows), or a rule against dishonest sites"
    )
    share: float = Field(
        0.2, ge=0, lt=0.5, description="share of dishonest sites in a round that it must bear"
    )

    def bears(self, count: int) -> int:
        """How many dishonest ones among ``count`` sites the rule is set for."""
        # 0.07 of 100 are 7, whatever the last bit of the product says.
        return math.floor(round(self.share * count, 9))

    def check(self, facts: Facts, cohort: int) -> None:
        """Refuses, before the first round, too few sites for the rule."""
        count = min(cohort, len(facts.sites))
        if "krum" in self.name and count < 2 * self.bears(count) + 3:
            raise ConfigError(
                f"{self.name} against {self.bears(count)} of {count} sites needs at least "
                f"{2 * self.bears(count) + 3} sites a round; raise cohort or lower aggregate.share"
            )

    def combine(self, replies: Replies, key: str, sent: Tree, by: str | None) -> Tree:
        """The new weights from those under ``key``, to which the sites came from ``sent``.

        by: key of the number that weighs a site in the mean; the other rules know no weights.
        Raises ConfigError for too few replies.
        """
        if self.name == "mean":
            found: Tree = replies.mean(key, by=by)
            return found
        have = list(replies.having(key).values())
        before = flat(sent)
        if any(_names(tree) != _names(sent) for tree in have):
            raise ConfigError(f"{self.name} needs the same weights from every site")
        updates = torch.stack([flat(tree) for tree in have]) - before
        return unflat(before + self.rule(updates), sent)

    def rule(self, updates: Tensor) -> Tensor:
        """Updates [n, d] as one [d]."""
        bears = self.bears(len(updates))
        match self.name:
            case "trimmed-mean":
                return trimmed_mean(updates, bears)
            case "median":
                return median(updates)
            case "krum":
                return krum(updates, bears)
            case "multi-krum":
                return multi_krum(updates, bears, len(updates) - bears)
            case _:
                return updates.mean(dim=0)


def _names(tree: Tree) -> Tree:
    """The payload with every tensor's shape in its place."""
    shapes: Tree = map_tensors(lambda value: tuple(value.shape), tree)
    return shapes
