"""Runs a recipe: in memory, or in a folder from which it can be resumed and reported."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
import yaml
from torch import nn

from motet.core import (
    ConfigError,
    Dataset,
    Engine,
    Events,
    Federation,
    MotetError,
    SiteSpec,
    StoreError,
    wire,
)
from motet.core.events import Event, read_events
from motet.core.exchange import Patience
from motet.core.guard import Protection
from motet.core.memory import settled
from motet.core.site import Evaluate
from motet.core.store import HubStore, write_atomic
from motet.core.tree import weights_of
from motet.engines.clock import ClientProfiles, Clocked
from motet.engines.faults import Faults
from motet.engines.serial import Serial
from motet.evaluate.suite import evaluate
from motet.experiment.build import Parties, build_parties
from motet.experiment.gallery import choose_queries, gallery_json, snapshot
from motet.experiment.preview import preview_of, write_preview
from motet.experiment.spec import Experiment, parse_experiment, read_recipe
from motet.models.base import MultimodalModel
from motet.protect.attacks import Hostile
from motet.protect.poison import triggered_test
from motet.protect.robust import Root, root_at

Wrap: TypeAlias = Callable[[Engine], Engine]
RECIPE = "recipe.yaml"
EVENTS = "events.jsonl"
METRICS = "metrics.csv"
ENVIRONMENT = "environment.json"
MODEL = "model.safetensors"
GALLERY = "gallery.json"
PREVIEW = "preview.json"
COMPARISON = "comparison.json"
LOCK = ".lock"


@dataclass(frozen=True)
class Result:
    """A finished run: its events, the hub's final model, the folder where there is one."""

    experiment: Experiment
    events: list[Event]
    model: MultimodalModel | None
    test: Dataset
    folder: Path | None = None

    def last(self, metric: str, party: str = "hub") -> float:
        """The last reported value of a metric; raises ConfigError when there is none."""
        for event in reversed(self.events):
            of_party = event["event"] == "metric" and event["party"] == party
            if of_party and metric in event["metrics"]:
                return float(event["metrics"][metric][0])
        raise ConfigError(f"the run reports no {metric!r} for {party}")

    @property
    def hash(self) -> str:
        """Hash of the hub's final weights: equal for equal recipes and seeds."""
        return "" if self.model is None else wire.digest(weights_of(self.model))


def run(
    experiment: Experiment | dict[str, Any],
    *,
    folder: Path | str | None = None,
    listeners: Sequence[Callable[[Event], None]] = (),
    parties: Parties | None = None,
    wrap: Wrap | None = None,
    engine: Engine | None = None,
) -> Result:
    """Runs an experiment to its end.

    folder: where recipe, events, checkpoints, metrics and weights go; None keeps all in memory.
    A folder that holds the same recipe unfinished is resumed, one with another recipe refused.
    listeners: called with every event. wrap: puts something between hub and engine, such as an
    auditor's tap. engine: reaches sites that are elsewhere, in their own time; None simulates them
    as the recipe says, on a simulated clock where it wants one. Raises MotetError.
    """
    if not isinstance(experiment, Experiment):
        experiment = parse_experiment(experiment)
    threads = torch.get_num_threads()
    torch.set_num_threads(experiment.engine.threads)
    try:
        place = None if folder is None else Path(folder)
        return _run(experiment, place, listeners, parties, wrap, engine)
    finally:
        torch.set_num_threads(threads)


def resume(folder: Path | str, *, listeners: Sequence[Callable[[Event], None]] = ()) -> Result:
    """Takes up the run in this folder where it stopped; raises ConfigError when there is none."""
    path = Path(folder) / RECIPE
    return run(parse_experiment(read_recipe(path), str(path)), folder=folder, listeners=listeners)


def _run(
    experiment: Experiment,
    folder: Path | None,
    listeners: Sequence[Callable[[Event], None]],
    parties: Parties | None,
    wrap: Wrap | None,
    engine: Engine | None,
) -> Result:
    parties = parties or build_parties(experiment)
    experiment.method.check(parties.facts)
    experiment.protect.check(
        experiment.method, len(parties.sites), _cohort(experiment), experiment.attack
    )
    if folder is None:
        return _run_in(None, experiment, parties, listeners, wrap, engine)
    _open_folder(folder, experiment)
    with _locked(folder):
        return _run_in(folder, experiment, parties, listeners, wrap, engine)


