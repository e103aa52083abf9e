"""NVFlare with real processes: its simulator, and what `motet deploy` writes with mutual TLS."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("nvflare", reason="nvflare is not installed: pip install 'motet[nvflare]'")

import psutil
from tests.conformance.tiny import parties
from tests.e2e.nvflarehub import DEAD, PROBES, SITES, wanted

from motet.agent.journal import read_journal
from motet.commands import follow
from motet.commands.deploy import deploy
from motet.commands.hub import hub
from motet.commands.nvflare import Hub
from motet.core import Engine, Reply, Request
from motet.core.events import read_events
from motet.deploy.plan import Plan
from motet.engines.nvflare.collab import Recipe
from motet.engines.nvflare.control import Control, quiet
from motet.engines.nvflare.deploy import write_nvflare
from motet.engines.nvflare.names import AT_HUB, AT_SITE, JOB, SOCKET
from motet.experiment.build import site_names
from motet.experiment.runner import run
from motet.experiment.spec import Experiment, parse_experiment, with_settings

ROOT = Path(__file__).parents[2]
# On a machine with much else to do; each is far less by itself.
PATIENCE = 150.0
SETTINGS = [
    "method.rounds=12",
    "method.cohort=3",
    "method.server={epochs: 1, first_epochs: 1}",
    "method.distil={epochs: 1}",
    "method.private={epochs: 1}",
    "data.test=20",
    "data.public=24",
    "data.private=60",
]


def until(done: Callable[[], Any], what: str, pause: float = 0.1) -> Any:
    """What a condition gives once it holds."""
    end = time.monotonic() + PATIENCE
    while not (found := done()):
        assert time.monotonic() < end, f"waited {PATIENCE:g} s for: {what}"
        time.sleep(pause)
    return found


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="motet-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


# The simulator: one job in which all tiny recipes run, each with agents of its own.


@pytest.fixture(scope="module")
def simulated() -> Iterator[dict[str, Any]]:
    folder = Path(tempfile.mkdtemp(prefix="motet-"))
    script = """
import json, sys
from pathlib import Path
from nvflare.recipe.sim_env import SimEnv
from tests.e2e.nvflarehub import Probes, SITES
from motet.engines.nvflare.collab import Recipe
folder = sys.argv[1]
env = SimEnv(clients=list(SITES), workspace_root=folder + "/simulator")
Recipe(Probes(folder), len(SITES)).execute(env)
"""
    local = folder / "simulator" / JOB / "local"
    local.mkdir(parents=True)
    classes = [*AT_SITE, AT_HUB[0], "tests.e2e.nvflarehub.Probes"]
    policy = {"format_version": 2, "class_allow_list": classes}
    (local / "resources.json.default").write_text(json.dumps(policy))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        SOCKET: str(folder / "{site}.sock"),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        process.wait(PATIENCE)
        log_text = (folder / "log").read_text(errors="replace")
        assert (folder / "found.json").exists(), log_text[-4000:]
        yield {"log": log_text, **json.loads((folder / "found.json").read_text())}
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that was started here, and all that it started."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    if process.poll() is None:
        process.kill()
    process.wait()
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=10)


@pytest.mark.slow
@pytest.mark.parametrize("method", PROBES)
def test_a_method_gives_the_bits_of_the_reference(simulated: dict[str, Any], method: str) -> None:
    assert method in simulated, simulated["log"][-4000:]
    experiment = wanted(method)
    assert simulated[method]["hash"] == run(experiment, parties=parties(experiment)).hash
    assert simulated[method]["failed"] == []


class WithoutOne:
    """The reference without one site, from its second training on."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.dead: list[Reply] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def send(self, requests: list[Request]) -> None:
        gone = [r for r in requests if r.site == "text-1" and r.round > 0]
        self.dead += [Reply(r.site, r.tag, error="dead") for r in gone]
        self.engine.send([r for r in requests if r not in gone])

    def recv(self, timeout: float | None = None) -> Reply | None:
        return self.dead.pop() if self.dead else self.engine.recv(timeout)


