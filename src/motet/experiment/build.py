"""From a recipe to parties: rows shared out, models built, sites ready to be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from motet.core import ConfigError, DataError, Dataset, Facts, SiteSpec
from motet.core.batch import Column
from motet.core.rng import generator, numpy_generator
from motet.data import load_data
from motet.data.public import one_per_unit, split_concepts
from motet.experiment.spec import Experiment, Population
from motet.models.base import MultimodalModel
from motet.models.registry import ModelSpec, build_model


@dataclass(frozen=True)
class Parties:
    """All that a run needs of data and models."""

    sites: tuple[SiteSpec, ...]
    public: Dataset | None
    test: Dataset
    pooled: Dataset | None
    build_server: Callable[[], MultimodalModel] | None
    encoders: Mapping[tuple[str, str], str]

    @property
    def facts(self) -> Facts:
        """What a method may check before the first round."""
        public = self.public
        return Facts(
            public=0 if public is None else len(public),
            public_modalities=() if public is None else public.modalities,
            hub_modalities=() if self.build_server is None else self.build_server().modalities,
            sites={site.name: site.data.modalities for site in self.sites},
            hub_rows=0 if self.pooled is None else len(self.pooled),
            classes=0 if public is None else len(public.classes),
            encoders=self.encoders,
        )


def build_parties(experiment: Experiment) -> Parties:
    """Loads the data, shares them out and prepares every party; raises DataError, ConfigError."""
    seed = experiment.seed
    test, public, private = share_out(experiment)
    sites: list[SiteSpec] = []
    for population in experiment.populations:
        sites += _population(experiment, population, private, test, public)
    server = experiment.server
    build = None if server is None else _builder(server, None, 0, seed, "hub", public)
    pooled = _pool(experiment, sites) if experiment.method.pools_private_rows else None
    return Parties(tuple(sites), public, test, pooled, build, _encoders(experiment, sites))


def share_out(experiment: Experiment) -> tuple[Dataset, Dataset | None, Dataset]:
    """(test, public, private) rows of a recipe; disjoint by unit."""
    spec = experiment.data
    rows = load_data(spec.name, **spec.options)
    rng = numpy_generator(experiment.seed, "data", "split")
    sizes: dict[str, int | None] = {"test": spec.test}
    if spec.public:
        sizes["public"] = spec.public
    if spec.unit is None:
        rows = replace(rows, about={**rows.about, "row": rows.rows})
    unit = spec.unit or "row"
    parts = split_concepts(rows, unit, {**sizes, "private": None}, rng)
    if spec.public_rows == "one":
        draw = numpy_generator(experiment.seed, "data", "one")
        for name in sizes:
            parts[name] = one_per_unit(parts[name], unit, draw)
    return parts["test"], parts.get("public"), parts["private"]


def _population(
    experiment: Experiment,
    population: Population,
    private: Dataset,
    test: Dataset,
    public: Dataset | None,
) -> list[SiteSpec]:
    seed, name = experiment.seed, population.name
    rows = _where(private, population).only(_known(population, private))
    if population.rows == "one" and experiment.data.unit:
        rng = numpy_generator(seed, "data", name, "one")
        rows = one_per_unit(rows, experiment.data.unit, rng)
    rng = numpy_generator(seed, "data", name, "partition")
    parts = [rows.take(part) for part in population.partition.apply(rows, population.count, rng)]
    if population.missing is not None:
        rng = numpy_generator(seed, "data", name, "missing")
        parts = population.missing.apply(parts, rng)
    return [
        _site(experiment, population, number, data, test, public)
        for number, data in enumerate(parts)
    ]


def _site(
    experiment: Experiment,
    population: Population,
    number: int,
    data: Dataset,
    test: Dataset,
    public: Dataset | None,
) -> SiteSpec:
    seed, name = experiment.seed, f"{population.name}-{number + 1}"
    if experiment.data.scrambled:
        data = scramble(data, generator(seed, "data", name, "scramble"))
    alone = len(population.modalities) == 1
    head = alone if population.classify is None else population.classify
    if head and data.labels is None:
        raise ConfigError(
            f"populations {population.name}: its sites classify, and the data have no labels; set "
            "classify: false, or give rows of two modalities"
        )
    spec = population.models[number % len(population.models)]
    classes = len(data.classes) if head else 0
    build = _builder(spec, data.modalities, classes, seed, name, public)
    return SiteSpec(name, data, test.only(data.modalities), build, _label(spec, data.modalities))


def scramble(data: Dataset, rng: torch.Generator) -> Dataset:
    """The same rows without meaning: labels and every modality but the first are permuted."""
    columns: dict[str, Column] = dict(data.columns)
    present = dict(data.present)
    for name in data.modalities[1:]:
        order = torch.randperm(len(data), generator=rng)
        mixed = data.only([name]).take(order)
        columns[name], present[name] = mixed.columns[name], mixed.present[name]
    labels = data.labels
    if labels is not None:
        labels = labels[torch.randperm(len(data), generator=rng)]
    return replace(data, columns=columns, present=present, labels=labels)


def _known(population: Population, rows: Dataset) -> Sequence[str]:
    for modality in population.modalities:
        if modality not in rows.columns:
            raise ConfigError(
                f"population {population.name} wants the modality {modality!r}, and the data "
                f"have {list(rows.modalities)}"
            )
    return population.modalities


def _where(rows: Dataset, population: Population) -> Dataset:
    """The rows whose columns have the wanted values."""
    keep = torch.ones(len(rows), dtype=torch.bool)
    for name, wanted in population.where.items():
        column = rows.about.get(name)
        if column is None:
            raise ConfigError(
                f"population {population.name}: where names {name!r}, and the data have "
                f"{sorted(rows.about)}"
            )
        values = {wanted} if isinstance(wanted, str) else set(wanted)
        found = [
            str(item) for item in (column.tolist() if isinstance(column, torch.Tensor) else column)
        ]
        keep &= torch.tensor([item in values for item in found])
    if not bool(keep.any()):
        raise DataError(f"population {population.name}: no private row has {population.where}")
    return rows if bool(keep.all()) else rows.take(keep.nonzero().flatten())


def _builder(
    spec: ModelSpec,
    modalities: Sequence[str] | None,
    classes: int,
    seed: int,
    party: str,
    public: Dataset | None,
) -> Callable[[], MultimodalModel]:
    def build() -> MultimodalModel:
        model = build_model(spec, modalities, classes, generator(seed, party, "model"))
        if public is not None:
            model.calibrate(public)
        return model

    return build


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
    named = {site.name: site for site in sites}
    for population in experiment.populations:
        for number in range(population.count):
            spec = population.models[number % len(population.models)]
            site = named[f"{population.name}-{number + 1}"]
            for name in site.data.modalities:
                found[site.name, name] = _describe(spec, name)
    for name in experiment.server.encoders if experiment.server else ():
        assert experiment.server is not None
        found["hub", name] = _describe(experiment.server, name)
    return found


def _describe(spec: ModelSpec, modality: str) -> str:
    encoder = spec.encoders[modality]
    return f"{encoder.name} {sorted(encoder.options().items())} width {spec.width}"


def _pool(experiment: Experiment, sites: Sequence[SiteSpec]) -> Dataset | None:
    """All private rows of the sites that hold every modality of the server, as one data set."""
    wanted = set(experiment.server.encoders) if experiment.server else set()
    full = [site.data for site in sites if wanted and wanted <= set(site.data.modalities)]
    return join(full) if full else None


def join(parts: Sequence[Dataset]) -> Dataset:
    """The rows of several data sets of the same columns, one after the other."""
    first = parts[0]

    def along(columns: Sequence[Column]) -> Column:
        tensors = [column for column in columns if isinstance(column, torch.Tensor)]
        if tensors:
            return torch.cat(tensors)
        return tuple(item for column in columns for item in column)

    labels = [part.labels for part in parts if part.labels is not None]
    return Dataset(
        columns={k: along([part.columns[k] for part in parts]) for k in first.columns},
        present={k: torch.cat([part.present[k] for part in parts]) for k in first.present},
        labels=torch.cat(labels) if len(labels) == len(parts) else None,
        rows=torch.cat([part.rows for part in parts]),
        classes=first.classes,
        about={k: along([part.about[k] for part in parts]) for k in first.about},
    )
