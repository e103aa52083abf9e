"""Gossip: peers without a server average output layers, or combine them by a robust rule."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from motet.core import Dataset, Site, Tree
from motet.methods.output_peers import Foreign, OutputPeers
from motet.nn.integrate import Rule, by_rule


class Gossip(OutputPeers):
    """Peers with one frozen body combine output layers by a rule that looks at no rows.

    Paper: the rules are those of Yin et al., ICML 2018 (median, trimmed mean) and Blanchard et
    al., NeurIPS 2017 (Krum); with the mean it is decentralised SGD.

    Travels: the output layer from peer to peer. There is no server: the hub passes letters on.

    Use: to see what Bristle's judgement adds to the same exchange.

    Avoid: peers have different classes and some are dishonest.
    """

    # Where most peers kept a column at 0, a median would keep it there for ever.
    foreign: Foreign = "trained"
    rule: Rule = Field("mean", description="how all layers become one")
    byzantine: int = Field(4, ge=0, description="dishonest peers that trimmed mean and Krum expect")

    def merge(
        self, site: Site, own: Tensor, layers: Tree, tests: Dataset, familiar: Tensor
    ) -> Tensor:
        """All layers [H, C], one's own among them, by the rule."""
        return by_rule(self.rule, torch.stack([own, *layers.values()]), self.byzantine)
