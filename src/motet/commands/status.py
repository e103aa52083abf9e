"""``motet status``: who is there, what they do, since when, and what they wait for."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from motet.agent.client import Client
from motet.agent.messages import about, call
from motet.commands.common import out, result, say, table
from motet.commands.follow import EVENTS, waiting_file
from motet.commands.hub import HUB, read_hub
from motet.commands.site import ANSWER
from motet.core.errors import ConfigError, WireError
from motet.core.events import Event, read_events
from motet.deploy.plan import DEPLOYMENT
from motet.experiment.site_file import read_site

SITE = Path("site.yaml")


def show_status(targets: Sequence[Path]) -> None:
    """Shows how sites and hubs are; leaves with 1 when a site does not answer.

    targets: files or folders of either, or sockets; those of this folder without any.
    """
    shown = table(
        "",
        ("site", "does", "since", "answers", "last", "MB left", "last error"),
        right=("since", "answers", "MB left"),
    )
    missing: list[str] = []
    for target in targets or _here():
        if (config := hub_file(target)) is not None:
            show_hub(config)
            continue
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


def _here() -> list[Path]:
    return [HUB] if HUB.exists() and not SITE.exists() else [SITE]


def hub_file(target: Path) -> Path | None:
    """The file of a hub, where the target is one, or the folder of one; None for a site."""
    if target.is_dir():
        return target / HUB if (target / HUB).exists() else None
    beside = target.with_name(DEPLOYMENT)
    with suppress(OSError, ValueError):
        if json.loads(beside.read_text(encoding="utf-8")).get("role") == "hub":
            return target
    return target if target.name == HUB.name else None


def socket_of(target: Path) -> Path:
    """The socket that a site's file or folder names, or the target itself."""
    if target.is_dir():
        target = target / SITE
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


def _row(status: Mapping[str, Any]) -> list[str]:
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


@dataclass
class Seen:
    """What a hub's events say of its run so far.

    state: what the run does, and since when. sites: site -> what was heard of it last, and when.
    errors: site -> the last thing that went wrong there.
    """

    state: str = "not begun"
    since: float = 0.0
    sites: dict[str, tuple[str, float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Takes one more event into account."""
        kind, when = event["event"], float(event["time"])
        if kind == "sites":
            self.sites |= dict.fromkeys(event["sites"], ("there", when))
        elif kind == "replied":
            self.sites[event["site"]] = (f"answered {event['op']}", when)
            self.errors.pop(event["site"], None)
        elif kind in ("failed", "asked again"):
            self.sites[event["site"]] = (f"{kind}: {event['op']}", when)
            self.errors[event["site"]] = str(event.get("error") or event.get("reason"))
        if kind in ("started", "resumed"):
            self._now("begins", when)
        elif kind == "round":
            self._now(f"round {event['round'] + 1} of {event['of']}", when)
        elif kind == "stopped":
            self._now(f"stopped: {event['error']}", when)
        elif kind == "finished":
            self._now(f"finished, hash {event['hash']}", when)

    def _now(self, state: str, when: float) -> None:
        self.state, self.since = state, when


def show_hub(config: Path) -> None:
    """Shows where a hub's run stands, what was heard of each site, and who is waited for."""
    spec = read_hub(config)
    seen = Seen()
    path = spec.folder / EVENTS
    for event in read_events(path) if path.exists() else []:
        seen.add(event)
    since = f", since {ago(seen.since)}" if seen.since else ""
    say(f"hub {config.absolute().parent}: {seen.state}{since}")
    running = not seen.state.startswith(("finished", "stopped"))
    shown = table("", ("site", "heard last", "ago", "last error"), right=("ago",))
    for site, (what, when) in sorted(seen.sites.items()):
        shown.add_row(site, what, ago(when), seen.errors.get(site, "-"))
    if shown.row_count:
        out().print(shown)
    for who, what in _waited_for(waiting_file(spec.folder)).items() if running else ():
        result(f"waits for {who}: {what}")


def _waited_for(path: Path) -> dict[str, str]:
    with suppress(OSError, ValueError):
        told: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        return dict(sorted(told.items()))
    return {}


def ago(since: float) -> str:
    """How long ago a time was: 12 s, 3 min, 5 h."""
    seconds = max(time.time() - since, 0.0)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
