"""The pages that go into the parties' folders."""

from __future__ import annotations

from collections.abc import Sequence

HUB_FILE = """\
# What the hub runs, and where it keeps it. Paths are taken from this folder.
recipe: recipe.yaml
folder: run
# Seconds within which all sites must be there at the start, and for which one may be away later.
wait: 600
patience: 600
"""


def overview(sites: Sequence[str], address: str) -> str:
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

What is secret in them: `nvflare/startup/*.key` lets its holder pass for that party, and
`hub/admin/startup/client.key` lets its holder start runs. All were made here, by NVFlare's own
provisioning, so that whoever ran it has seen them. The authority that signed the certificates was
not kept: nobody can make another party. When certificates end, or the hub moves, write new folders.
"""


def of_hub(sites: Sequence[str], address: str) -> str:
    """The hub's page."""
    return f"""\
# The hub

Sites: {", ".join(sites)}. They reach this machine at `{address}`; that one port must be open to
them. Everybody on it shows a certificate of this deployment, or is not heard.

In the environment where Motet is installed (`pip install 'motet[nvflare]'`), in this folder:

1. `./start-server.sh` starts NVFlare's server; leave it running, or install
   `systemd/motet-server.service`.
2. `motet hub --config hub.yaml` starts the run when all sites are there, and follows it. It shows
   each round, and who is waited for. The run is in `run/`.

When anything was stopped or killed, start it again: the run goes on from its last round.
`motet report run` shows the results. NVFlare's logs are in `nvflare/`.
"""


def of_site(site: str, address: str) -> str:
    """A site's page."""
    return f"""\
# Site {site}

Nothing comes in here: NVFlare's client calls the hub at `{address}`, and the agent answers what it
brings. The agent alone sees the data; it needs no network.

1. Say in `site.yaml` where the rows are, and what may leave (`policy`).
2. In the environment where Motet is installed (`pip install 'motet[nvflare]'`), in this folder:
   `./start-agent.sh` and, beside it, `./start-client.sh`; leave both running, or install the units
   of `systemd/`.
3. `motet status site.yaml` says what the site is doing. `state/journal.jsonl` lists all that left.

When either was stopped or killed, start it again: it goes on where it was.

The hub cannot make this site run code: `nvflare/local/authorization.json` refuses jobs that bring
some, and `nvflare/local/resources.json` lets in the two classes that hand frames to the agent.
NVFlare's own log stays here too; by its default it would go to the hub.
"""