@pytest.mark.slow
def test_a_round_goes_on_without_a_site_that_died(simulated: dict[str, Any]) -> None:
    found = simulated["dead site"]
    experiment = wanted("fedavg", *DEAD)
    reference = run(experiment, parties=parties(experiment), wrap=WithoutOne)
    assert found["hash"] == reference.hash
    assert [(number, site) for number, site, _ in found["failed"]] == [(1, "text-1")]
    assert "no agent listens" in found["failed"][0][2]


@pytest.mark.slow
def test_an_operation_that_the_method_does_not_have_is_refused(simulated: dict[str, Any]) -> None:
    assert "odd" in simulated, simulated["log"][-3000:]
    assert "refuses 'steal'" in simulated["odd"]["stranger"]


@pytest.mark.slow
def test_what_goes_over_the_wire_is_what_was_encoded(simulated: dict[str, Any]) -> None:
    for found in simulated["odd"]["bytes"]:
        for way in (0, 1):
            # Four messages each way; those in the other direction bring acknowledgements.
            assert found["letters"][way] <= found["frames"][way] + 4 * 300
            assert found["tcp"][way] <= 1.05 * found["frames"][way] + 4 * 4000


@pytest.mark.slow
def test_an_exchange_takes_a_moment(simulated: dict[str, Any]) -> None:
    seconds = sorted(simulated["odd"]["seconds"])
    assert seconds[len(seconds) // 2] < 1.0


# What `motet deploy` writes, started on loopback.


@dataclass
class Federation:
    """The parties' folders, and the processes that were started in them."""

    folder: Path
    port: int
    experiment: Experiment
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, party: str, service: str) -> None:
        place = self.folder / party
        environment = {**os.environ, "MOTET_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}
        with (place / f"{service}.log").open("ab") as log:
            self.running[f"{party} {service}"] = subprocess.Popen(
                [place / f"start-{service}.sh"],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def kill(self, party: str, service: str) -> None:
        end(self.running.pop(f"{party} {service}"))

    def log(self, party: str, service: str) -> str:
        path = self.folder / party / f"{service}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def socket(self, site: str) -> Path:
        return self.folder / site / "state/agent.sock"

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "hub/run/events.jsonl"
        return read_events(path) if path.exists() else []

    def reached(self, number: int) -> bool:
        return any(e["event"] == "round" and e["round"] >= number for e in self.events())

    def job_process(self, party: str, service: str, module: str) -> psutil.Process | None:
        """NVFlare's process of the job at a party."""
        for child in psutil.Process(self.running[f"{party} {service}"].pid).children(True):
            try:
                if any(word.endswith(module) for word in child.cmdline()):
                    return child
            except psutil.Error:
                continue
        return None

    def heard(self, trust: Path, kit: Path | None = None) -> bool:
        """Whether the hub's port goes on with somebody who has these certificates."""
        context = ssl.create_default_context(cafile=trust)
        if kit is not None:
            context.load_cert_chain(kit / "client.crt", kit / "client.key")
        with (
            socket.create_connection(("localhost", self.port), 20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as link,
        ):
            link.settimeout(2)
            try:
                # The server's verdict on a certificate comes after the handshake.
                return link.recv(1) != b""
            except TimeoutError:
                return True
            except (ssl.SSLError, ConnectionError):
                return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def recipe() -> dict[str, Any]:
    """CreamFL with one site of each kind, on a handful of pictures."""
    values = yaml.safe_load((ROOT / "recipes/creamfl-emoji.yaml").read_text(encoding="utf-8"))
    values = with_settings(values, SETTINGS)
    for population in values["populations"]:
        population |= {"count": 1, "models": population["models"][:1], "partition": {"name": "iid"}}
    return values


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    folder = Path(tempfile.mkdtemp(prefix="motet-"))
    experiment = parse_experiment(recipe())
    (folder / "given.yaml").write_text(yaml.safe_dump(experiment.plain()), encoding="utf-8")
    port = free_port()
    names = site_names(experiment)
    deploy("nvflare", str(folder / "given.yaml"), f"localhost:{port}", folder, sites=names)
    found = Federation(folder, port, experiment)
    try:
        found.start("hub", "server")
        for site in names:
            found.start(site, "agent")
            found.start(site, "client")
        yield found
    finally:
        for process in list(found.running.values()):
            end(process)
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Following:
    """`motet hub` in a thread."""

    config: Path
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            hub(self.config)
        except BaseException as error:
            self.error = error

    def over(self) -> bool:
        return not self.thread.is_alive()


@pytest.mark.slow
def test_a_run_whose_processes_are_killed_ends_in_the_bits_of_the_reference(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "LOOK", 1.0)
    until(lambda: _listens(federation.port), "the server listens")
    for site in SITES:
        until(
            federation.socket(site).exists, f"the agent of {site}: {federation.log(site, 'agent')}"
        )
    following = Following(federation.folder / "hub/hub.yaml")
    until(lambda: federation.reached(1) or following.over(), "the run begins", 0.05)
    federation.kill("text-1", "agent")
    federation.start("text-1", "agent")
    until(lambda: federation.reached(3) or following.over(), "the run goes on", 0.05)
    process = federation.job_process("hub", "server", "runner_process")
    assert process is not None, federation.log("hub", "server")[-3000:]
    process.send_signal(signal.SIGKILL)
    until(following.over, "the run ends")
    assert following.error is None, following.error
    events = federation.events()
    kinds = [event["event"] for event in events]
    assert "resumed" in kinds
    assert "failed" not in kinds
    torch.set_num_threads(federation.experiment.engine.threads)
    assert events[-1]["hash"] == run(federation.experiment).hash
    left = [read_journal(federation.folder / site / "state/journal.jsonl") for site in SITES]
    assert all(left)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_nobody_is_heard_without_a_certificate_of_the_deployment(
    federation: Federation, short: Path
) -> None:
    until(lambda: _listens(federation.port), "the server listens")
    write_nvflare(Plan(("text-1",), "", "localhost", federation.port), short)
    ours = federation.folder / "text-1/nvflare/startup"
    theirs = short / "text-1/nvflare/startup"
    assert federation.heard(ours / "rootCA.pem", ours)
    assert not federation.heard(ours / "rootCA.pem")
    assert not federation.heard(ours / "rootCA.pem", theirs)
    # A site does not take a stranger for the hub.
    with pytest.raises(ssl.SSLCertVerificationError):
        federation.heard(theirs / "rootCA.pem", ours)


EVIL = """
from pathlib import Path

from nvflare.collab import collab


class Evil:
    @collab.main
    def run(self):
        Path({0!r}).touch()

    @collab.init
    def begin(self):
        Path({0!r}).touch()

    @collab.publish
    def ask(self, letter):
        return letter
"""


@pytest.mark.slow
@pytest.mark.parametrize("carried", [True, False], ids=["code in the job", "another class"])
def test_no_party_runs_what_is_not_on_its_list(
    federation: Federation, short: Path, carried: bool
) -> None:
    until(lambda: _listens(federation.port), "the server listens")
    mark = short / "mark"
    with quiet():
        Recipe(Hub(), len(SITES)).export(short)
    app = short / JOB / "app"
    other = "evil.Evil" if carried else "nvflare.app_common.np.np_trainer.NPTrainer"
    for party in ("server", "client"):
        path = app / f"config/config_fed_{party}.json"
        config = json.loads(path.read_text())
        config["components"][0] |= {"path": other, "args": {}}
        path.write_text(json.dumps(config))
    if carried:
        (app / "custom").mkdir()
        (app / "custom/evil.py").write_text(EVIL.format(str(mark)))
    control = Control(federation.folder / "hub", len(SITES), Hub())
    with control._session() as session:
        number = session.submit_job(str(short / JOB))
    status = until(lambda: control.ended(number) and control.status(number), "the job ends")
    assert status != "FINISHED:COMPLETED"
    assert not mark.exists()
