"""What NVFlare needs at every party: certificates, a policy that runs no code, start scripts."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from motet.core.errors import ConfigError, StoreError
from motet.deploy import plan as folders
from motet.deploy.plan import ALIKE, Courier, Plan, write
from motet.deploy.templates import Service
from motet.deploy.texts import Words
from motet.engines.nvflare.names import ADMIN, AT_HUB, AT_SITE, HUB, PROJECT, SOCKET

PORT = 8002
# The only roles and rights that a party knows: the hub's own people start and end jobs, and nobody
# brings code, looks into files, or restarts a site from afar.
RIGHTS = {
    "submit_job": "any",
    "manage_job": "any",
    "view": "any",
    "clone_job": "none",
    "download_job": "none",
    "operate": "none",
    "shell_commands": "none",
    "byoc": "none",
    "server-predeployed-flwr": "none",
}
POLICY = {"format_version": "1.0", "permissions": {"project_admin": RIGHTS}}
# Words of NVFlare's builders; the scheme is that of its connections, always within mutual TLS.
_BUILDERS = "nvflare.lighter.impl"
SCHEME = "tcp"


WORDS = Words(
    server="NVFlare's server",
    client="NVFlare's client",
    start_server="server",
    start_client="client",
    extras="nvflare",
    secrets="""\
What is secret in them: `nvflare/startup/*.key` lets its holder pass for that party, and
`hub/admin/startup/client.key` lets its holder start runs. All were made here, by NVFlare's own
provisioning, so that whoever ran it has seen them. The authority that signed the certificates was
not kept: nobody can make another party. When certificates end, or the hub moves, write new
folders.""",
    trusted="Everybody on it shows a certificate of this deployment, or is not heard.",
    refused="""\
The hub cannot make this site run code: `nvflare/local/authorization.json` refuses jobs that bring
some, and `nvflare/local/resources.json` lets in the two classes that hand frames to the agent.
NVFlare's own log stays here too; by its default it would go to the hub.""",
    logs="NVFlare's logs are in `nvflare/`.",
)


def write_nvflare(plan: Plan, out: Path) -> None:
    """Writes ``out``/hub and ``out``/NAME for every site; raises ConfigError where there is one."""
    folders.check_new(plan, out)
    if ":" in plan.host:
        raise ConfigError(f"--hub {plan.host}: NVFlare wants a host name or an IPv4 address")
    # NVFlare keeps its authority's private key beside the kits: with this folder it is gone.
    with tempfile.TemporaryDirectory() as scratch:
        kits = provision(plan, Path(scratch))
        try:
            for site in plan.sites:
                place = out / site
                _kit(kits / site, place / "nvflare", site_resources)
                folders.write_site(COURIER, plan, site, place, client(), None)
            hub = out / "hub"
            _kit(kits / plan.host, hub / "nvflare", hub_resources)
            shutil.copytree(kits / ADMIN, hub / "admin")
            folders.write_hub(COURIER, plan, hub, server())
        except OSError as error:
            raise StoreError(f"cannot write {error.filename}: {error.strerror}") from error
    folders.write_overview(COURIER, plan, out)


def provision(plan: Plan, scratch: Path) -> Path:
    """The folder of NVFlare's start-up kits, by its own provisioning; one kit for each party."""
    try:
        from nvflare.lighter.prov_utils import prepare_builders
        from nvflare.lighter.provision import prepare_project
        from nvflare.lighter.provisioner import Provisioner
    except ImportError:
        raise ConfigError("NVFlare is not installed: pip install 'motet[nvflare]'") from None
    project = _project(plan)
    told = _Told()
    # It prints what it does.
    with contextlib.redirect_stdout(told):
        found = Provisioner(str(scratch), prepare_builders(project)).provision(
            prepare_project(project)
        )
    kits = Path(found.get("current_prod_dir") or scratch)
    if found.get("build_error") or not (kits / plan.host / "startup").is_dir():
        raise ConfigError(f"NVFlare's provisioning failed: {told.last}")
    return kits


class _Told:
    """Takes what is printed, and keeps the last line."""

    last = "it said nothing"

    def write(self, text: str) -> int:
        self.last = text.strip() or self.last
        return len(text)

    def flush(self) -> None:
        """There is nothing to flush."""


