"""A hub whose sites are reached through NVFlare: what its server runs, and who starts that."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from nvflare.collab import collab

from motet.commands.common import say
from motet.commands.hub import (
    follow,
    hub_parties,
    read_hub,
    run_hub,
    site_names,
    waiting_file,
)
from motet.core.errors import ConfigError
from motet.core.store import write_atomic
from motet.engines.nvflare.control import Control
from motet.engines.nvflare.engine import connect
from motet.engines.nvflare.names import HUB

if TYPE_CHECKING:
    from motet.core.messages import Engine


class Hub:
    """At NVFlare's server: runs, or goes on with, what a hub's file says.

    config: its path; "" takes it from the environment of the server.
    """

    def __init__(self, config: str = "") -> None:
        self.config = config

    @collab.main  # type: ignore[untyped-decorator]
    def run(self) -> str:
        """The final hash."""
        path = self.config or os.environ.get(HUB, "")
        if not path:
            raise ConfigError(f"NVFlare's server does not know the hub's file; set {HUB}")
        spec = read_hub(Path(path))
        told: dict[str, str] = {}

        def tell(who: str, what: str) -> None:
            told[who] = what
            write_atomic(waiting_file(spec), json.dumps(told).encode())

        def reach(names: list[str], recipe: str) -> Engine:
            return connect(names, recipe=recipe, wait=spec.wait, patience=spec.patience, tell=tell)

        return run_hub(spec, reach).hash


def hub_nvflare(config: Path) -> None:
    """Runs, or goes on with, what a hub's file says, through the NVFlare server beside it.

    Has the server start the run, and follows it to its end; starts it again when the run's process
    or the server was killed. Raises ConfigError, SiteError.
    """
    from motet.experiment.spec import parse_experiment, read_recipe

    spec = read_hub(config)
    experiment = parse_experiment(read_recipe(spec.recipe), str(spec.recipe))
    names = site_names(experiment)
    hub_parties(experiment)
    control = Control(config.absolute().parent, len(names), Hub())
    follow(cast("Any", control), spec, config.absolute())


def deploy_nvflare(
    recipe: str,
    sites: Sequence[str],
    hub: str,
    folder: Path,
    *,
    settings: Sequence[str] = (),
    days: int = 365,
) -> None:
    """Writes ``folder``/hub and a folder for every site of the recipe, for NVFlare as the courier.

    Arguments are those of ``deploy_flower``.
    """
    from motet.commands.deploy import check_names, split_host
    from motet.engines.nvflare.deploy import PORT, Plan, write_nvflare
    from motet.experiment.targets import load_experiment

    experiment = load_experiment(recipe, settings)
    names = site_names(experiment)
    check_names(sites, names)
    experiment.method.check(hub_parties(experiment).facts)
    host, port = split_host(hub, PORT)
    text = yaml.safe_dump(experiment.plain(), sort_keys=False, allow_unicode=True)
    write_nvflare(Plan(tuple(names), text, host, port, days, versions_here()), folder)
    say(f"{folder}: hub, {', '.join(names)}; README.md there says what is for whom")


def versions_here() -> dict[str, str]:
    """Versions of what hub and sites should have alike."""
    import platform
    from importlib.metadata import version

    packages = ("motet", "torch", "numpy", "nvflare")
    return {
        "python": platform.python_version(),
        **{name: version(name).partition("+")[0] for name in packages},
    }
