"""Runs that an audit watches: the recipe as it is, but for what the audited sites hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from motet.audit.tap import Enough, Tap
from motet.core.batch import Dataset
from motet.core.errors import ConfigError
from motet.core.messages import Engine, Reply, Request, Traits
from motet.core.method import Method
from motet.experiment.build import Parties
from motet.experiment.runner import protection_of, run
from motet.experiment.spec import Experiment


def watch(
    experiment: Experiment,
    parties: Parties,
    sites: Collection[str],
    *,
    rounds: int,
    holding: Mapping[str, Dataset] | None = None,
    others: bool = False,
) -> Tap:
    """Runs the experiment in memory until these sites have answered in so many rounds, or its end.

    holding: site -> the rows that it holds in place of its own. others: keep the replies of all
    other sites too.
    """
    taps: list[Tap] = []

    def wrap(engine: Engine) -> Engine:
        tap = Tap(
            engine,
            experiment.method,
            protection=protection_of(experiment, parties),
            sites=None if others else sites,
            counted=sites,
            rounds=rounds,
        )
        taps.append(tap)
        return tap

    with suppress(Enough):
        run(experiment, parties=swapped(parties, holding or {}), wrap=wrap)
    return taps[0]


def swapped(parties: Parties, holding: Mapping[str, Dataset]) -> Parties:
    """The same parties, of which these sites hold other rows."""
    sites = tuple(
        replace(site, data=holding[site.name]) if site.name in holding else site
        for site in parties.sites
    )
    return replace(parties, sites=sites)


class _FirstQuestion:
    """An engine that ends a run as soon as sites are asked for something that the hub reads."""

    def __init__(self, engine: Engine, method: Method) -> None:
        self.engine = engine
        self.asked: tuple[str, ...] = ()
        self._operations = method.operations()

    def sites(self) -> Mapping[str, Traits]:
        return self.engine.sites()

    def send(self, requests: Sequence[Request]) -> None:
        known = [item for item in requests if item.op in self._operations]
        if any(self._operations[item.op].sends for item in known):
            self.asked = tuple(sorted({item.site for item in known}))
            raise Enough
        self.engine.send(requests)

    def recv(self, timeout: float | None = None) -> Reply | None:
        return self.engine.recv(timeout)

    def close(self) -> None:
        self.engine.close()


def audited_sites(experiment: Experiment, parties: Parties, wanted: str | None) -> tuple[str, ...]:
    """The site that is wanted, or the first of each population to be asked at all.

    Raises ConfigError for a site that is not there.
    """
    names = [site.name for site in parties.sites]
    if wanted is not None:
        if wanted not in names:
            raise ConfigError(f"--site {wanted!r}: there is no such site; write one of {names}")
        return (wanted,)
    engines: list[_FirstQuestion] = []

    def wrap(engine: Engine) -> Engine:
        engines.append(_FirstQuestion(engine, experiment.method))
        return engines[0]

    with suppress(Enough):
        run(experiment, parties=parties, wrap=wrap)
    chosen: dict[str, str] = {}
    for name in engines[0].asked:
        chosen.setdefault(name.rpartition("-")[0], name)
    return tuple(chosen.values())