def _project(plan: Plan) -> dict[str, Any]:
    server: dict[str, Any] = {"name": plan.host, "type": "server", "org": "hub"}
    server |= {"fed_learn_port": plan.port}
    admin = {"name": ADMIN, "type": "admin", "org": "hub", "role": "project_admin"}
    sites = [{"name": site, "type": "client", "org": "sites"} for site in plan.sites]
    builders: list[tuple[str, dict[str, Any]]] = [
        ("workspace.WorkspaceBuilder", {"template_file": ["master_template.yml"]}),
        ("static_file.StaticFileBuilder", {"config_folder": "config", "scheme": SCHEME}),
        ("cert.CertBuilder", {"root_valid_days": plan.days}),
        ("signature.SignatureBuilder", {}),
    ]
    return {
        "api_version": 4,
        "name": PROJECT,
        "description": "a federation of Motet",
        "gen_scripts": True,
        "participants": [server, *sites, admin],
        "builders": [{"path": f"{_BUILDERS}.{name}", "args": args} for name, args in builders],
    }


def site_resources(resources: Mapping[str, Any]) -> dict[str, Any]:
    """A client's resources: the classes of our job alone, and no log that goes to the hub.

    An error log may quote private values; NVFlare streams it to its server otherwise.
    """
    parts = [part for part in resources["components"] if "Log" not in part["path"].split(".")[-1]]
    own = {"components": parts, "allow_log_streaming": False}
    return {**resources, **own, **_only(AT_SITE)}


def hub_resources(resources: Mapping[str, Any]) -> dict[str, Any]:
    """A server's resources: one job at a time, what it keeps in the hub's own folder."""
    parts = [dict(part) for part in resources["components"] if part["id"] != "log_receiver"]
    for part in parts:
        if part["id"] == "job_scheduler":
            # A job waits for its sites for as long as it takes, and begins soon after.
            always = {"max_schedule_count": 1_000_000, "max_schedule_interval": 20}
            part["args"] = {"max_jobs": 1, **always}
        if part["id"] == "job_manager":
            part["args"] = {**part["args"], "uri_root": "{$MOTET_HERE}/nvflare/jobs"}
    snapshots = json.loads(json.dumps(resources["snapshot_persistor"]))
    snapshots["args"]["storage"]["args"]["root_dir"] = "{$MOTET_HERE}/nvflare/snapshots"
    own = {"components": parts, "snapshot_persistor": snapshots}
    return {**resources, **own, **_only(AT_HUB)}


def _only(classes: Sequence[str]) -> dict[str, Any]:
    return {"class_list_enforcement_mode": "enforce", "class_allow_list": list(classes)}


def client() -> Service:
    """A site's NVFlare client, which knows hub and itself by certificates."""
    environment = {SOCKET: "$here/state/agent.sock"}
    about = "NVFlare's client of the site"
    command = "bash nvflare/startup/sub_start.sh --once"
    return Service("client", about, command, environment, after="agent", again=5.0)


def server() -> Service:
    """The hub's NVFlare server."""
    environment = {"MOTET_HERE": "$here", HUB: "$here/hub.yaml"}
    about = "NVFlare's server of the hub"
    return Service("server", about, "bash nvflare/startup/sub_start.sh --once", environment)


def _kit(kit: Path, place: Path, resources: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    """Puts a start-up kit into a party's folder, with Motet's policy in place of NVFlare's."""
    shutil.copytree(kit, place)
    local = place / "local"
    given = json.loads((local / "resources.json.default").read_text("utf-8"))
    write(local / "resources.json", json.dumps(resources(given), indent=1))
    write(local / "authorization.json", json.dumps(POLICY, indent=1))
    for name in ("resources.json.default", "authorization.json.default"):
        (local / name).unlink()
    for key in (place / "startup").glob("*.key"):
        key.chmod(0o600)


COURIER = Courier(
    name="nvflare",
    port=PORT,
    packages=(*ALIKE, "nvflare"),
    extras=WORDS.extras,
    words=WORDS,
    write=write_nvflare,
)
