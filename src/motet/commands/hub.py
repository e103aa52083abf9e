"""``motet hub``: a run whose sites are elsewhere, and what the hub itself has of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from motet.agent.protocol import recipe_digest
from motet.commands.follow import Control, follow, waiting_file
from motet.core.errors import ConfigError
from motet.core.messages import Engine
from motet.core.store import write_atomic
from motet.deploy.plan import read_about
from motet.experiment.build import hub_parties, site_names
from motet.experiment.explain import explain
from motet.experiment.runner import Result, run
from motet.experiment.spec import parse_experiment, read_recipe

# Site names and the recipe's digest -> an engine that reaches them.
Reach: TypeAlias = Callable[[list[str], str], Engine]


HUB = Path("hub.yaml")


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
        raise ConfigError(f"{path}: {explain(error, '', HubSpec)}") from None
    here = path.absolute().parent
    return found.model_copy(
        update={
            "recipe": here / found.recipe,
            "folder": here / found.folder,
            "keys": None if found.keys is None else here / found.keys,
        }
    )


def run_hub(spec: HubSpec, reach: Reach) -> Result:
    """Runs, or resumes, what a hub's file says, with the sites that ``reach`` finds."""
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
    return run(experiment, folder=spec.folder, parties=parties, engine=engine)


def hub(config: Path) -> None:
    """Runs, or goes on with, what a hub's file says, through the courier that its folder is for.

    Has the SuperLink, or NVFlare's server, start the run, and follows it to its end; starts it
    again when the run's process or the courier was killed. Raises ConfigError, SiteError.
    """
    spec = read_hub(config)
    here = config.absolute().parent
    courier = read_about(here)["courier"]
    experiment = parse_experiment(read_recipe(spec.recipe), str(spec.recipe))
    hub_parties(experiment)
    names = site_names(experiment)
    make = control_of_nvflare if courier == "nvflare" else control_of_flower
    follow(make(here, spec, names), spec.folder, config.absolute())


def control_of_flower(folder: Path, spec: HubSpec, names: Sequence[str]) -> Control:
    """Flower's SuperLink beside the hub, which has been told the sites' keys."""
    from motet.engines.flower.control import Control

    control = Control(folder)
    if spec.keys is not None:
        public_keys(spec.keys, names)
        for name in names:
            control.register(spec.keys / f"{name}.pub", name)
    return control


def control_of_nvflare(folder: Path, spec: HubSpec, names: Sequence[str]) -> Control:
    """NVFlare's server beside the hub."""
    from motet.commands.nvflare import Hub
    from motet.engines.nvflare.control import Control

    return Control(folder, len(names), Hub())


def teller(spec: HubSpec) -> Callable[[str, str], None]:
    """Writes down who is waited for, and why, for whoever follows the run or asks how it is.

    What it makes takes a party and what is wrong there, "" once that is over.
    """
    told: dict[str, str] = {}

    def tell(who: str, what: str) -> None:
        told[who] = what
        wrong = {who: what for who, what in told.items() if what}
        write_atomic(waiting_file(spec.folder), json.dumps(wrong).encode())

    write_atomic(waiting_file(spec.folder), b"{}")
    return tell


def serve_flower(grid: Any, options: Mapping[str, Any]) -> None:
    """What Flower's ServerApp does; ``options``: its run configuration."""
    from motet.engines.flower.engine import FlowerEngine

    spec = read_hub(Path(str(options["motet"])))

    def reach(names: list[str], recipe: str) -> Engine:
        keys = dict.fromkeys(names) if spec.keys is None else public_keys(spec.keys, names)
        return FlowerEngine(
            grid, keys, recipe=recipe, wait=spec.wait, patience=spec.patience, tell=teller(spec)
        )

    run_hub(spec, reach)


def public_keys(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Site -> its public key as PEM, from OpenSSH files; raises ConfigError for a missing one."""
    from motet.deploy.keys import pem_of_public

    return {name: pem_of_public(folder / f"{name}.pub") for name in names}
