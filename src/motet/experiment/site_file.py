"""``site.yaml``: what a real site is, where its rows are, and what it lets out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from motet.agent.host import Host
from motet.agent.memory import Memory
from motet.agent.policy import MEGABYTE, Policy
from motet.agent.protocol import recipe_digest
from motet.agent.secret import own_secret
from motet.agent.server import Server, alone, listen
from motet.core import ConfigError, DataError, Dataset, SiteSpec
from motet.core.prepared import Prepared
from motet.core.rng import generator
from motet.core.site import Door, Site
from motet.core.store import Shelf
from motet.core.validate import row_order
from motet.data import load_data
from motet.data.registry import options_of
from motet.evaluate.suite import evaluate
from motet.experiment.build import build_parties, find_site, share_out, site_maker
from motet.experiment.explain import explain
from motet.experiment.reading import read_fields
from motet.experiment.spec import Experiment, Spec, parse_experiment, read_recipe
from motet.experiment.worker import site_protection

FROM_RECIPE = "from recipe"


class OwnData(Spec):
    """A site's own rows."""

    name: str = Field(description="how they are read: a data set of `motet list data`")
    options: dict[str, Any] = Field(
        default_factory=dict, description="options of the reader; paths may be beside the site file"
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="modality of the recipe -> column of the reader, where their names differ",
    )
    where: dict[str, str | tuple[str, ...]] = Field(
        default_factory=dict, description="column -> value(s): only these rows"
    )
    test: float = Field(
        0.0, ge=0, lt=1, description="share of the rows kept for tests; 0 takes the recipe's rows"
    )


class Bounds(Spec):
    """What one question may take of this machine."""

    frame_mb: float = Field(4096, gt=0, description="largest question in MB of 1,000,000 bytes")
    seconds: float | None = Field(
        None, gt=0, description="longest time for one question; null for no limit"
    )
    memory_mb: float | None = Field(
        None, gt=0, description="memory of the agent; null for no limit (Linux)"
    )
    age: float = Field(
        3600.0, gt=0, description="seconds after which a question that was sent counts no more"
    )


class SiteFile(Spec):
    """One real site."""

    name: str = Field(description="the site's name in the recipe: POPULATION-NUMBER")
    recipe: Path = Field(description="the recipe file, the same as the hub's")
    data: OwnData | None = Field(
        description="the reader of the site's rows; from recipe for its share of a simulation"
    )
    state: Path = Field(Path("state"), description="folder of state, journal and logs")
    socket: Path | None = Field(
        None, description="where the agent listens; null for agent.sock in the state folder"
    )
    policy: Policy = Field(Policy(), description="what may leave")
    limits: Bounds = Field(Bounds(), description="what a question may take")

    @property
    def at(self) -> Path:
        """Where the agent listens."""
        return self.socket or self.state / "agent.sock"


def read_site(path: Path) -> SiteFile:
    """A site file, its paths made absolute; raises ConfigError naming field, value and remedy."""
    values = read_fields(path, "site file", "name, recipe and data")
    _check_data(values, path)
    if values.get("data") == FROM_RECIPE:
        values["data"] = None
    try:
        site = SiteFile.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, '', SiteFile)}") from None
    return _absolute(site, path.absolute().parent)


def _check_data(values: dict[str, Any], path: Path) -> None:
    data = values.get("data")
    if "data" in values and not isinstance(data, dict) and data != FROM_RECIPE:
        raise ConfigError(
            f"{path}: data = {data!r}: write a mapping such as {{name: folder, options: "
            f"{{path: pictures}}}}, or {FROM_RECIPE!r} for the site's share of a simulation"
        )


def _absolute(site: SiteFile, base: Path) -> SiteFile:
    changed: dict[str, Any] = {
        name: base / getattr(site, name)
        for name in ("recipe", "state", "socket")
        if getattr(site, name) is not None
    }
    if site.data is not None:
        options = dict(site.data.options)
        fields = options_of(site.data.name).model_fields
        for name, value in options.items():
            kinds = (fields[name].annotation,) if name in fields else ()
            path = isinstance(value, str) and any(_is_path(kind) for kind in kinds)
            # Some are inside another one, which the reader knows.
            if path and (base / value).exists():
                options[name] = str(base / value)
        changed["data"] = site.data.model_copy(update={"options": options})
    return site.model_copy(update=changed)


def _is_path(kind: Any) -> bool:
    return kind is Path or any(_is_path(inner) for inner in get_args(kind))