def _run_in(
    folder: Path | None,
    experiment: Experiment,
    parties: Parties,
    listeners: Sequence[Callable[[Event], None]],
    wrap: Wrap | None,
    engine: Engine | None,
) -> Result:
    events = Events(None if folder is None else folder / EVENTS)
    for listener in listeners:
        events.listen(listener)
    fed = _federation(experiment, parties, folder, events, wrap, engine)
    try:
        with settled():
            fed.start()
    except MotetError as error:
        # The reason belongs into the run's own record, but a full disk may refuse even that.
        with suppress(StoreError):
            events.add("stopped", round=fed.round, error=str(error))
        raise
    finally:
        events.close()
        fed.engine.close()
    model = fed.model if parties.build_server is not None else None
    history = events.memory if folder is None else read_events(folder / EVENTS)
    assert model is None or isinstance(model, MultimodalModel)
    if folder is not None:
        _finish_folder(folder, experiment.title, history, parties, model)
    return Result(experiment, history, model, parties.test, folder)


def _federation(
    experiment: Experiment,
    parties: Parties,
    folder: Path | None,
    events: Events,
    wrap: Wrap | None = None,
    engine: Engine | None = None,
) -> Federation:
    protection = protection_of(experiment, parties)
    if engine is None:
        repeats = wrap is not None or experiment.faults is not None or experiment.engine.retries > 0
        engine = _simulated(experiment, parties, folder, events, protection, repeats)
    return Federation(
        engine if wrap is None else wrap(engine),
        experiment.method,
        seed=experiment.seed,
        build=parties.build_server,
        public=parties.public,
        data=parties.pooled,
        test=parties.test,
        evaluate=_evaluate(experiment, parties),
        store=None if folder is None else HubStore(folder),
        events=events,
        protection=protection,
        patience=Patience(experiment.engine.timeout, experiment.engine.retries),
    )


def _simulated(
    experiment: Experiment,
    parties: Parties,
    folder: Path | None,
    events: Events,
    protection: Protection,
    repeats: bool,
) -> Engine:
    """All that a recipe says of how its sites are reached, with what attackers do to it."""
    engine = _engine(experiment, parties, folder, protection, events, repeats)
    if experiment.attack is not None:
        engine = Hostile(
            engine,
            experiment.attack,
            experiment.method,
            seed=experiment.seed,
            protection=protection,
            events=events,
            folder=folder,
        )
    return _under(experiment, engine, events)


def _under(experiment: Experiment, engine: Engine, events: Events) -> Engine:
    """The engine on a simulated clock and with faults, where the recipe wants them."""
    profiles = experiment.clients
    if profiles is None and experiment.method.asynchronous:
        # Who comes first must not hang on who happens to run first.
        profiles = ClientProfiles()
    if profiles is not None:
        work = experiment.method.work
        engine = Clocked(engine, profiles, seed=experiment.seed, work=work)
    if experiment.faults is not None:
        engine = Faults(engine, experiment.faults, experiment.seed, events)
    return engine


def _engine(
    experiment: Experiment,
    parties: Parties,
    folder: Path | None,
    protection: Protection,
    events: Events,
    repeats: bool,
) -> Engine:
    sites = None if folder is None else folder / "sites"
    if experiment.engine.name == "processes":
        # Not every system has what it needs.
        from motet.experiment.worker import processes

        return processes(experiment, parties, sites)
    kind: Callable[..., Serial] = Serial
    if experiment.engine.name in ("coalesced", "auto"):
        from motet.engines.coalesced import Auto, Coalesced

        found = Auto if experiment.engine.name == "auto" else Coalesced
        kind = partial(found, events=events)
    return kind(
        parties.sites,
        experiment.method,
        seed=experiment.seed,
        public=parties.public,
        evaluate=evaluate,
        strict=experiment.engine.strict,
        folder=sites,
        protection=protection,
        live=experiment.engine.live,
        repeats=repeats,
    )


