"""The pages and settings that go into the parties' folders."""

from __future__ import annotations

from collections.abc import Sequence


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

What is secret in them: `hub/tls/hub.key` lets its holder pass for the hub, `NAME/site.key` for that
site. A site that would rather make its own key does so, and sends the public half to the hub as
`keys/NAME.pub`:

    ssh-keygen -t ecdsa -b 384 -N "" -C NAME -f site.key

The authority that signed the hub's certificate was not kept: nobody can make a second hub. When the
certificate ends, or the hub moves, write new folders.
"""


def of_hub(sites: Sequence[str], address: str) -> str:
    """The hub's page."""
    return f"""\
# The hub

Sites: {", ".join(sites)}. They reach this machine at `{address}`; that one port must be open to
them. What starts runs is taken from this machine alone.

In the environment where Motet is installed (`pip install 'motet[flower,secure]'`), in this folder:

1. `motet deploy check .` looks at keys, certificate, port, clock and versions.
2. `./start-superlink.sh` starts Flower's SuperLink; leave it running, or install
   `systemd/motet-superlink.service`.
3. `motet hub --config hub.yaml` registers the sites' keys, waits for all sites, and runs the
   recipe. It shows each round, and who is waited for. The run is in `run/`.

When anything was stopped or killed, start it again: the run goes on from its last round.
`motet report run` shows the results.
"""


def of_site(site: str, address: str) -> str:
    """A site's page."""
    return f"""\
# Site {site}

Nothing comes in here: the SuperNode calls the hub at `{address}`, and the agent answers what it
brings. The agent alone sees the data; it needs no network.

1. Say in `site.yaml` where the rows are, and what may leave (`policy`).
2. In the environment where Motet is installed (`pip install 'motet[flower,secure]'`), in this
   folder: `motet deploy check .` looks at keys, clocks, versions, and whether the hub is reached.
3. `./start-agent.sh` and, beside it, `./start-supernode.sh`; leave both running, or install the
   units of `systemd/`.
4. `motet status site.yaml` says what the site is doing. `state/journal.jsonl` lists all that left.

When either was stopped or killed, start it again: it goes on where it was.

The hub cannot make this site run code: the SuperNode starts `bin/flwr-clientapp`, which knows
nothing but the agent, and the agent answers the recipe's own operations alone.
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
