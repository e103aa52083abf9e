"""A hub and sites of a secure sum in one process, some of which drop out or lie."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from motet.core import Tree
from motet.core.errors import SiteError, WireError
from motet.protect.secure_hub import SecureHub
from motet.protect.secure_site import SecureSite
from motet.protect.secure_sum import SecureSumSpec

PHASES = ("keys", "shares", "vectors", "unmask")
Change = Callable[[str, str, Tree], Tree]


def names(count: int) -> list[str]:
    return [f"s{i:02d}" for i in range(count)]


def vectors(sites: Collection[str], size: int = 50, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {site: torch.randn(size, generator=rng) for site in sorted(sites)}


class Room:
    """drops: phase -> sites that do not answer in it, nor after. change: what a reply becomes."""

    def __init__(
        self,
        spec: SecureSumSpec,
        count: int,
        drops: Mapping[str, Collection[str]] | None = None,
        change: Change = lambda op, site, reply: reply,
        secret: bytes | None = b"room",
    ) -> None:
        self.names = names(count)
        self.sites = {name: SecureSite(name, spec, secret) for name in self.names}
        self.hub = SecureHub(spec, self.ask, seed=1)
        self.drops = drops or {}
        self.change = change
        self.errors: dict[str, str] = {}

    def gone(self, phase: str) -> set[str]:
        before = PHASES[: PHASES.index(phase) + 1]
        return {site for earlier in before for site in self.drops.get(earlier, ())}

    def ask(self, op: str, each: Mapping[str, Tree]) -> dict[str, Tree]:
        replies = {}
        for site, payload in each.items():
            if site not in self.gone(op):
                try:
                    replies[site] = self.change(op, site, self.sites[site].answer(op, payload))
                except (WireError, SiteError) as error:
                    self.errors[site] = str(error)
        return replies

    def masked(self, tag: str, given: Mapping[str, Tensor], weight: float = 1.0) -> dict[str, Tree]:
        found = {}
        for site, payload in self.hub.prepare(tag, self.names).items():
            if site not in self.gone("vectors"):
                boxes = payload["boxes"]
                try:
                    reply = self.sites[site].mask(given[site], weight, tag, boxes, rng_of(site))
                    found[site] = self.change("vectors", site, reply)
                except SiteError as error:
                    self.errors[site] = str(error)
        return found

    def total(self, tag: str, given: Mapping[str, Tensor]) -> Tensor:
        return self.hub.open(tag, self.masked(tag, given))


def rng_of(site: str) -> torch.Generator:
    return torch.Generator().manual_seed(int(site[1:]))


def plain(given: Mapping[str, Tensor], sites: Collection[str]) -> Tensor:
    return torch.stack([given[site].double() for site in sorted(sites)]).sum(dim=0)


def uniform(octets: Any, bins: int = 256) -> bool:
    """Chi-square: whether bytes are spread as evenly as chance has it, to five deviations."""
    values = torch.as_tensor(octets).flatten().long()
    expected = len(values) / bins
    counts = torch.bincount(values, minlength=bins).double()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return abs(statistic - (bins - 1)) < 5 * (2 * (bins - 1)) ** 0.5
