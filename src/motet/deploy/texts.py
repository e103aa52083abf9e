"""The pages and settings that go into the parties' folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """What a courier's parts are called on the pages.

    server, client: its process at the hub and at a site, with whose it is. start_server,
    start_client: names of the services. extras: as in ``pip install``. secrets: what is secret in
    the folders. trusted: who is heard at the hub's port. refused: what a hub cannot make a site do.
    logs: where the hub's courier writes what it does.
    """

    server: str
    client: str
    start_server: str
    start_client: str
    extras: str
    secrets: str
    trusted: str
    refused: str
    logs: str


def overview(sites: Sequence[str], address: str, words: Words) -> str:
    """The page for whoever made the folders."""
    rows = "\n".join(f"| `{site}` | the people of site {site} |" for site in sites)
    return f"""\
# A federation of {len(sites)} sites

The hub is at `{address}`. Hand every folder over on a safe way (an encrypted disk, `scp`), to its
party and nobody else, and delete it here.

| folder | for |
|---|---|
| `hub` | the people of the hub |
{rows}

{words.secrets}
"""


def of_hub(sites: Sequence[str], address: str, words: Words) -> str:
    """The hub's page."""
    return f"""\
# The hub

Sites: {", ".join(sites)}. They reach this machine at `{address}`; that one port must be open to
them. {words.trusted}

In the environment where Motet is installed (`pip install 'motet[{words.extras}]'`), in this folder:

1. `motet deploy check .` looks at keys, certificate, port, clock and versions.
2. `./start-{words.start_server}.sh` starts {words.server}; leave it running, or install
   `systemd/motet-{words.start_server}.service`.
3. `motet hub --config hub.yaml` waits for all sites, runs the recipe, and shows each round and who
   is waited for. The run is in `run/`. `motet status hub.yaml` says from elsewhere how it stands.

When anything was stopped or killed, start it again: the run goes on from its last round.
`motet report run` shows the results. {words.logs}
"""


def of_site(site: str, address: str, words: Words) -> str:
    """A site's page."""
    return f"""\
# Site {site}

Nothing comes in here: {words.client} calls the hub at `{address}`, and the agent answers what it
brings. The agent alone sees the data; it needs no network.

1. Say in `site.yaml` where the rows are, and what may leave (`policy`).
2. In the environment where Motet is installed (`pip install 'motet[{words.extras}]'`), in this
   folder: `motet deploy check .` looks at keys, clocks, versions, and whether the hub is reached.
3. `./start-agent.sh` and, beside it, `./start-{words.start_client}.sh`; leave both running, or
   install the units of `systemd/`.
4. `motet status site.yaml` says what the site is doing. `state/journal.jsonl` lists all that left.

When either was stopped or killed, start it again: it goes on where it was. Keep `state/` with its
`secret`, from which the site's privacy noise comes, and give it to nobody.

{words.refused}
"""


def hub_file(settings: str) -> str:
    """A hub's settings; those of its courier's own are lines of YAML."""
    return f"""\
# What the hub runs, and where it keeps it. Paths are taken from this folder.
recipe: recipe.yaml
folder: run
{settings}\
# Seconds within which all sites must be there at the start, and for which one may be away later.
wait: 600
patience: 600
"""


def site_file(site: str) -> str:
    """A site's settings, to be filled in."""
    return f"""\
# What this site is. Paths are taken from this folder.
name: {site}
recipe: recipe.yaml
# Where its rows are: "from recipe" is its share of the recipe's data, for a rehearsal. A real site
# writes a reader (motet list data), such as {{name: folder, options: {{path: pictures}}}}.
data: from recipe
state: state
policy:
  # What may leave: null lets every kind of the recipe, [weights, metric] only these.
  kinds: null
  # none, first or every: which questions wait until somebody here says yes.
  approve: none
"""