def host_of(site: SiteFile) -> Host:
    """The site's host, with its rows read and its last state; raises ConfigError, DataError."""
    plain = read_recipe(site.recipe)
    experiment = parse_experiment(plain, str(site.recipe))
    torch.set_num_threads(experiment.engine.threads)
    find_site(experiment, site.name)
    plain = experiment.plain()
    recipe = recipe_digest(plain)
    spec, public = _spec_of(site, experiment)
    # What belongs to another recipe is no state of this one.
    own = site.state / recipe
    door = Door(
        Site(
            spec,
            seed=experiment.seed,
            public=public,
            evaluate=evaluate,
            secret=own_secret(site.state),
        ),
        experiment.method,
        shelf=Shelf(own / "checkpoints"),
        protection=site_protection(experiment, sum(p.count for p in experiment.populations)),
        candid=False,
    )
    return Host(
        door,
        replace(spec.traits, public=row_order(public)),
        method=plain["method"]["name"],
        recipe=recipe,
        memory=Memory(own / "memory"),
        folder=site.state,
        policy=site.policy,
        age=site.limits.age,
        seconds=site.limits.seconds,
    )


def _spec_of(site: SiteFile, experiment: Experiment) -> tuple[SiteSpec, Dataset | None]:
    if site.data is None:
        parties = build_parties(experiment)
        (spec,) = (spec for spec in parties.sites if spec.name == site.name)
        return spec, parties.public
    rows = own_rows(site, site.data, experiment)
    public = test = None
    if experiment.data.public or not site.data.test:
        shared, public, _ = share_out(experiment)
        rows = like_classes(rows, shared.classes, site.name)
        test = shared.only(rows.modalities)
    if site.data.test:
        rows, test = held_out(rows, site.data.test, experiment.seed, site.name)
    return site_maker(experiment, public)(site.name, rows, test), public


def own_rows(site: SiteFile, data: OwnData, experiment: Experiment) -> Dataset:
    """The site's rows with the modalities that the recipe has for it; raises DataError."""
    found = load_data(data.name, **data.options)
    for column, wanted in data.where.items():
        values = {wanted} if isinstance(wanted, str) else set(wanted)
        if column not in found.about:
            raise ConfigError(
                f"data.where names {column!r}, and the rows have {sorted(found.about)}"
            )
        told = found.about[column]
        texts = map(str, told.tolist() if isinstance(told, Tensor) else told)
        found = found.take([i for i, text in enumerate(texts) if text in values])
    population, _ = find_site(experiment, site.name)
    columns, present = {}, {}
    for modality in population.modalities:
        column = data.columns.get(modality, modality)
        if column not in found.columns:
            raise ConfigError(
                f"data.columns: the recipe has {modality} at {site.name}, and {data.name} gives "
                f"{', '.join(found.modalities)}; write for instance {modality}: "
                f"{found.modalities[0]}"
            )
        columns[modality], present[modality] = found.columns[column], found.present[column]
    if not len(found):
        raise DataError(f"site {site.name} has no rows: {data.name} with {data.where} gives none")
    return replace(found, columns=columns, present=present, cache=Prepared())


def like_classes(rows: Dataset, classes: tuple[str, ...], site: str) -> Dataset:
    """Labels as numbers of the recipe's classes; DataError for one that the recipe lacks."""
    if rows.labels is None or not classes or rows.classes == classes:
        return rows
    strange = sorted(set(rows.classes) - set(classes))
    if strange or not rows.classes:
        raise DataError(
            f"site {site} has rows of the class {(strange or ['(no name)'])[0]!r}, and the "
            f"recipe's data have {', '.join(classes[:12])}"
        )
    number = torch.tensor([classes.index(name) for name in rows.classes])
    known = rows.labels >= 0
    labels = torch.where(known, number[rows.labels.clamp(min=0)], rows.labels)
    return replace(rows, labels=labels, classes=classes)


def held_out(rows: Dataset, share: float, seed: int, site: str) -> tuple[Dataset, Dataset]:
    """(private, test) rows, drawn by seed and site alone; at least one of each."""
    count = min(max(round(share * len(rows)), 1), len(rows) - 1)
    if count < 1:
        raise DataError(f"site {site} has {len(rows)} rows, too few to keep some for tests")
    order = torch.randperm(len(rows), generator=generator(seed, site, "data", "test"))
    return rows.take(order[count:].sort().values), rows.take(order[:count].sort().values)


@contextmanager
def opened(site: SiteFile) -> Iterator[Server]:
    """The site's agent, listening; another one of the same state is refused."""
    with alone(site.state):
        host = host_of(site)
        bound_memory(site.limits.memory_mb)
        listener = listen(site.at)
        yield Server([host], listener, limit=int(site.limits.frame_mb * MEGABYTE))


def bound_memory(megabytes: float | None) -> None:
    """From now on this process may hold no more than this; what exceeds it fails, and is told."""
    if megabytes is None:
        return
    import resource

    size = int(megabytes * MEGABYTE)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    except (OSError, ValueError) as error:
        raise ConfigError(f"limits.memory_mb = {megabytes:g}: {error}; leave it out") from error
