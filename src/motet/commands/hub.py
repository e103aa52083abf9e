"""``motet hub``: a run whose sites are elsewhere, and what the hub itself has of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from motet.commands.common import say
from motet.core.errors import ConfigError, SiteError

if TYPE_CHECKING:
    from motet.core.messages import Engine
    from motet.engines.flower.control import Control
    from motet.experiment.build import Parties
    from motet.experiment.runner import Result
    from motet.experiment.spec import Experiment

    # Site names and the recipe's digest -> an engine that reaches them.
    Reach = Callable[[list[str], str], Engine]


# Seconds between two looks at whether the run's process is alive, each of which is work for Flower,
# and how often in a row it may end without getting further.
LOOK = 30.0
STARTS = 5


class HubSpec(BaseModel):
    """What a hub's file says; paths are taken from where the file is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Path = Field(Path("recipe.yaml"), description="the recipe that all parties share")
    folder: Path = Field(Path("run"), description="where the run is kept, and from where resumed")
    keys: Path | None = Field(
        None, description="folder of the sites' public keys, NAME.pub; null takes any SuperNode"
    )
    wait: float = Field(600.0, gt=0, description="seconds within which all sites must be there")
    patience: float = Field(
        600.0, gt=0, description="seconds for which a site may be away before it is given up"
    )


def read_hub(path: Path) -> HubSpec:
    """A hub's file with absolute paths; raises ConfigError naming file and field."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = HubSpec.model_validate(values or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        from motet.experiment.explain import explain

        raise ConfigError(f"{path}: {explain(error, '', HubSpec)}") from None
    here = path.absolute().parent
    return found.model_copy(
        update={
            "recipe": here / found.recipe,
            "folder": here / found.folder,
            "keys": None if found.keys is None else here / found.keys,
        }
    )


def site_names(experiment: Experiment) -> list[str]:
    """The names of all sites of a recipe, in its order."""
    return [f"{p.name}-{number + 1}" for p in experiment.populations for number in range(p.count)]


def hub_parties(experiment: Experiment) -> Parties:
    """What the hub has of a run whose sites are elsewhere: everything but their rows.

    Raises ConfigError for methods and attacks that need what only a simulation has.
    """
    import torch

    from motet.experiment.build import (
        Parties,
        _classes,
        _encoders,
        _known,
        _Models,
        share_out,
        site_maker,
    )

    name = type(experiment.method).__name__
    if experiment.method.pools_private_rows:
        raise ConfigError(f"{name} pools the sites' rows, which only a simulation can; motet run")
    if experiment.attack is not None:
        raise ConfigError("attack: only a simulation has attackers; leave it out of this recipe")
    test, public, private = share_out(experiment)
    nothing = torch.zeros(0, dtype=torch.int64)
    make = site_maker(experiment, public)
    sites, heads = [], {}
    for population in experiment.populations:
        rows = private.only(_known(population, private)).take(nothing)
        for number in range(population.count):
            site = f"{population.name}-{number + 1}"
            sites.append(make(site, rows, None))
            heads[site] = _classes(population, rows)
    build = None
    if experiment.server is not None:
        heads["hub"] = len(test.classes) if experiment.classify else 0
        build = _Models(experiment, public).builder(experiment.server, None, heads["hub"], "hub")
    encoders = _encoders(experiment, sites)
    return Parties(
        tuple(sites), public, test, None, build, encoders, heads, experiment.common_start
    )


def run_hub(spec: HubSpec, reach: Reach) -> Result:
    """Runs, or resumes, what a hub's file says, with the sites that ``reach`` finds."""
    from motet.agent.protocol import recipe_digest
    from motet.experiment.runner import run
    from motet.experiment.spec import parse_experiment, read_recipe

    experiment = parse_experiment(read_recipe(spec.recipe), str(spec.recipe))
    parties = hub_parties(experiment)
    engine = reach(site_names(experiment), recipe_digest(experiment.plain()))
    held = {site.name: site.data.modalities for site in parties.sites}
    for site, traits in engine.sites().items():
        if tuple(traits.modalities) != tuple(held[site]):
            raise ConfigError(
                f"site {site} holds {list(traits.modalities)}, and the recipe says "
                f"{list(held[site])}; correct its site.yaml, or the recipe of all"
            )
    # The sites are where the engine finds them, so that the recipe's engine says only how many
    # threads the hub has.
    local = experiment.engine.model_copy(update={"name": "serial"})
    return run(
        experiment.model_copy(update={"engine": local}),
        folder=spec.folder,
        parties=parties,
        wrap=lambda _: engine,
    )


