"""What `motet deploy flower` writes, started on loopback: SuperLink, SuperNodes, agents, TLS, keys.

One federation for all tests here, since a SuperNode starts a process for every message.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'motet[flower]'")
pytest.importorskip("cryptography", reason="cryptography is not installed: motet[secure]")

from benchmarks.deployment import Flower, Following, deployed, free_port, three_sites
from benchmarks.processes import ran

from motet.agent.client import exchange
from motet.agent.journal import read_journal
from motet.agent.messages import ask
from motet.agent.protocol import recipe_digest
from motet.commands import follow
from motet.commands.hub import control_of_flower, public_keys, read_hub
from motet.core import wire
from motet.core.messages import Request
from motet.deploy.keys import new_authority, new_site_key
from motet.deploy.preflight import preflight
from motet.engines.flower import records
from motet.engines.flower.deploy import home
from motet.engines.flower.shim import answer
from motet.experiment.runner import run

pytestmark = pytest.mark.slow
SITES = ("image-1", "text-1", "pair-1")


@pytest.fixture(scope="module")
def federation() -> Iterator[Flower]:
    with deployed(Flower, three_sites(rounds=2)) as made:
        for name in (*made.services("superlink"), *made.services("agent")):
            made.start(name)
        made.until(made.up, "the SuperLink")
        yield made


@pytest.fixture(scope="module")
def finished(federation: Flower) -> dict[str, Any]:
    """The run of the whole federation, with kills at the beginning of its rounds; its last event.

    One run for both, since Flower takes a minute to miss what was killed.
    """
    spec = read_hub(federation.config)
    control = control_of_flower(federation.folder / "hub", spec, SITES)
    for name in federation.services("supernode"):
        federation.start(name)
    begin = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow, "LOOK", 5.0)
        following = Following(follow.follow, control, spec.folder, federation.config)
        # Two at once, so that they are missed at once.
        for number, parts in enumerate((["pair-1 supernode", "image-1 agent"], ["hub superlink"])):
            federation.until_round(number, following)
            for part in parts:
                federation.strike(part)
        federation.until(following.over, "the run ends", 600)
    assert following.error is None, following.error
    events = federation.events()
    return {**events[-1], "seconds": time.monotonic() - begin, "events": events}


def test_the_result_is_that_of_a_simulation_to_the_bit(
    finished: dict[str, Any], federation: Flower, record_property: Callable[..., None]
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
    finished: dict[str, Any], federation: Flower
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
    finished: dict[str, Any], federation: Flower
) -> None:
    for site in SITES:
        assert not list((federation.folder / site).rglob("motet_app"))


def asked(federation: Flower, site: str, op: str, tag: str, **own: Any) -> dict[str, Any]:
    """An agent's answer to a question that came on the way that Flower's messages take."""
    digest = recipe_digest(federation.experiment.plain())
    head = ask(Request(site, op, tag, 0, {}, own), digest)
    question = records.question({**head, "own": {}}, {"own": records.framed(wire.encode(own))})
    federation.until(federation.socket(site).exists, f"the agent of {site}")
    found = answer(question, str(federation.socket(site)))
    return wire.decode(records.reply_frame(found))


def test_an_operation_that_is_none_of_the_methods_is_refused(federation: Flower) -> None:
    for op in ("_run", "__class__", "evaluate.__globals__", "@shell"):
        found = asked(federation, "image-1", op, f"9.0.{op}")
        assert "value" not in found
        assert "refuses" in found["error"] or "knows no built-in" in found["error"]


def test_a_replayed_question_is_refused(federation: Flower) -> None:
    digest = recipe_digest(federation.experiment.plain())
    place = federation.socket("text-1")
    federation.until(place.exists, "the agent of text-1")
    frame = wire.encode(ask(Request("text-1", "evaluate", "9.1.1", 0, {}, {}), digest))
    first = exchange(place, frame)
    assert "value" in wire.decode(first)
    # Until the next question it is taken for a repetition, and does no work; then not at all.
    assert exchange(place, frame) == first
    assert "value" in asked(federation, "text-1", "evaluate", "9.1.2")
    replayed = wire.decode(exchange(place, frame))
    assert "value" not in replayed
    assert "it was answered before" in replayed["error"]


def test_a_question_of_another_recipe_is_refused(federation: Flower) -> None:
    place = federation.socket("text-1")
    federation.until(place.exists, "the agent of text-1")
    frame = wire.encode(ask(Request("text-1", "evaluate", "9.2.1", 0, {}, {}), "f" * 16))
    assert "recipe" in wire.decode(exchange(place, frame))["error"]


def test_other_machines_reach_nothing_but_the_supernodes_part(federation: Flower) -> None:
    # To the hub another address of this machine is another machine.
    for path in ("/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/get-run"):
        assert federation.get(path, source="127.0.0.2", method="POST") == 403
        assert federation.get(path, method="POST") != 403
    for path in ("/docs", "/openapi.json", "/v1/fleet/../control/list-runs", "/v1/fleet"):
        assert federation.get(path, source="127.0.0.2") == 403
    assert federation.get("/health", source="127.0.0.2") == 200
    assert federation.get("/v1/fleet/pull-messages", source="127.0.0.2", method="POST") != 403


def supernode(federation: Flower, folder: Path, *, key: Path, trust: Path) -> str:
    """What a SuperNode says before it ends by itself."""
    folder.mkdir()
    words = ["--superlink", f"127.0.0.1:{federation.port}", "--root-certificates", str(trust)]
    words += ["--auth-supernode-private-key", str(key), "--port", str(free_port())]
    words += ["--max-retries", "1"]
    code, said = ran(
        [Path(sys.executable).with_name("flower-supernode"), *words],
        folder / "log",
        PATH=f"{sys.prefix}/bin:{os.environ['PATH']}",
        **home(str(folder)),
    )
    # None when it went on.
    assert code, said
    return said


def test_an_unknown_key_is_refused(federation: Flower, tmp_path: Path) -> None:
    private, _ = new_site_key("image-1")
    key = tmp_path / "site.key"
    key.write_bytes(private)
    trust = federation.folder / "image-1/ca.crt"
    said = supernode(federation, tmp_path / "home", key=key, trust=trust)
    assert "SuperNode ID" not in said
    assert "Attempted to" in federation.said("hub superlink")


def test_a_hub_with_another_certificate_is_refused(federation: Flower, tmp_path: Path) -> None:
    trust = tmp_path / "ca.crt"
    trust.write_bytes(new_authority("somebody else", 2).pem)
    key = federation.folder / "image-1/site.key"
    said = supernode(federation, tmp_path / "home", key=key, trust=trust)
    assert "SuperNode ID" not in said


def test_the_checks_of_every_party_are_fine_and_say_what_is_wrong(
    federation: Flower, tmp_path: Path
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


def test_the_hub_knows_every_site_by_its_key(federation: Flower) -> None:
    keys = public_keys(federation.folder / "hub/keys", federation.sites)
    assert set(keys) == set(SITES)
    assert len(set(keys.values())) == len(SITES)
