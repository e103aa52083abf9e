"""``motet deploy``: a folder for every party of a federation, and a look at it before the start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer
import yaml

from motet.commands.common import out, result, say, table
from motet.core.errors import ConfigError
from motet.deploy.plan import Courier, Plan, versions_here
from motet.deploy.preflight import preflight
from motet.experiment.build import hub_parties, site_names
from motet.experiment.targets import load_experiment


def deploy(
    courier: str,
    recipe: str,
    hub: str,
    folder: Path,
    *,
    sites: Sequence[str] = (),
    settings: Sequence[str] = (),
    days: int = 365,
) -> None:
    """Writes ``folder``/hub and a folder for every site of the recipe.

    courier: flower or nvflare. recipe: a file, or anything else that ``motet run`` takes. hub: HOST
    or HOST:PORT under which sites reach the hub. sites: names to check against the recipe; all of
    it without any. settings: as for ``motet run``.
    """
    by = courier_of(courier)
    experiment = load_experiment(recipe, settings)
    names = site_names(experiment)
    check_names(sites, names)
    experiment.method.check(hub_parties(experiment).facts)
    host, port = split_host(hub, by.port)
    text = yaml.safe_dump(experiment.plain(), sort_keys=False, allow_unicode=True)
    versions = versions_here(by.packages, by.extras)
    by.write(Plan(tuple(names), text, host, port, days, versions), folder)
    say(f"{folder}: hub, {', '.join(names)}; README.md there says what is for whom")


def courier_of(name: str) -> Courier:
    """What folders know of flower or nvflare; either may be missing here."""
    if name == "flower":
        from motet.engines.flower.deploy import COURIER as FLOWER

        return FLOWER
    from motet.engines.nvflare.deploy import COURIER as NVFLARE

    return NVFLARE


def check_names(given: Sequence[str], names: Sequence[str]) -> None:
    """Raises ConfigError unless the given names, where there are any, are the recipe's."""
    strangers = [name for name in given if name not in names]
    if strangers:
        raise ConfigError(f"--site {strangers[0]}: the recipe has {', '.join(names)}")
    left_out = [name for name in names if name not in given]
    if given and left_out:
        raise ConfigError(
            f"--site: the recipe also has {', '.join(left_out)}; name all of its sites, or change "
            "populations in the recipe"
        )


def split_host(text: str, port: int) -> tuple[str, int]:
    """(host, port) of HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT."""
    host, given = text, str(port)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        given = rest[1:] if rest.startswith(":") else given
    elif text.count(":") == 1:
        host, _, given = text.partition(":")
    strange = set(host) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.:")
    if not host or strange or not given.isdecimal() or not 0 < int(given) < 65536:
        raise ConfigError(f"--hub {text!r}: write a host name or address, such as hub.org:8000")
    return host, int(given)


def check_folder(folder: Path) -> None:
    """Shows what is fine and what is not in a party's folder; leaves with 1 for the latter."""
    shown = table("", ("", "check", ""))
    checks = preflight(folder)
    for check in checks:
        shown.add_row("ok" if check.fine else "WRONG", check.name, check.text)
    out().print(shown)
    wrong = [check for check in checks if not check.fine]
    if wrong:
        result(f"{len(wrong)} of {len(checks)} checks found something to do")
        raise typer.Exit(1)
