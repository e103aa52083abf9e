"""``motet site`` and ``motet status``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from motet.agent.client import Client
from motet.agent.messages import about, call
from motet.agent.policy import decide
from motet.commands.common import out, result, say, table
from motet.core.errors import ConfigError, WireError
from motet.experiment.site_file import opened, read_site

SITE = Path("site.yaml")
# Seconds in which an agent that is alive says how it is, whatever it is doing.
ANSWER = 10.0


def serve_site(
    config: Path, yes: str | None = None, no: str | None = None, stop: bool = False
) -> None:
    """Runs a site's agent until it is stopped.

    yes, no: answers a question that waits for a person instead. stop: stops the agent that runs.
    """
    site = read_site(config)
    if yes is not None or no is not None:
        for number, word in ((yes, "yes"), (no, "no")):
            if number is not None:
                decide(site.state, number, word == "yes")
                say(f"said {word} to {number}")
        return
    if stop:
        try:
            stop_site(site.at)
        except OSError:
            raise ConfigError(f"no agent listens at {site.at}; there is none to stop") from None
        say(f"site {site.name} stops after what it is doing")
        return
    with opened(site) as server:
        say(f"site {site.name} listens at {site.at}; journal: {site.state / 'journal.jsonl'}")
        server.serve()
    say(f"site {site.name} stopped; what it knows is kept in {site.state}")


def show_status(targets: Sequence[Path]) -> None:
    """Who is there, what they do and since when; leaves with 1 when one does not answer.

    targets: site files or sockets; site.yaml here without any.
    """
    shown = table(
        "",
        ("site", "does", "since", "answers", "last", "MB left", "last error"),
        right=("since", "answers", "MB left"),
    )
    missing: list[str] = []
    for target in targets or [SITE]:
        try:
            shown.add_row(*_row(status_of(socket_of(target))))
        except (OSError, WireError) as error:
            missing.append(f"{target}: no agent answers ({error})")
    if shown.row_count:
        out().print(shown)
    for line in missing:
        result(line)
    if missing:
        raise typer.Exit(1)


def socket_of(target: Path) -> Path:
    """The socket that a site file names, or the target itself."""
    return read_site(target).at if target.suffix in (".yaml", ".yml") else target


def status_of(socket: Path) -> dict[str, Any]:
    """What the agent at a socket says of itself; raises OSError, WireError where none answers."""
    try:
        with Client(socket) as client:
            reply = call(client, about("status"), ANSWER)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if "error" in reply:
        raise WireError(str(reply["error"]))
    return {"site": reply["site"], **reply["value"]}


def stop_site(socket: Path) -> None:
    """Has the agent at a socket stop after what it is doing."""
    with Client(socket) as client:
        call(client, about("stop"), ANSWER)


def _row(status: dict[str, Any]) -> list[str]:
    error = status["error"]
    if error:
        error = f"{ago(status['error time'])} ago: {error}"
    return [
        status["site"],
        status["doing"],
        ago(status["since"]),
        f"{status['answers']:,}",
        status["last"] or "-",
        f"{status['bytes left'] / 1e6:,.1f}",
        error or "-",
    ]


def ago(since: float) -> str:
    """How long ago a time was: 12 s, 3 min, 5 h."""
    seconds = max(time.time() - since, 0.0)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
