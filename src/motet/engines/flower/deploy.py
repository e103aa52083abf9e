"""What Flower needs at every party: the app, its settings, the commands of its processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from motet.deploy import plan as folders
from motet.deploy.keys import Authority, new_authority, new_site_key, write_private
from motet.deploy.plan import ALIKE, Courier, Plan, write
from motet.deploy.templates import Service
from motet.deploy.texts import Words

PORT = 8000
# A SuperNode's own port, on its own machine alone; sites of one machine need different ones.
SUPERNODE_PORT = 9094
LINK = "hub"
# Nothing is sent to anyone but the hub, and nothing is installed while a run is under way.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
# Seconds between two looks for a message to work on, in place of Flower's 1.
PROMPT = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}

CLIENT = '''\
"""What SuperNodes run: Motet's shim."""

from motet.engines.flower import shim

app = shim.app
'''
SERVER = '''\
"""What the SuperLink runs: the hub of the run that the configuration's one key names."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from motet.commands.hub import serve_flower

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    serve_flower(grid, context.run_config)
'''
PROJECT = """\
[project]
name = "motet-app"
version = "1.0.0"
description = "Hands Motet's questions to the agents of the sites"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "motet"

[tool.flwr.app.components]
serverapp = "motet_app.server:app"
clientapp = "motet_app.client:app"

[tool.flwr.app.config]
motet = "hub.yaml"
"""


def app_files() -> dict[str, str]:
    """Flower's app, path -> text: names of Motet's own functions and nothing else."""
    return {
        "pyproject.toml": PROJECT,
        "motet_app/__init__.py": '"""Motet as an app of Flower."""\n',
        "motet_app/client.py": CLIENT,
        "motet_app/server.py": SERVER,
    }


def link_settings(address: str, certificate: str | None) -> str:
    """The config.toml by which ``flwr`` finds the SuperLink; without a certificate unencrypted."""
    trust = (
        "insecure = true" if certificate is None else f"root-certificates = {_text(certificate)}"
    )
    return f"""\
[superlink]
default = "{LINK}"

[superlink.{LINK}]
address = {_text(address)}
{trust}
"""


def _text(value: str) -> str:
    # What JSON writes as a text, TOML reads as one.
    return json.dumps(value, ensure_ascii=False)


def home(folder: str) -> Mapping[str, str]:
    """Environment of all of Flower's processes of a party."""
    return {**QUIET, **PROMPT, "FLWR_HOME": folder}


def superlink(listen: str, port: int) -> Service:
    """The hub's SuperLink, with TLS and authenticated SuperNodes."""
    words = [
        "python3 -m motet.engines.flower.front",
        f"--host {listen} --port {port}",
        "--ssl-certfile tls/hub.crt --ssl-keyfile tls/hub.key --ssl-ca-certfile tls/ca.crt",
        "--enable-supernode-auth --database flower/state.db",
    ]
    command = " \\\n    ".join(words)
    return Service("superlink", "Flower's SuperLink of the hub", command, home("$here/flower"))


def supernode(address: str, port: int) -> Service:
    """A site's SuperNode, which knows the hub by its certificate and itself by its key."""
    words = [
        "flower-supernode",
        f"--superlink {address} --root-certificates ca.crt",
        f"--auth-supernode-private-key site.key --port {port}",
        '--node-config "socket=\\"$here/state/agent.sock\\""',
    ]
    # The site's own flwr-clientapp is found before Flower's.
    environment = {**home("$here/flower"), "PATH": "$here/bin:$PATH"}
    command = " \\\n        ".join(words)
    about = "Flower's SuperNode of the site"
    # It ends when the hub does not know its key yet.
    return Service("supernode", about, command, environment, after="agent", again=5.0)


OWN_CLIENTAPP = """\
#!/bin/sh
# In place of Flower's own: hands every message to the agent, and runs no code from elsewhere.
exec python3 -m motet.engines.flower.clientapp "$@"
"""


WORDS = Words(
    server="Flower's SuperLink",
    client="the SuperNode",
    start_server="superlink",
    start_client="supernode",
    extras="flower,secure",
    secrets="""\
What is secret in them: `hub/tls/hub.key` lets its holder pass for the hub, `NAME/site.key` for that
site. A site that would rather make its own key does so, and sends the public half to the hub as
`keys/NAME.pub`:

    ssh-keygen -t ecdsa -b 384 -N "" -C NAME -f site.key

The authority that signed the hub's certificate was not kept: nobody can make a second hub. When the
certificate ends, or the hub moves, write new folders.""",
    trusted="What starts runs is taken from this machine alone.",
    refused="""\
The hub cannot make this site run code: the SuperNode starts `bin/flwr-clientapp`, which knows
nothing but the agent, and the agent answers the recipe's own operations alone.""",
    logs="`FLWR_HOME=$PWD/flower flwr log RUN hub --show` shows a run's own log.",
)
KEYS = """\
# Public keys of the sites: a site is who has the key of its name.
keys: keys
"""


def write_flower(plan: Plan, out: Path) -> None:
    """Writes ``out``/hub and ``out``/NAME for every site; raises ConfigError where there is one."""
    folders.check_new(plan, out)
    authority = new_authority("Motet federation", plan.days)
    public = {}
    for number, site in enumerate(plan.sites):
        private, public[site] = new_site_key(site)
        port, folder = SUPERNODE_PORT + number, out / site
        folders.write_site(COURIER, plan, site, folder, supernode(plan.address, port), port)
        write(folder / "bin/flwr-clientapp", OWN_CLIENTAPP, runs=True)
        write_private(folder / "site.key", private)
        write(folder / "ca.crt", authority.pem.decode())
    _write_hub(plan, authority, public, out / "hub")
    folders.write_overview(COURIER, plan, out)


def _write_hub(plan: Plan, authority: Authority, public: Mapping[str, bytes], folder: Path) -> None:
    # The hub's own processes reach it at this machine's address.
    hosts = dict.fromkeys([plan.host, "localhost", "127.0.0.1"])
    issued = authority.issue(plan.host, hosts, plan.days)
    write_private(folder / "tls/hub.key", issued.key)
    write(folder / "tls/hub.crt", issued.certificate.decode())
    write(folder / "tls/ca.crt", authority.pem.decode())
    for site, key in public.items():
        write(folder / f"keys/{site}.pub", key.decode())
    for path, text in app_files().items():
        write(folder / "app" / path, text)
    write(folder / "flower/config.toml", link_settings(plan.address, "tls/ca.crt"))
    link = superlink("127.0.0.1" if plan.local else "0.0.0.0", plan.port)
    folders.write_hub(COURIER, plan, folder, link, settings=KEYS)


COURIER = Courier(
    name="flower",
    port=PORT,
    packages=(*ALIKE, "flwr"),
    extras=WORDS.extras,
    words=WORDS,
    write=write_flower,
)
