"""What Flower needs at every party: the app, its settings, the commands of its processes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from motet.core.errors import ConfigError, StoreError
from motet.deploy import texts
from motet.deploy.keys import Authority, new_authority, new_site_key, write_private
from motet.deploy.preflight import DEPLOYMENT
from motet.deploy.templates import Service, compose, dockerfile, script, unit

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


@dataclass(frozen=True)
class Plan:
    """One deployment: who takes part, and where the hub is.

    recipe: its text, the same for all. host, port: where sites find the hub. days: for which its
    certificate is valid. versions: package -> the version that all parties should have.
    """

    sites: tuple[str, ...]
    recipe: str
    host: str
    port: int = PORT
    days: int = 365
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Where SuperNodes find the hub."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether all parties are on one machine."""
        return self.host in ("localhost", "127.0.0.1", "::1")


def write_flower(plan: Plan, out: Path) -> None:
    """Writes ``out``/hub and ``out``/NAME for every site; raises ConfigError where there is one."""
    names = ["hub", *plan.sites]
    there = [name for name in names if (out / name).exists()]
    if there:
        raise ConfigError(f"{out / there[0]} exists, and is not overwritten; choose another folder")
    authority = new_authority("Motet federation", plan.days)
    public = {}
    for number, site in enumerate(plan.sites):
        private, public[site] = new_site_key(site)
        _write_site(plan, site, SUPERNODE_PORT + number, out / site)
        write_private(out / site / "site.key", private)
        _write(out / site / "ca.crt", authority.pem.decode())
    _write_hub(plan, authority, public, out / "hub")
    _write(out / "README.md", texts.overview(plan.sites, plan.address))


def _write_hub(plan: Plan, authority: Authority, public: Mapping[str, bytes], folder: Path) -> None:
    # The hub's own processes reach it at this machine's address.
    hosts = dict.fromkeys([plan.host, "localhost", "127.0.0.1"])
    issued = authority.issue(plan.host, hosts, plan.days)
    write_private(folder / "tls/hub.key", issued.key)
    _write(folder / "tls/hub.crt", issued.certificate.decode())
    _write(folder / "tls/ca.crt", authority.pem.decode())
    for site, key in public.items():
        _write(folder / f"keys/{site}.pub", key.decode())
    for path, text in app_files().items():
        _write(folder / "app" / path, text)
    _write(folder / "recipe.yaml", plan.recipe)
    _write(folder / "hub.yaml", HUB)
    _write(folder / "flower/config.toml", link_settings(plan.address, "tls/ca.crt"))
    link = superlink("127.0.0.1" if plan.local else "0.0.0.0", plan.port)
    _write_services([link], folder, plan, ports=[plan.port])
    _write(folder / "README.md", texts.of_hub(plan.sites, plan.address))
    about = {"role": "hub", "address": plan.address, "listen": plan.port}
    _write(folder / DEPLOYMENT, json.dumps({**about, "versions": dict(plan.versions)}, indent=1))


def _write_site(plan: Plan, site: str, port: int, folder: Path) -> None:
    _write(folder / "recipe.yaml", plan.recipe)
    _write(folder / "site.yaml", texts.site_file(site))
    node = supernode(plan.address, port)
    agent = Service(
        "agent", f"the agent of site {site}", "motet site --config site.yaml", {}, offline=True
    )
    _write_services([agent, node], folder, plan)
    _write(folder / "bin/flwr-clientapp", OWN_CLIENTAPP, runs=True)
    _write(folder / "README.md", texts.of_site(site, plan.address))
    about = {"role": "site", "name": site, "address": plan.address, "listen": port}
    _write(folder / DEPLOYMENT, json.dumps({**about, "versions": dict(plan.versions)}, indent=1))


def _write_services(
    services: Sequence[Service], folder: Path, plan: Plan, ports: Sequence[int] = ()
) -> None:
    for service in services:
        _write(folder / f"start-{service.name}.sh", script(service), runs=True)
        _write(folder / f"systemd/motet-{service.name}.service", unit(service, folder.name))
    _write(folder / "compose.yaml", compose(services, folder.name, ports))
    image = dockerfile("motet[flower,secure,text]", plan.versions)
    _write(folder / "Dockerfile", image)


def _write(path: Path, text: str, *, runs: bool = False) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if runs:
            path.chmod(0o755)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


HUB = """\
# What the hub runs, and where it keeps it. Paths are taken from this folder.
recipe: recipe.yaml
folder: run
# Public keys of the sites: a site is who has the key of its name.
keys: keys
# Seconds within which all sites must be there at the start, and for which one may be away later.
wait: 600
patience: 600
"""
