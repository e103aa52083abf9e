"""From a recipe to parties: rows shared out, models built, sites ready to be asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch

from motet.core import ConfigError, Dataset, Facts, SiteSpec
from motet.core.graph import GRAPH
from motet.core.rng import generator, numpy_generator
from motet.core.roster import Drawn, Names, number_in
from motet.data import load_data
from motet.data.partition import Draw
from motet.data.public import one_per_unit, split_concepts
from motet.data.registry import options_of
from motet.experiment import rows as choose
from motet.experiment.casting import Models
from motet.experiment.spec import Experiment, Population
from motet.models.base import MultimodalModel
from motet.models.registry import ModelSpec
from motet.protect.poison import poisoned

# Sites of a population that draws its rows which are kept beside those that are at work.
KEPT = 256


@dataclass(frozen=True)
class Parties:
    """All that a run needs of data and models.

    held, heads, encoders: what is known of the sites before they are asked; of a population that
    draws its rows the first site of each model stands for all.
    """

    sites: Sequence[SiteSpec]
    public: Dataset | None
    test: Dataset
    pooled: Dataset | None
    build_server: Callable[[], MultimodalModel] | None
    encoders: Mapping[tuple[str, str], str]
    heads: Mapping[str, int] = field(default_factory=dict)
    common_start: bool = False
    held: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def facts(self) -> Facts:
        """What a method may check before the first round."""
        public = self.public
        return Facts(
            public=0 if public is None else len(public),
            public_modalities=() if public is None else public.modalities,
            hub_modalities=() if self.build_server is None else self.build_server().modalities,
            sites=self.held or {site.name: site.data.modalities for site in self.sites},
            hub_rows=0 if self.pooled is None else len(self.pooled),
            classes=0 if public is None else len(public.classes),
            encoders=self.encoders,
            heads=self.heads,
            common_start=self.common_start,
        )


def site_names(experiment: Experiment) -> list[str]:
    """The names of all sites of a recipe, in its order."""
    return [f"{p.name}-{number + 1}" for p in experiment.populations for number in range(p.count)]


def build_parties(experiment: Experiment) -> Parties:
    """Loads the data, shares them out and prepares every party; raises DataError, ConfigError.

    Sites of a population that draws its rows are made when they are asked for, each time anew.
    """
    test, public, private = share_out(experiment)
    models = Models(experiment, public)
    made = _Made(experiment, private, test, models)
    pooled = _pool(experiment, made) if experiment.method.pools_private_rows else None
    return _parties(experiment, models, made.sites(), made.known(), test, pooled)


def hub_parties(experiment: Experiment) -> Parties:
    """What the hub has of a run whose sites are elsewhere: everything but their rows.

    Raises ConfigError for methods, and parts of a recipe, that only a simulation has.
    """
    name = type(experiment.method).__name__
    if experiment.method.pools_private_rows:
        raise ConfigError(f"{name} pools the sites' rows, which only a simulation can; motet run")
    for part in ("attack", "clients", "faults"):
        if getattr(experiment, part) is not None:
            raise ConfigError(f"{part}: only a simulation has it; leave it out of this recipe")
    test, public, private = share_out(experiment)
    models = Models(experiment, public)
    nothing = torch.zeros(0, dtype=torch.int64)
    known: list[tuple[SiteSpec, int]] = []
    for population in experiment.populations:
        rows = private.only(_known(population, private)).take(nothing)
        for number in range(population.count):
            site = _spec(population, number, rows, None, models)
            known.append((site, _classes(population, rows)))
    return _parties(experiment, models, [site for site, _ in known], known, test, None)


def _parties(
    experiment: Experiment,
    models: Models,
    sites: Sequence[SiteSpec],
    known: Sequence[tuple[SiteSpec, int]],
    test: Dataset,
    pooled: Dataset | None,
) -> Parties:
    """known: sites with their classes, at least one for each kind of site that there is."""
    heads = {site.name: classes for site, classes in known}
    build = None
    if experiment.server is not None:
        heads["hub"] = len(test.classes) if experiment.classify else 0
        build = models.builder(experiment.server, None, heads["hub"], "hub")
    held = {site.name: site.data.modalities for site, _ in known}
    encoders = _encoders(experiment, [site for site, _ in known])
    common = experiment.common_start
    return Parties(sites, models.public, test, pooled, build, encoders, heads, common, held)


class _Made:
    """The sites of a recipe: those that share rows out at once, those that draw them on demand."""

    def __init__(
        self, experiment: Experiment, private: Dataset, test: Dataset, models: Models
    ) -> None:
        self._experiment = experiment
        self._test = test
        self._models = models
        populations = experiment.populations
        self.drawn = {
            p.name: p for p in populations if p.missing is None and isinstance(p.partition, Draw)
        }
        counts = {p.name: p.count for p in populations}
        self.names = Names(counts) if self.drawn else sorted(site_names(experiment))
        attack, seed = experiment.attack, experiment.seed
        self._liars = frozenset() if attack is None else attack.attackers(self.names, seed)
        self._ready: dict[str, SiteSpec] = {}
        self._classes: dict[str, int] = {}
        self._draw: dict[str, Callable[[int], Dataset]] = {}
        self.rows: dict[str, Dataset] = {}
        for population in populations:
            rows = _rows(experiment, population, private)
            if population.name in self.drawn:
                self.rows[population.name] = rows
                self._draw[population.name] = _drawing(experiment, population, rows)
                continue
            for number, data in enumerate(_shares(experiment, population, rows)):
                spec = self._site(population, number, data)
                self._ready[spec.name] = spec
                self._classes[spec.name] = _classes(population, data)

    @property
    def ready(self) -> Collection[SiteSpec]:
        """The sites that are there already."""
        return self._ready.values()

    def sites(self) -> Sequence[SiteSpec]:
        """All sites, in the recipe's order; by name where they are made on demand."""
        if isinstance(self.names, Names):
            return Drawn(self.names, lru_cache(maxsize=KEPT)(self.named))
        return tuple(self._ready.values())

    def known(self) -> list[tuple[SiteSpec, int]]:
        """Sites and their classes, of populations that draw one for each of their models."""
        found = [(spec, self._classes[name]) for name, spec in self._ready.items()]
        for name, population in self.drawn.items():
            for number in range(min(population.count, len(population.models))):
                spec = self.named(f"{name}-{number + 1}")
                found.append((spec, _classes(population, spec.data)))
        return found

    def named(self, name: str) -> SiteSpec:
        """The site of this name."""
        if name in self._ready:
            return self._ready[name]
        head, _, number = name.rpartition("-")
        place = int(number) - 1
        return self._site(self.drawn[head], place, self._draw[head](place))

    def _site(self, population: Population, number: int, data: Dataset) -> SiteSpec:
        made = self._experiment
        site = _site(made, population, number, data, self._test, self._models)
        # What they are tested on, and how many rows they have, attackers do not change.
        turned = poisoned(made.attack, site.data, site.name, self._liars, made.seed)
        return replace(site, data=turned)


