"""NVFlare with real processes: its simulator, and what `motet deploy` writes with mutual TLS."""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("nvflare", reason="nvflare is not installed: pip install 'motet[nvflare]'")

from benchmarks.deployment import Following, Nvflare, deployed, short_folder, three_sites
from benchmarks.processes import ran
from tests.conformance.tiny import parties
from tests.e2e.nvflarehub import DEAD, PROBES, SITES, wanted

from motet.agent.journal import read_journal
from motet.commands import follow
from motet.commands.hub import hub
from motet.commands.nvflare import Hub
from motet.core import Engine, Reply, Request
from motet.deploy.plan import Plan
from motet.engines.nvflare.collab import Recipe
from motet.engines.nvflare.control import Control, quiet
from motet.engines.nvflare.deploy import write_nvflare
from motet.engines.nvflare.names import AT_HUB, AT_SITE, JOB, SOCKET
from motet.experiment.runner import run

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
# What the simulator's process does: one job in which all tiny recipes run.
SIMULATOR = """
import sys
from nvflare.recipe.sim_env import SimEnv
from tests.e2e.nvflarehub import Probes, SITES
from motet.engines.nvflare.collab import Recipe
folder = sys.argv[1]
env = SimEnv(clients=list(SITES), workspace_root=folder + "/simulator")
Recipe(Probes(folder), len(SITES)).execute(env)
"""


@pytest.fixture
def short() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def simulated() -> Iterator[dict[str, Any]]:
    with short_folder() as folder:
        local = folder / "simulator" / JOB / "local"
        local.mkdir(parents=True)
        classes = [*AT_SITE, AT_HUB[0], "tests.e2e.nvflarehub.Probes"]
        policy = {"format_version": 2, "class_allow_list": classes}
        (local / "resources.json.default").write_text(json.dumps(policy))
        environment = {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            SOCKET: str(folder / "{site}.sock"),
        }
        command = [sys.executable, "-c", SIMULATOR, str(folder)]
        code, said = ran(command, folder / "log", folder, **environment)
        assert code is not None, said[-4000:]
        assert (folder / "found.json").exists(), said[-4000:]
        yield {"log": said, **json.loads((folder / "found.json").read_text())}


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


def test_a_round_goes_on_without_a_site_that_died(simulated: dict[str, Any]) -> None:
    found = simulated["dead site"]
    experiment = wanted("fedavg", *DEAD)
    reference = run(experiment, parties=parties(experiment), wrap=WithoutOne)
    assert found["hash"] == reference.hash
    assert [(number, site) for number, site, _ in found["failed"]] == [(1, "text-1")]
    assert "no agent listens" in found["failed"][0][2]


def test_an_operation_that_the_method_does_not_have_is_refused(simulated: dict[str, Any]) -> None:
    assert "odd" in simulated, simulated["log"][-3000:]
    assert "refuses 'steal'" in simulated["odd"]["stranger"]


def test_what_goes_over_the_wire_is_what_was_encoded(simulated: dict[str, Any]) -> None:
    for found in simulated["odd"]["bytes"]:
        for way in (0, 1):
            # Four messages each way; those in the other direction bring acknowledgements.
            assert found["letters"][way] <= found["frames"][way] + 4 * 300
            assert found["tcp"][way] <= 1.05 * found["frames"][way] + 4 * 4000


def test_an_exchange_takes_a_moment(simulated: dict[str, Any]) -> None:
    seconds = sorted(simulated["odd"]["seconds"])
    assert seconds[len(seconds) // 2] < 1.0


# What `motet deploy` writes, started on loopback.


@pytest.fixture(scope="module")
def federation() -> Iterator[Nvflare]:
    with deployed(Nvflare, three_sites(rounds=12)) as made:
        for name in made.services():
            made.start(name)
        made.until(made.up, "the server listens")
        yield made


def test_a_run_whose_processes_are_killed_ends_in_the_bits_of_the_reference(
    federation: Nvflare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "LOOK", 1.0)
    for site in SITES:
        federation.until(federation.socket(site).exists, f"the agent of {site}")
    following = Following(hub, federation.config)
    federation.until_round(1, following)
    federation.strike("text-1 agent")
    federation.until_round(3, following)
    (runner,) = federation.runners()
    os.kill(runner, signal.SIGKILL)
    federation.until(following.over, "the run ends")
    assert following.error is None, following.error
    events = federation.events()
    kinds = [event["event"] for event in events]
    assert "resumed" in kinds
    assert "failed" not in kinds
    torch.set_num_threads(federation.experiment.engine.threads)
    assert federation.hash() == run(federation.experiment).hash
    left = [read_journal(federation.folder / site / "state/journal.jsonl") for site in SITES]
    assert all(left)


def test_nobody_is_heard_without_a_certificate_of_the_deployment(
    federation: Nvflare, short: Path
) -> None:
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


@pytest.mark.parametrize("carried", [True, False], ids=["code in the job", "another class"])
def test_no_party_runs_what_is_not_on_its_list(
    federation: Nvflare, short: Path, carried: bool
) -> None:
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
    status = federation.until(
        lambda: control.ended(number) and control.status(number), "the job ends"
    )
    assert status not in (None, "FINISHED:COMPLETED")
    assert not mark.exists()
