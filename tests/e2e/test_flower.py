"""What `motet deploy flower` writes, started on loopback: SuperLink, SuperNodes, agents, TLS, keys.

One federation for all tests here, since a SuperNode starts a process for every message.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'motet[flower]'")
pytest.importorskip("cryptography", reason="cryptography is not installed: motet[secure]")

from motet.agent.client import exchange
from motet.agent.journal import read_journal
from motet.agent.messages import ask
from motet.agent.protocol import recipe_digest
from motet.commands.deploy import deploy
from motet.commands.follow import Follower, follow
from motet.commands.hub import public_keys, read_hub
from motet.core import wire
from motet.core.events import read_events
from motet.core.messages import Request
from motet.deploy.keys import new_authority, new_site_key
from motet.deploy.preflight import preflight
from motet.engines.flower import records
from motet.engines.flower.control import Control
from motet.engines.flower.deploy import home
from motet.engines.flower.shim import answer
from motet.experiment.build import site_names
from motet.experiment.runner import run
from motet.experiment.spec import Experiment, parse_experiment, with_settings

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
# On a machine with much else to do; each is far less by itself.
PATIENCE = 150.0
SETTINGS = [
    "method.rounds=2",
    "method.cohort=3",
    "method.server={epochs: 1, first_epochs: 1}",
    "method.distil={epochs: 1}",
    "method.private={epochs: 1}",
    "data.test=20",
    "data.public=24",
    "data.private=60",
]
SITES = ("image-1", "text-1", "pair-1")


def recipe() -> dict[str, Any]:
    """CreamFL with one site of each kind, on a handful of pictures."""
    values = yaml.safe_load((ROOT / "recipes/creamfl-emoji.yaml").read_text(encoding="utf-8"))
    values = with_settings(values, SETTINGS)
    for population in values["populations"]:
        population |= {"count": 1, "models": population["models"][:1], "partition": {"name": "iid"}}
    return values


def until(done: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """What a condition gives once it holds."""
    end = time.monotonic() + patience
    while not (found := done()):
        assert time.monotonic() < end, f"waited {patience:g} s for: {what}"
        time.sleep(0.1)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
        """Everything that a start script started, at once and without a word."""
        process = self.running.pop(f"{party} {service}")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self, party: str, service: str) -> str:
        path = self.folder / party / f"{service}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def socket(self, site: str) -> Path:
        return self.folder / site / "state/agent.sock"

    def get(self, path: str, *, source: str = "127.0.0.1", method: str = "GET") -> int:
        """The status with which the hub answers, asked from this address of this machine."""
        trust = ssl.create_default_context(cafile=str(self.folder / "hub/tls/ca.crt"))
        link = HTTPSConnection(
            "127.0.0.1", self.port, timeout=20, context=trust, source_address=(source, 0)
        )
        try:
            link.request(method, path, body=b"" if method == "POST" else None)
            return link.getresponse().status
        finally:
            link.close()

    def up(self) -> bool:
        try:
            return self.get("/health") == 200
        except OSError:
            return False

    def stop(self) -> None:
        for process in self.running.values():
            with_group(process, signal.SIGTERM)
        for process in self.running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                with_group(process, signal.SIGKILL)
                process.wait()
        # Flower's own processes end when they miss their parent, which may take them a while.
        for process in self.running.values():
            with_group(process, signal.SIGKILL)


def with_group(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


@contextmanager
def deployed() -> Iterator[Federation]:
    # Short, since the path of a socket may not be long.
    folder = Path(tempfile.mkdtemp(prefix="mf-"))
    port = free_port()
    experiment = parse_experiment(recipe())
    source = folder / "given.yaml"
    source.write_text(yaml.safe_dump(experiment.plain()), encoding="utf-8")
    deploy("flower", str(source), f"127.0.0.1:{port}", folder / "f", sites=SITES)
    made = Federation(folder / "f", port, experiment)
    for site in SITES:
        script = made.folder / site / "start-supernode.sh"
        text = script.read_text(encoding="utf-8")
        # Ports of SuperNodes may be taken on the machine of the tests.
        before = text[text.index("--port ") :].split()[1]
        script.write_text(text.replace(f"--port {before}", f"--port {free_port()}"), "utf-8")
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    with deployed() as made:
        made.start("hub", "superlink")
        for site in SITES:
            made.start(site, "agent")
        until(made.up, "the SuperLink")
        yield made


def register_and_start(made: Federation) -> Control:
    control = Control(made.folder / "hub")
    for site in SITES:
        control.register(made.folder / f"hub/keys/{site}.pub", site)
        made.start(site, "supernode")
    return control


def again(made: Federation, party: str, service: str) -> None:
    made.kill(party, service)
    made.start(party, service)


@pytest.fixture(scope="module")
def finished(federation: Federation) -> dict[str, Any]:
    """The run of the whole federation, with kills at the beginning of its rounds; its last event.

    One run for both, since Flower takes a minute to miss what was killed.
    """
    kills = iter(
        [
            # Two at once, so that they are missed at once.
            lambda: (
                again(federation, "pair-1", "supernode"),
                again(federation, "image-1", "agent"),
            ),
            lambda: again(federation, "hub", "superlink"),
        ]
    )

    class Killing(Follower):
        def _say(self, event: Mapping[str, Any]) -> None:  # type: ignore[override]
            super()._say(dict(event))
            if event["event"] == "round":
                next(kills, lambda: None)()

    control = register_and_start(federation)
    config = federation.folder / "hub/hub.yaml"
    begin = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("motet.commands.follow.LOOK", 5.0)
        patch.setattr("motet.commands.follow.Follower", Killing)
        follow(control, read_hub(config).folder, config)
    assert next(kills, None) is None
    events = read_events(federation.folder / "hub/run/events.jsonl")
    return {**events[-1], "seconds": time.monotonic() - begin, "events": events}


def test_the_result_is_that_of_a_simulation_to_the_bit(
    finished: dict[str, Any], federation: Federation, record_property: Callable[..., None]
) -> None:
    simulated = run(federation.experiment)
    assert finished["event"] == "finished"
    assert finished["hash"] == simulated.hash
    kinds = [event["event"] for event in finished["events"]]
    assert "resumed" in kinds
    assert "failed" not in kinds
    # The same questions and answers, counted in the same bytes.
    assert frames(finished["events"]) == frames(simulated.events)
    record_property("seconds", round(finished["seconds"], 1))
    record_property("bytes", sum(up + down for _, _, up, down in frames(finished["events"])))


def frames(events: list[dict[str, Any]]) -> set[tuple[str, str, int, int]]:
    """(site, operation, bytes up, bytes down) of every answer."""
    return {
        (event["site"], event["op"], event["up"]["frame"], event["down"]["frame"])
        for event in events
        if event["event"] == "replied"
    }


def test_every_reply_is_in_the_journal_of_its_site(
    finished: dict[str, Any], federation: Federation
) -> None:
    for site in SITES:
        journal = read_journal(federation.folder / site / "state/journal.jsonl")
        told = Counter(
            event["op"]
            for event in finished["events"]
            if event["event"] == "replied" and event["site"] == site
        )
        assert told
        assert told <= Counter(line["op"] for line in journal if line["what"] == "left")


def test_no_app_of_the_hubs_was_unpacked_at_a_site(
    finished: dict[str, Any], federation: Federation
) -> None:
    for site in SITES:
        assert not list((federation.folder / site).rglob("motet_app"))


def asked(federation: Federation, site: str, op: str, tag: str, **own: Any) -> dict[str, Any]:
    """An agent's answer to a question that came on the way that Flower's messages take."""
    digest = recipe_digest(federation.experiment.plain())
    head = ask(Request(site, op, tag, 0, {}, own), digest)
    question = records.question({**head, "own": {}}, {"own": records.framed(wire.encode(own))})
    until(federation.socket(site).exists, f"the agent of {site}")
    found = answer(question, str(federation.socket(site)))
    return wire.decode(records.reply_frame(found))


def test_an_operation_that_is_none_of_the_methods_is_refused(federation: Federation) -> None:
    for op in ("_run", "__class__", "evaluate.__globals__", "@shell"):
        found = asked(federation, "image-1", op, f"9.0.{op}")
        assert "value" not in found
        assert "refuses" in found["error"] or "knows no built-in" in found["error"]


def test_a_replayed_question_is_refused(federation: Federation) -> None:
    digest = recipe_digest(federation.experiment.plain())
    place = federation.socket("text-1")
    until(place.exists, "the agent of text-1")
    frame = wire.encode(ask(Request("text-1", "evaluate", "9.1.1", 0, {}, {}), digest))
    first = exchange(place, frame)
    assert "value" in wire.decode(first)
    # Until the next question it is taken for a repetition, and does no work; then not at all.
    assert exchange(place, frame) == first
    assert "value" in asked(federation, "text-1", "evaluate", "9.1.2")
    replayed = wire.decode(exchange(place, frame))
    assert "value" not in replayed
    assert "it was answered before" in replayed["error"]


def test_a_question_of_another_recipe_is_refused(federation: Federation) -> None:
    place = federation.socket("text-1")
    until(place.exists, "the agent of text-1")
    frame = wire.encode(ask(Request("text-1", "evaluate", "9.2.1", 0, {}, {}), "f" * 16))
    assert "recipe" in wire.decode(exchange(place, frame))["error"]


def test_other_machines_reach_nothing_but_the_supernodes_part(federation: Federation) -> None:
    # To the hub another address of this machine is another machine.
    for path in ("/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/get-run"):
        assert federation.get(path, source="127.0.0.2", method="POST") == 403
        assert federation.get(path, method="POST") != 403
    for path in ("/docs", "/openapi.json", "/v1/fleet/../control/list-runs", "/v1/fleet"):
        assert federation.get(path, source="127.0.0.2") == 403
    assert federation.get("/health", source="127.0.0.2") == 200
    assert federation.get("/v1/fleet/pull-messages", source="127.0.0.2", method="POST") != 403


def supernode(federation: Federation, folder: Path, *, key: Path, trust: Path) -> str:
    """What a SuperNode says before it ends by itself."""
    folder.mkdir()
    words = ["--superlink", f"127.0.0.1:{federation.port}", "--root-certificates", str(trust)]
    words += ["--auth-supernode-private-key", str(key), "--port", str(free_port())]
    words += ["--max-retries", "1"]
    path = f"{sys.prefix}/bin:{os.environ['PATH']}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("flower-supernode"), *words],
            stdout=log,
            stderr=log,
            env={**os.environ, **home(str(folder)), "PATH": path},
            start_new_session=True,
        )
    try:
        # Not what it started: that may live for longer.
        assert process.wait(PATIENCE) != 0
    finally:
        with_group(process, signal.SIGKILL)
    return (folder / "log").read_text(encoding="utf-8", errors="replace")


def test_an_unknown_key_is_refused(federation: Federation, tmp_path: Path) -> None:
    private, _ = new_site_key("image-1")
    key = tmp_path / "site.key"
    key.write_bytes(private)
    trust = federation.folder / "image-1/ca.crt"
    said = supernode(federation, tmp_path / "home", key=key, trust=trust)
    assert "SuperNode ID" not in said
    assert "Attempted to" in federation.log("hub", "superlink")


def test_a_hub_with_another_certificate_is_refused(federation: Federation, tmp_path: Path) -> None:
    trust = tmp_path / "ca.crt"
    trust.write_bytes(new_authority("somebody else", 2).pem)
    key = federation.folder / "image-1/site.key"
    said = supernode(federation, tmp_path / "home", key=key, trust=trust)
    assert "SuperNode ID" not in said


def test_the_checks_of_every_party_are_fine_and_say_what_is_wrong(
    federation: Federation, tmp_path: Path
) -> None:
    for party in ("hub", *SITES):
        checks = {check.name: check for check in preflight(federation.folder / party)}
        assert [check.text for check in checks.values() if not check.fine] == []
        assert "answers" in checks["hub"].text
    other = tmp_path / "text-1"
    shutil.copytree(federation.folder / "text-1", other, ignore=shutil.ignore_patterns("*.sock"))
    (other / "ca.crt").write_bytes(new_authority("somebody else", 2).pem)
    (other / "site.key").chmod(0o644)
    wrong = {check.name: check.text for check in preflight(other) if not check.fine}
    assert set(wrong) == {"hub", "ca.crt", "site.key"}
    assert "are both folders of one deployment?" in wrong["hub"]
    assert "chmod 600" in wrong["site.key"]


def test_the_hub_knows_every_site_by_its_key(federation: Federation) -> None:
    keys = public_keys(federation.folder / "hub/keys", site_names(federation.experiment))
    assert set(keys) == set(SITES)
    assert len(set(keys.values())) == len(SITES)
