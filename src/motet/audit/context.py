"""What the attacks on one run share: parties, the sites in question, the runs that were watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch

from motet.audit.membership import candidates, halves
from motet.audit.options import AuditOptions, Ledger
from motet.audit.tap import Seen, Tap
from motet.audit.watch import watch
from motet.core.batch import Column, Dataset
from motet.core.graph import GRAPH
from motet.core.kinds import Kind
from motet.core.rng import generator
from motet.core.site import SiteSpec
from motet.experiment.build import Parties
from motet.experiment.spec import Experiment

Tell = Callable[[str], None]
LEAST_ROWS = 4


@dataclass
class Context:
    """One recipe with one seed, of which some sites are audited.

    In the runs that are watched these hold a random half of their rows; the other half are those
    that a membership test is to tell from it.
    """

    experiment: Experiment
    parties: Parties
    options: AuditOptions
    sites: tuple[str, ...]
    ledger: Ledger
    tell: Tell = field(default=lambda text: None)

    def rng(self, *key: str | int) -> torch.Generator:
        """A generator of this audit and key alone."""
        return generator(self.experiment.seed, "audit", *key)

    def spec(self, site: str) -> SiteSpec:
        """The site as the recipe sets it up."""
        return next(spec for spec in self.parties.sites if spec.name == site)

    @property
    def unit(self) -> str | None:
        """The column whose rows stay together."""
        return self.experiment.data.unit

    @cached_property
    def split(self) -> dict[str, tuple[Dataset, Dataset]]:
        """Site -> (half that it holds, half that it does not), for sites that can be halved."""
        found: dict[str, tuple[Dataset, Dataset]] = {}
        for site in self.sites:
            data = self.spec(site).data
            if GRAPH not in data.columns and len(data) >= 2 * LEAST_ROWS:
                found[site] = halves(data, self.rng(site, "halves"), self.unit)
        return found

    @cached_property
    def main(self) -> Tap:
        """The watched run."""
        self.tell("runs the recipe with a tap on the line")
        holding = {site: mine for site, (mine, _) in self.split.items()}
        return self._watch(holding)

    @cached_property
    def control(self) -> Tap:
        """The same run, in which the audited sites never saw any of the rows in question."""
        self.tell("runs the control, in which the sites hold other rows")
        return self._watch(
            {site: self._strangers(site, len(mine)) for site, (mine, _) in self.split.items()}
        )

    def _watch(self, holding: dict[str, Dataset]) -> Tap:
        rounds = self.options.rounds
        return watch(
            self.experiment, self.parties, self.sites, rounds=rounds, holding=holding, others=True
        )

    def _strangers(self, site: str, count: int) -> Dataset:
        """As many test rows, over and over where there are fewer; no site trains on these."""
        test = self.parties.test.only(self.spec(site).data.modalities)
        order = torch.randperm(len(test), generator=self.rng(site, "strangers"))
        return test.take(order.repeat(-(-count // len(test)))[:count])

    def tested(self, site: str) -> tuple[Dataset, Dataset]:
        """Members and others of a membership test: as many of each, one row per unit."""
        mine, theirs = self.split[site]
        return candidates(mine, theirs, self.rng(site, "candidates"), self.unit)

    def strangers_to(self, site: str) -> list[str]:
        """Other sites that hold nothing of what this site holds, not even of the same unit."""
        own = _units(self.spec(site).data, self.unit)
        return [
            spec.name
            for spec in self.parties.sites
            if spec.name not in self.sites and not own & _units(spec.data, self.unit)
        ]


def _units(data: Dataset, unit: str | None) -> set[str | int]:
    column: Column = data.about.get(unit or "", data.rows)
    return set(column.tolist() if isinstance(column, torch.Tensor) else column)


def last_reply(tap: Tap, site: str, op: str, key: str) -> Seen | None:
    """The site's last reply of this operation that has this key."""
    found = [item for item in tap.of(site) if item.op == op and key in item.reply]
    return found[-1] if found else None


def named(kind: Kind, site: str) -> str:
    """What is attacked, in words that do not depend on which site of a population it is."""
    population = site.rpartition("-")[0] or site
    return f"{kind} of a site" if population == "site" else f"{kind} of a site of {population!r}"
