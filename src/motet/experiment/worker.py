"""A recipe's sites in processes of their own: what each process is given, and makes of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from motet.agent.host import Host
from motet.agent.memory import Memory
from motet.agent.protocol import recipe_digest
from motet.core import SiteSpec, wire
from motet.core.errors import ConfigError
from motet.core.guard import Protection
from motet.core.roster import Drawn
from motet.core.site import Door, Site
from motet.core.store import Shelf
from motet.core.validate import row_order
from motet.engines.processes import Processes, Share
from motet.evaluate.suite import evaluate
from motet.experiment.build import Parties, site_maker
from motet.experiment.shipping import pack, unpack
from motet.experiment.spec import Experiment, parse_experiment
from motet.methods.registry import METHODS

TARGET = "motet.experiment.worker:hosts_of"
# The first is what torch imports when an optimiser is made, which takes seconds.
# Sites that draw their rows and go to other processes with them.
MOST_SHIPPED = 10_000
PRELOAD = (
    "torch._dynamo",
    "motet.data.emoji",
    "motet.models.pictures",
    "motet.models.text",
    *sorted({target.partition(":")[0] for target in METHODS.values()}),
)


def processes(experiment: Experiment, parties: Parties, folder: Path | None) -> Processes:
    """The recipe's sites, shared out among as many processes as the recipe says.

    folder: where sites keep their checkpoints; None for a run in memory.
    """
    if isinstance(parties.sites, Drawn) and len(parties.sites) > MOST_SHIPPED:
        raise ConfigError(
            f"engine.name: processes ships every site's rows, and {len(parties.sites):,} sites are "
            f"more than {MOST_SHIPPED:,}; write serial"
        )
    rows = row_order(parties.public)
    plain = experiment.plain()
    return Processes(
        {site.name: replace(site.traits, public=rows) for site in parties.sites},
        _shares(plain, experiment, parties, folder),
        target=TARGET,
        recipe=recipe_digest(plain),
    )


def _shares(
    plain: dict[str, object], experiment: Experiment, parties: Parties, folder: Path | None
) -> Iterator[Share]:
    for group in shared_out(parties.sites, experiment.engine.processes or cores(experiment)):
        sets = [site.data for site in group] + [site.test for site in group if site.test]
        shipped = pack([*sets, *([parties.public] if parties.public else [])])
        setup = {
            "recipe": json.dumps(plain),
            "sites": [[site.name, site.test is not None] for site in group],
            "of": len(parties.sites),
            "public": parties.public is not None,
            "folder": None if folder is None else str(folder.absolute()),
            "data": shipped,
        }
        yield Share(tuple(site.name for site in group), wire.encode(setup))


def cores(experiment: Experiment) -> int:
    """How many processes of as many threads as the recipe says there is room for."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max((count or 1) // experiment.engine.threads, 1)


def shared_out(sites: Sequence[SiteSpec], count: int) -> list[list[SiteSpec]]:
    """At most ``count`` groups of about equal numbers of rows."""
    groups: list[list[SiteSpec]] = [[] for _ in range(min(count, len(sites)))]
    for site in sorted(sites, key=lambda site: len(site.data), reverse=True):
        min(groups, key=lambda group: sum(len(other.data) for other in group)).append(site)
    return groups


def hosts_of(setup: Path) -> list[Host]:
    """The hosts of the sites that a set-up file names; what they remember is beside the file."""
    tree = wire.decode(setup.read_bytes())
    plain = json.loads(tree["recipe"])
    experiment = parse_experiment(plain)
    torch.set_num_threads(experiment.engine.threads)
    sets = iter(unpack(tree["data"]))
    names = [name for name, _ in tree["sites"]]
    data = dict(zip(names, sets, strict=False))
    tests = {name: next(sets) if tested else None for name, tested in tree["sites"]}
    public = next(sets) if tree["public"] else None
    make = site_maker(experiment, public)
    protection = site_protection(experiment, tree["of"])
    hosts = []
    for name in names:
        spec = make(name, data[name], tests[name])
        folder = None if tree["folder"] is None else Path(tree["folder"]) / name
        door = Door(
            Site(spec, seed=experiment.seed, public=public, evaluate=evaluate),
            experiment.method,
            shelf=None if folder is None else Shelf(folder),
            protection=protection,
        )
        hosts.append(
            Host(
                door,
                replace(spec.traits, public=row_order(public)),
                method=plain["method"]["name"],
                recipe=recipe_digest(plain),
                memory=Memory(setup.parent / "memory" / name, lasting=False),
                careful=False,
            )
        )
    return hosts


def site_protection(experiment: Experiment, sites: int) -> Protection:
    """The sites' half of the recipe's protection; ``sites``: how many there are."""
    cohort = getattr(experiment.method, "cohort", None)
    # Rules by which answers are joined are the hub's, and may need what it alone has.
    protect = experiment.protect.model_copy(update={"robust": None})
    return protect.build(sites, None if cohort is None else int(cohort))