def protection_of(experiment: Experiment, parties: Parties) -> Protection:
    """What stands between hub and sites in this experiment's runs."""
    cohort, root = _cohort(experiment), _root(experiment, parties)
    return experiment.protect.build(len(parties.sites), cohort, root)


def _cohort(experiment: Experiment) -> int | None:
    """How many sites the method asks in a round; None for all."""
    cohort = getattr(experiment.method, "cohort", None)
    return None if cohort is None else int(cohort)


def _root(experiment: Experiment, parties: Parties) -> Root | None:
    """FLTrust's trusted update: what a site of the hub's own makes of labelled public rows."""
    robust = experiment.protect.robust
    if robust is None or not robust.root:
        return None
    public = parties.public
    if public is None or public.labels is None or len(public) < robust.root:
        held = 0 if public is None or public.labels is None else len(public)
        raise ConfigError(
            f"protect.robust.root={robust.root} needs as many labelled public rows, and there are "
            f"{held}; raise data.public"
        )
    rows = public.take(torch.arange(robust.root))
    trusted = SiteSpec("hub's own", rows, build=parties.build_server)
    return root_at(Serial([trusted], experiment.method, seed=experiment.seed), trusted.name)


def _evaluate(experiment: Experiment, parties: Parties) -> Evaluate:
    """What the hub's model is judged by; under a backdoor also by how often it opens."""
    attack = experiment.attack
    triggered = None if attack is None else triggered_test(attack, parties.test)
    if triggered is None:
        return evaluate

    def judged(model: nn.Module, data: Dataset) -> dict[str, tuple[float, int]]:
        return {
            **evaluate(model, data),
            "attack success": evaluate(model, triggered)["accuracy"],
        }

    return judged


def _open_folder(folder: Path, experiment: Experiment) -> None:
    recipe = folder / RECIPE
    plain = experiment.plain()
    if recipe.exists():
        if read_recipe(recipe) != plain:
            raise ConfigError(
                f"{folder} holds a run of another recipe; choose another folder, or remove it"
            )
        return
    if folder.exists() and (not folder.is_dir() or _others(folder)):
        raise ConfigError(f"{folder} is not empty and not a run; choose another folder")
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    write_atomic(folder / ENVIRONMENT, json.dumps(environment(), indent=1).encode())
    write_atomic(recipe, text.encode())


def _others(folder: Path) -> list[Path]:
    """What is in the folder beside what a run that was killed at its very start may leave."""
    ours = {ENVIRONMENT, LOCK}
    return [path for path in folder.iterdir() if path.name not in ours and path.suffix != ".part"]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps a second process out of a run's folder; the lock goes with the process."""
    try:
        import fcntl
    except ImportError:
        # No such locks on this system: two processes in one folder are then the user's to avoid.
        yield
        return
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"another process is at work in {folder}; wait for it, or choose another folder"
            ) from None
        yield


def environment() -> dict[str, str]:
    """Versions that bits may depend on."""
    packages = {name: version(name) for name in ("motet", "torch", "numpy", "pydantic")}
    return {"python": platform.python_version(), "machine": platform.machine(), **packages}


def _finish_folder(
    folder: Path,
    title: str,
    events: list[Event],
    parties: Parties,
    model: MultimodalModel | None,
) -> None:
    write_atomic(folder / METRICS, metrics_csv(events).encode())
    write_preview(preview_of(parties, title), folder / PREVIEW)
    if model is None or parties.build_server is None:
        return
    write_atomic(folder / MODEL, wire.encode(weights_of(model)))
    if {"image", "text"} <= set(model.modalities) & set(parties.test.modalities):
        queries = choose_queries(parties.test)
        stages = {
            "before": snapshot(parties.build_server(), parties.test, queries=queries),
            "after": snapshot(model, parties.test, queries=queries),
        }
        write_atomic(folder / GALLERY, gallery_json(stages, parties.test))


def metrics_csv(events: Sequence[Event]) -> str:
    """The metrics of a run as a table: round, party, point, metric, value, n."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["round", "party", "point", "metric", "value", "n"])
    for event in events:
        if event["event"] == "metric":
            for metric, (value, n) in event["metrics"].items():
                table.writerow([event["round"], event["party"], event["point"], metric, value, n])
    return text.getvalue()
