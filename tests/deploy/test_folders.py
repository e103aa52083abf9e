"""Keys, certificates, start scripts and checks of a party's folder, without starting anything."""

from __future__ import annotations

import datetime
import json
import platform
import shutil
import socket
import ssl
import stat
import subprocess
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("cryptography", reason="cryptography is not installed: motet[secure]")

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_private_key

from motet.commands.deploy import check_names, split_host
from motet.core.errors import ConfigError
from motet.deploy import preflight as checks
from motet.deploy.keys import new_authority, new_site_key, pem_of_public, write_private
from motet.deploy.plan import Plan, versions_here
from motet.deploy.preflight import PLACES, preflight
from motet.deploy.templates import Service, compose, dockerfile, script, unit

SITES = ("image-1", "text-1")
HOST = "hub.example.org"
VERSIONS = {"python": platform.python_version(), "torch": "0.0.1"}
SITE = PLACES["flower", "site"]


def test_a_certificate_names_its_hosts_and_is_signed_by_its_authority() -> None:
    authority = new_authority("a federation", 30)
    issued = authority.issue(HOST, [HOST, "10.0.0.7", "::1"], 20)
    found = x509.load_pem_x509_certificate(issued.certificate)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [HOST, "10.0.0.7", "::1"]
    found.verify_directly_issued_by(authority.certificate)
    with pytest.raises(InvalidSignature):
        found.verify_directly_issued_by(new_authority("a federation", 30).certificate)
    left = found.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=19) < left <= datetime.timedelta(days=20)
    assert isinstance(found.public_key(), ec.EllipticCurvePublicKey)
    constraints = found.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca


def test_a_sites_key_is_on_p384_in_openssh_format(tmp_path: Path) -> None:
    private, public = new_site_key("image-1")
    key = load_ssh_private_key(private, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    assert public.startswith(b"ecdsa-sha2-nistp384 ")
    assert public.endswith(b" image-1\n")
    path = tmp_path / "image-1.pub"
    path.write_bytes(public)
    assert load_pem_public_key(pem_of_public(path)) == key.public_key()


def test_a_file_that_is_no_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pub"
    with pytest.raises(ConfigError, match="cannot read the public key .*x.pub"):
        pem_of_public(path)
    path.write_text("ssh-nothing AAAA")
    with pytest.raises(ConfigError, match="x.pub is no public key"):
        pem_of_public(path)


def test_what_is_private_is_for_its_owner_alone_and_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "new/site.key"
    write_private(path, b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="is not overwritten"):
        write_private(path, b"other")
    assert path.read_bytes() == b"secret"


SERVICE = Service("node", "what it is", 'printf "%s\\n" "$WHERE" "$here"', {"WHERE": "$here/x"})


def test_a_start_script_runs_in_its_folder_wherever_it_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    path = folder / "start-node.sh"
    path.write_text(script(SERVICE))
    path.chmod(0o755)
    said = subprocess.run([path], cwd="/", capture_output=True, text=True, check=True).stdout
    assert said.split("\n")[:2] == [f"{folder}/x", str(folder)]


def test_a_script_may_start_its_process_again_and_ends_when_told(tmp_path: Path) -> None:
    path = tmp_path / "start.sh"
    counting = Service("node", "counts", "sh -c 'echo once >>count; exit 3'", {}, again=0.05)
    path.write_text(script(counting))
    path.chmod(0o755)
    count = tmp_path / "count"
    with subprocess.Popen([path], stderr=subprocess.DEVNULL) as process:
        while not count.exists() or len(count.read_text().split()) < 3:
            time.sleep(0.01)
        process.terminate()
        assert process.wait(10) == 0


def test_units_and_compose_files_start_the_scripts() -> None:
    told = unit(Service("node", "it", "x", {}, after="agent"), "image-1")
    assert "After=network-online.target motet-agent.service" in told
    assert "ExecStart=/opt/motet/image-1/start-node.sh" in told
    agent = Service("agent", "it", "x", {}, offline=True)
    found = yaml.safe_load(compose([agent, Service("node", "", "y", {}, after="agent")], "image-1"))
    assert found["services"]["agent"]["network_mode"] == "none"
    assert found["services"]["node"]["depends_on"] == ["agent"]
    assert "ports" not in found["services"]["node"]
    hub = yaml.safe_load(compose([SERVICE], "hub", [8000]))
    assert hub["services"]["node"]["ports"] == ["8000:8000"]
    image = dockerfile("motet[flower]", {"python": "3.11.7", "torch": "2.13.0"})
    assert image.startswith("FROM python:3.11-slim\n")
    assert "'torch==2.13.0'" in image


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hub.org", ("hub.org", 8000)),
        ("hub.org:9", ("hub.org", 9)),
        ("10.0.0.1:9", ("10.0.0.1", 9)),
        ("::1", ("::1", 8000)),
        ("[::1]:9", ("::1", 9)),
    ],
)
def test_a_host_may_have_a_port(text: str, wanted: tuple[str, int]) -> None:
    assert split_host(text, 8000) == wanted


