"""``motet site``: the agent beside a site's data, and what is said to it."""

from __future__ import annotations

from pathlib import Path

from motet.agent.client import Client
from motet.agent.messages import about, call
from motet.agent.policy import decide
from motet.commands.common import say
from motet.core.errors import ConfigError
from motet.experiment.site_file import opened, read_site

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


def stop_site(socket: Path) -> None:
    """Has the agent at a socket stop after what it is doing."""
    with Client(socket) as client:
        call(client, about("stop"), ANSWER)