def share_out(experiment: Experiment) -> tuple[Dataset, Dataset | None, Dataset]:
    """(test, public, private) rows of a recipe; disjoint by unit."""
    spec = experiment.data
    rows = load_data(spec.name, **_options(experiment))
    rng = numpy_generator(experiment.seed, "data", "split")
    sizes: dict[str, int | None] = {"test": spec.test}
    if spec.public:
        sizes["public"] = spec.public
    if spec.unit is None:
        rows = replace(rows, about={**rows.about, "row": rows.rows})
    unit = spec.unit or "row"
    parts = split_concepts(rows, unit, {**sizes, "private": spec.private}, rng)
    if spec.public_rows == "one":
        draw = numpy_generator(experiment.seed, "data", "one")
        for name in sizes:
            parts[name] = one_per_unit(parts[name], unit, draw)
    if GRAPH in rows.columns:
        parts |= choose.in_graph(rows, parts)
    return parts["test"], parts.get("public"), parts["private"]


def _options(experiment: Experiment) -> dict[str, Any]:
    """The reader's options; made-up data, whose reader takes a seed, are the run's own."""
    name, options = experiment.data.name, experiment.data.options
    drawn = "seed" in options_of(name).model_fields
    return {"seed": experiment.seed, **options} if drawn else options


def _rows(experiment: Experiment, population: Population, private: Dataset) -> Dataset:
    """The rows that the sites of a population have, all together."""
    rows = choose.where_wanted(private, population).only(_known(population, private))
    if population.rows == "one" and experiment.data.unit:
        rng = numpy_generator(experiment.seed, "data", population.name, "one")
        rows = one_per_unit(rows, experiment.data.unit, rng)
    return rows


def _shares(experiment: Experiment, population: Population, rows: Dataset) -> list[Dataset]:
    """The rows of each site of a population."""
    seed, name = experiment.seed, population.name
    if isinstance(population.partition, Draw):
        draw = _drawing(experiment, population, rows)
        parts = [draw(number) for number in range(population.count)]
    else:
        rng = numpy_generator(seed, "data", name, "partition")
        cut = population.partition.apply(rows, population.count, rng)
        parts = [rows.take(part) for part in cut]
    if population.missing is not None:
        rng = numpy_generator(seed, "data", name, "missing")
        parts = population.missing.apply(parts, rng)
    return parts


def _drawing(
    experiment: Experiment, population: Population, rows: Dataset
) -> Callable[[int], Dataset]:
    """A function that gives the rows of a site that draws them, by its number from 0."""
    assert isinstance(population.partition, Draw)
    draw = population.partition.over(rows)

    def share(number: int) -> Dataset:
        rng = numpy_generator(experiment.seed, "data", population.name, "partition", number)
        return rows.take(draw(rng))

    return share