@pytest.mark.parametrize(
    "text", ["", ":9", "hub.org:", "hub.org:0", "hub org", "h;rm", 'h"', "h:99999"]
)
def test_a_host_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--hub"):
        split_host(text, 8000)


def test_sites_are_those_of_the_recipe() -> None:
    check_names([], SITES)
    check_names(list(reversed(SITES)), SITES)
    with pytest.raises(ConfigError, match="--site x: the recipe has image-1, text-1"):
        check_names(["x"], SITES)
    with pytest.raises(ConfigError, match="the recipe also has text-1"):
        check_names(["image-1"], SITES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("flwr", reason="flwr is not installed: pip install 'motet[flower]'")
    from motet.engines.flower.deploy import write_flower

    out = tmp_path_factory.mktemp("f") / "out"
    write_flower(Plan(SITES, "method: creamfl\n", "127.0.0.1", 18999, 100, VERSIONS), out)
    return out


def test_every_party_gets_its_own_secrets_and_no_others(folders: Path) -> None:
    private = {
        str(path.relative_to(folders))
        for path in folders.rglob("*")
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes()
    }
    assert private == {"hub/tls/hub.key", "image-1/site.key", "text-1/site.key"}
    assert all(stat.S_IMODE((folders / path).stat().st_mode) == 0o600 for path in private)
    for site in SITES:
        key = load_ssh_private_key((folders / site / "site.key").read_bytes(), None)
        public = load_pem_public_key(pem_of_public(folders / f"hub/keys/{site}.pub"))
        assert key.public_key() == public
        assert (folders / site / "ca.crt").read_bytes() == (folders / "hub/tls/ca.crt").read_bytes()


def test_the_scripts_keep_flower_quiet_and_let_it_install_nothing(folders: Path) -> None:
    for path in ("hub/start-superlink.sh", "image-1/start-supernode.sh"):
        text = (folders / path).read_text()
        for setting in (
            'FLWR_TELEMETRY_ENABLED="0"',
            'FLWR_DISABLE_UPDATE_CHECK="1"',
            'FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1"',
            'FLWR_HOME="$here/flower"',
        ):
            assert f"export {setting}\n" in text
    assert "--enable-supernode-auth" in (folders / "hub/start-superlink.sh").read_text()
    ports = {
        (folders / site / "start-supernode.sh").read_text().split("--port ")[1][:4]
        for site in SITES
    }
    assert len(ports) == len(SITES)


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_the_app_names_functions_of_motets_and_holds_nothing_else(folders: Path) -> None:
    from flwr.cli.build import build_fab_from_disk

    app = folders / "hub/app"
    assert len(build_fab_from_disk(app)) < 5000
    project = tomllib.loads((app / "pyproject.toml").read_text())
    assert list(project["tool"]["flwr"]["app"]["config"]) == ["motet"]
    assert project["project"]["dependencies"] == []


def test_folders_are_not_overwritten(folders: Path) -> None:
    from motet.engines.flower.deploy import write_flower

    with pytest.raises(ConfigError, match="exists, and is not overwritten"):
        write_flower(Plan(SITES, "", "127.0.0.1", 1), folders)


def wrong(folder: Path) -> dict[str, str]:
    return {check.name: check.text for check in preflight(folder) if not check.fine}


def test_a_check_names_versions_and_a_hub_that_is_not_reached(folders: Path) -> None:
    found = wrong(folders / "image-1")
    assert set(found) == {"torch", "hub"}
    assert "pip install 'torch==0.0.1'" in found["torch"]
    assert "127.0.0.1:18999 is not reached" in found["hub"]
    # The hub's own SuperLink is started after the check.
    assert set(wrong(folders / "hub")) == {"torch"}


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no deployment.json"):
        preflight(tmp_path)


def test_a_long_or_odd_path_is_found_before_the_agent_is_started(
    folders: Path, tmp_path: Path
) -> None:
    deep = tmp_path / ("x" * 90)
    shutil.copytree(folders / "image-1", deep)
    assert "move the folder to a shorter path" in wrong(deep)["socket"]
    (told,) = checks.check_socket(Path("/a b/agent.sock"))
    assert not told.fine


def test_a_certificate_that_ends_or_is_for_another_host_is_found(tmp_path: Path) -> None:
    path = tmp_path / "hub.crt"
    path.write_bytes(new_authority("x", 30).issue(HOST, [HOST], 3).certificate)
    ends, names = checks.check_certificate(path, "10.0.0.1")
    assert "ends in" in ends.text
    assert "not 10.0.0.1" in names.text
    assert not ends.fine
    assert not names.fine
    path.write_bytes(new_authority("x", 30).issue(HOST, [HOST], 0).certificate)
    (ended,) = checks.check_certificate(path, None)
    assert "has ended" in ended.text


@contextmanager
def hub_whose_clock_is(late: float, folder: Path) -> Iterator[int]:
    """A server with the hub's certificate, whose clock is behind by some seconds."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(int(time.time() - late))

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Health)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "hub/tls/hub.crt", folder / "hub/tls/hub.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("late", "fine"), [(0, True), (60, False), (-60, False)])
def test_clocks_are_compared_with_the_hubs(folders: Path, late: float, fine: bool) -> None:
    with hub_whose_clock_is(late, folders) as port:
        found = {
            check.name: check
            for check in checks.check_hub(f"127.0.0.1:{port}", folders / "image-1", SITE)
        }
    assert found["hub"].fine
    assert found["clock"].fine is fine
    if late:
        assert ("ahead of" if late > 0 else "behind") in found["clock"].text


def test_a_hub_of_another_deployment_is_told_apart(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(new_authority("x", 2).pem)
    with hub_whose_clock_is(0, folders) as port:
        (found,) = checks.check_hub(f"127.0.0.1:{port}", tmp_path, SITE)
    assert not found.fine
    assert "not the deployment's" in found.text


def test_what_was_decided_is_written_down(folders: Path) -> None:
    about = json.loads((folders / "image-1/deployment.json").read_text())
    assert about == {
        "courier": "flower",
        "role": "site",
        "name": "image-1",
        "address": "127.0.0.1:18999",
        "listen": 9094,
        "versions": VERSIONS,
    }


def test_versions_are_without_how_they_were_built() -> None:
    found = versions_here(["torch", "motet"], "flower")
    assert found["python"] == platform.python_version()
    assert "+" not in found["torch"]
    with pytest.raises(ConfigError, match=r"no-such is not installed: pip install 'motet\[x\]'"):
        versions_here(["no-such"], "x")


def test_a_port_of_the_hub_that_somebody_else_has_is_found(folders: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 18999))
        other.listen()
        found = {check.name: check.text for check in checks.check_port(18999, False)}
    assert "another process" in found["port 18999"]


@pytest.fixture(scope="module")
def nvflare_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("nvflare", reason="nvflare is not installed: pip install 'motet[nvflare]'")
    from motet.engines.nvflare.deploy import write_nvflare

    out = tmp_path_factory.mktemp("n") / "out"
    write_nvflare(Plan(SITES, "method: creamfl\n", "localhost", 18998, 100, VERSIONS), out)
    return out


def test_nvflares_folders_are_checked_like_flowers(nvflare_folders: Path, tmp_path: Path) -> None:
    found = wrong(nvflare_folders / "image-1")
    assert set(found) == {"torch", "hub"}
    assert "localhost:18998 is not reached" in found["hub"]
    checked = {check.name: check for check in preflight(nvflare_folders / "hub")}
    assert {name for name, check in checked.items() if not check.fine} == {"torch"}
    assert "./start-server.sh" in checked["hub"].text
    assert {"nvflare/startup/server.key", "admin/startup/client.key", "port 18998"} <= set(checked)
    assert "localhost" in checked["hub's names"].text
    other = tmp_path / "text-1"
    shutil.copytree(nvflare_folders / "text-1", other)
    (other / "nvflare/startup/client.key").chmod(0o644)
    (other / "nvflare/startup/client.crt").write_text("nothing")
    assert {"nvflare/startup/client.key", "client.crt"} <= set(wrong(other))


@pytest.mark.parametrize("kit", [True, False], ids=["its own", "another deployment's"])
def test_nvflares_hub_wants_a_certificate_too(
    nvflare_folders: Path, tmp_path: Path, kit: bool
) -> None:
    place = PLACES["nvflare", "site"]
    startup = nvflare_folders / "hub/nvflare/startup"
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(startup / "server.crt", startup / "server.key")
    context.load_verify_locations(startup / "rootCA.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda request, address: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    folder = nvflare_folders / "text-1" if kit else stranger(tmp_path, nvflare_folders)
    try:
        (found,) = checks.check_hub(f"localhost:{server.server_port}", folder, place)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert found.fine is kit


def stranger(folder: Path, real: Path) -> Path:
    """A folder that trusts the real hub, and has certificates of another deployment."""
    from motet.engines.nvflare.deploy import write_nvflare

    write_nvflare(Plan(("text-1",), "", "localhost", 18998), folder / "out")
    own = folder / "out/text-1"
    authority = "nvflare/startup/rootCA.pem"
    shutil.copyfile(real / "text-1" / authority, own / authority)
    return own