def hub(config: Path) -> None:
    """Runs, or goes on with, what a hub's file says, through the SuperLink beside it.

    Registers the sites' keys, has the SuperLink start the run, and follows it to its end; starts it
    again when the run's process or the SuperLink was killed. Raises ConfigError, SiteError.
    """
    from motet.engines.flower.control import Control

    spec = read_hub(config)
    here = config.absolute().parent
    control = Control(here)
    from motet.experiment.spec import parse_experiment, read_recipe

    experiment = parse_experiment(read_recipe(spec.recipe), str(spec.recipe))
    names = site_names(experiment)
    hub_parties(experiment)
    if spec.keys is not None:
        public_keys(spec.keys, names)
        for name in names:
            control.register(spec.keys / f"{name}.pub", name)
    follow(control, spec, config.absolute())


def follow(control: Control, spec: HubSpec, config: Path) -> None:
    """Has the run started, and started anew, until it is finished; shows what happens."""
    seen = Follower(spec.folder, waiting_file(spec))
    seen.look()
    # What stopped it before is no reason not to try again.
    seen.stopped = ""
    starts = 0
    while not seen.over():
        starts += 1
        before = seen.lines
        number = control.start(config)
        say(f"run {number} of the SuperLink; ending this command does not end it")
        while not seen.over() and not control.ended(number):
            end = time.monotonic() + LOOK
            while not seen.over() and time.monotonic() < end:
                time.sleep(0.2)
                seen.look()
        seen.look()
        if seen.over():
            break
        starts = 1 if seen.lines > before else starts
        if starts == STARTS:
            raise SiteError(
                f"the run's process ended {STARTS} times and got no further; its last words: "
                f"{control.log_command(number)}"
            )
        say("the run's process ended; it is started again")
    if not seen.finished:
        raise SiteError(seen.stopped)


class Follower:
    """Reads a run's events as they come, and says the ones that a person waits for."""

    def __init__(self, folder: Path, waiting: Path) -> None:
        self.path = folder / "events.jsonl"
        self.waiting = waiting
        self.finished = False
        self.stopped = ""
        self.lines = 0
        self._at = 0
        self._told = ""

    def over(self) -> bool:
        """Whether nothing more will come of this start."""
        return self.finished or bool(self.stopped)

    def look(self) -> None:
        """Says what is new."""
        if self.waiting.exists() and (told := self.waiting.read_text("utf-8")) != self._told:
            self._told = told
            for who, what in json.loads(told).items():
                say(f"{who}: {what}")
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._at += whole
        for line in data[:whole].splitlines():
            self.lines += 1
            self._say(json.loads(line))

    def _say(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind in ("started", "resumed"):
            self.stopped = ""
        if kind == "started":
            say("started: all sites are there")
        elif kind == "resumed":
            say(f"taken up again in round {event['round']}")
        elif kind == "round":
            say(f"round {event['round'] + 1} of {event['of']}")
        elif kind == "failed":
            say(str(event["error"]))
        elif kind == "metric" and event["party"] == "hub":
            values = ", ".join(
                f"{name} {value:.4g}" for name, (value, _) in event["metrics"].items()
            )
            say(f"hub: {values}")
        elif kind == "stopped":
            self.stopped = str(event["error"])
        elif kind == "finished":
            self.finished = True
            say(f"finished, hash {event['hash']}")


def waiting_file(spec: HubSpec) -> Path:
    """Where the run says who is waited for, and why."""
    return spec.folder.with_name(f"{spec.folder.name}.waiting.json")


def serve_flower(grid: Any, options: Mapping[str, Any]) -> None:
    """What Flower's ServerApp does; ``options``: its run configuration."""
    from motet.core.store import write_atomic
    from motet.engines.flower.engine import FlowerEngine

    spec = read_hub(Path(str(options["motet"])))
    told: dict[str, str] = {}

    def tell(who: str, what: str) -> None:
        told[who] = what
        write_atomic(waiting_file(spec), json.dumps(told).encode())

    def reach(names: list[str], recipe: str) -> Engine:
        keys = dict.fromkeys(names) if spec.keys is None else public_keys(spec.keys, names)
        return FlowerEngine(
            grid, keys, recipe=recipe, wait=spec.wait, patience=spec.patience, tell=tell
        )

    run_hub(spec, reach)


def public_keys(folder: Path, names: list[str]) -> dict[str, bytes]:
    """Site -> its public key as PEM, from OpenSSH files; raises ConfigError for a missing one."""
    from motet.deploy.keys import pem_of_public

    return {name: pem_of_public(folder / f"{name}.pub") for name in names}