def _site(
    experiment: Experiment,
    population: Population,
    number: int,
    data: Dataset,
    test: Dataset,
    models: Models,
) -> SiteSpec:
    seed, name = experiment.seed, f"{population.name}-{number + 1}"
    if experiment.data.scrambled:
        data = choose.scramble(data, generator(seed, "data", name, "scramble"))
    if population.shift_labels and data.labels is not None:
        shifted = (data.labels + population.shift_labels) % len(data.classes)
        data = replace(data, labels=shifted.where(data.labels >= 0, -100))
    if GRAPH in data.columns:
        test = choose.tests_in_graph(name, test, data)
    elif population.tests == "own":
        test = choose.own_tests(choose.where_wanted(test, population), data)
    return _spec(population, number, data, test.only(data.modalities), models)


def _spec(
    population: Population, number: int, data: Dataset, test: Dataset | None, models: Models
) -> SiteSpec:
    name = f"{population.name}-{number + 1}"
    spec = population.models[number % len(population.models)]
    build = models.builder(spec, data.modalities, _classes(population, data), name)
    return SiteSpec(name, data, test, build, _label(spec, data.modalities))


def site_maker(
    experiment: Experiment, public: Dataset | None
) -> Callable[[str, Dataset, Dataset | None], SiteSpec]:
    """A function that sets a site of the recipe up, by name, rows and test rows.

    For who knows these sites' rows alone: models are those of ``build_parties``. It raises
    ConfigError for a name that the recipe does not have.
    """
    models = Models(experiment, public)

    def make(name: str, data: Dataset, test: Dataset | None) -> SiteSpec:
        population, number = find_site(experiment, name)
        return _spec(population, number, data, test, models)

    return make


def find_site(experiment: Experiment, name: str) -> tuple[Population, int]:
    """The population of a site, and its number in it from 0; raises ConfigError for a stranger."""
    found = number_in({p.name: p.count for p in experiment.populations}, name)
    if found is not None:
        named = {population.name: population for population in experiment.populations}
        return named[found[0]], found[1] - 1
    known = ", ".join(
        f"{p.name}-1" + (f" to {p.name}-{p.count}" if p.count > 1 else "")
        for p in experiment.populations
    )
    raise ConfigError(f"the recipe has no site {name!r}; it has {known}")


def _classes(population: Population, data: Dataset) -> int:
    """How many classes the models of a population tell apart; 0 without a head."""
    alone = len(population.modalities) == 1
    head = alone if population.classify is None else population.classify
    if head and data.labels is None:
        raise ConfigError(
            f"populations {population.name}: its sites classify, and the data have no labels; set "
            "classify: false, or give rows of two modalities"
        )
    return len(data.classes) if head else 0


def _known(population: Population, rows: Dataset) -> Sequence[str]:
    for modality in population.modalities:
        if modality not in rows.columns:
            raise ConfigError(
                f"population {population.name} wants the modality {modality!r}, and the data "
                f"have {list(rows.modalities)}"
            )
    return population.modalities


def _label(spec: ModelSpec, modalities: Sequence[str]) -> str:
    """A model in a few words, for tables: encoder and its sizes per modality."""
    words: list[str] = []
    for name in modalities:
        encoder = spec.encoders[name]
        options = encoder.options()
        sizes = [str(options[key]) for key in ("depth", "hidden", "dim") if key in options]
        words.append("-".join([encoder.name, *sizes]))
    return " + ".join(words)


def _encoders(experiment: Experiment, sites: Sequence[SiteSpec]) -> dict[tuple[str, str], str]:
    """(party, modality) -> its encoder with all options, to tell equal architectures."""
    found: dict[tuple[str, str], str] = {}
    for site in sites:
        population, number = find_site(experiment, site.name)
        spec = population.models[number % len(population.models)]
        found |= {(site.name, name): _describe(spec, name) for name in site.data.modalities}
    for name in experiment.server.encoders if experiment.server else ():
        assert experiment.server is not None
        found["hub", name] = _describe(experiment.server, name)
    return found


def _describe(spec: ModelSpec, modality: str) -> str:
    encoder = spec.encoders[modality]
    return f"{encoder.name} {sorted(encoder.options().items())} width {spec.width}"


def _pool(experiment: Experiment, made: _Made) -> Dataset | None:
    """All private rows of the sites that hold every modality of the server, as one data set.

    Rows that sites draw count once, whoever has them.
    """
    wanted = set(experiment.server.encoders) if experiment.server else set()
    parts = [*(site.data for site in made.ready), *made.rows.values()]
    full = [data for data in parts if wanted and wanted <= set(data.modalities)]
    return choose.join(full) if full else None
