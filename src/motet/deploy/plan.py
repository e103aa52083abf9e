"""One deployment: who takes part, where the hub is, and what every party's folder has alike."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from motet.core.errors import ConfigError, StoreError
from motet.deploy import texts
from motet.deploy.templates import Service, compose, dockerfile, script, unit

# What was decided when the folder was made.
DEPLOYMENT = "deployment.json"
LOCAL = ("localhost", "127.0.0.1", "::1")
# What hub and sites should have alike, whatever carries their messages.
ALIKE = ("motet", "torch", "numpy")


@dataclass(frozen=True)
class Plan:
    """One deployment.

    recipe: its text, the same for all. host, port: where sites find the hub. days: for which
    certificates are valid. versions: package -> the version that all parties should have.
    """

    sites: tuple[str, ...]
    recipe: str
    host: str
    port: int
    days: int = 365
    versions: Mapping[str, str] = field(default_factory=lambda: versions_here((), ""))

    @property
    def address(self) -> str:
        """Where sites find the hub."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether all parties are on one machine."""
        return self.host in LOCAL


@dataclass(frozen=True)
class Courier:
    """What carries messages, as far as folders know it.

    port: of the hub, unless somebody says another. packages: those of which all parties should
    have the same version. extras: of Motet, for who installs it. words: what its processes are
    called. write: makes all folders of a plan.
    """

    name: str
    port: int
    packages: tuple[str, ...]
    extras: str
    words: texts.Words
    write: Callable[[Plan, Path], None]


def versions_here(packages: Iterable[str], extras: str) -> dict[str, str]:
    """Versions of Python and these packages; raises ConfigError for one that is not installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            # What is behind a plus says how it was built, not what it is.
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            raise ConfigError(f"{name} is not installed: pip install 'motet[{extras}]'") from None
    return found


def check_new(plan: Plan, out: Path) -> None:
    """Raises ConfigError where a party's folder exists."""
    there = [name for name in ("hub", *plan.sites) if (out / name).exists()]
    if there:
        raise ConfigError(f"{out / there[0]} exists, and is not overwritten; choose another folder")


def write_overview(courier: Courier, plan: Plan, out: Path) -> None:
    """The page for whoever made the folders."""
    write(out / "README.md", texts.overview(plan.sites, plan.address, courier.words))


def write_hub(
    courier: Courier, plan: Plan, folder: Path, service: Service, *, settings: str = ""
) -> None:
    """What every hub has: recipe, hub.yaml with ``settings`` of its courier's own, its process."""
    write(folder / "recipe.yaml", plan.recipe)
    write(folder / "hub.yaml", texts.hub_file(settings))
    write(folder / "README.md", texts.of_hub(plan.sites, plan.address, courier.words))
    _write_services(courier, [service], folder, plan, ports=[plan.port])
    _write_about(courier, plan, folder, {"role": "hub", "listen": plan.port})


def write_site(
    courier: Courier, plan: Plan, site: str, folder: Path, service: Service, listen: int | None
) -> None:
    """What every site has: recipe, site.yaml, its agent, and the courier's process beside it.

    listen: a port of its own that the courier's process needs at the site.
    """
    write(folder / "recipe.yaml", plan.recipe)
    write(folder / "site.yaml", texts.site_file(site))
    write(folder / "README.md", texts.of_site(site, plan.address, courier.words))
    agent = Service(
        "agent", f"the agent of site {site}", "motet site --config site.yaml", {}, offline=True
    )
    _write_services(courier, [agent, service], folder, plan)
    about = {"role": "site", "name": site}
    _write_about(courier, plan, folder, about if listen is None else {**about, "listen": listen})


def _write_about(courier: Courier, plan: Plan, folder: Path, about: Mapping[str, Any]) -> None:
    known = {
        "courier": courier.name,
        **about,
        "address": plan.address,
        "versions": dict(plan.versions),
    }
    write(folder / DEPLOYMENT, json.dumps(known, indent=1))


def _write_services(
    courier: Courier,
    services: Sequence[Service],
    folder: Path,
    plan: Plan,
    ports: Sequence[int] = (),
) -> None:
    for service in services:
        write(folder / f"start-{service.name}.sh", script(service), runs=True)
        write(folder / f"systemd/motet-{service.name}.service", unit(service, folder.name))
    write(folder / "compose.yaml", compose(services, folder.name, ports))
    write(folder / "Dockerfile", dockerfile(f"motet[{courier.extras},text]", plan.versions))


def write(path: Path, text: str, *, runs: bool = False) -> None:
    """Writes a text into a folder that may not be there yet; raises StoreError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if runs:
            path.chmod(0o755)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def read_about(folder: Path) -> dict[str, Any]:
    """What was decided for a party's folder; raises ConfigError where it is none."""
    try:
        found: dict[str, Any] = json.loads((folder / DEPLOYMENT).read_text(encoding="utf-8"))
        if {"role", "address", "courier", "versions"} <= found.keys():
            return found
    except (OSError, ValueError, AttributeError):
        pass
    raise ConfigError(f"{folder} has no {DEPLOYMENT}; name a folder that motet deploy wrote")
