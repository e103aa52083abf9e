"""``motet status`` at a hub: where its run stands, what was heard of whom, who is waited for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from motet.commands.hub import HubSpec, teller
from motet.commands.status import hub_file, show_status

NOW = 1_000_000.0


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(time, "time", lambda: NOW)
    folder = tmp_path / "hub"
    (folder / "run").mkdir(parents=True)
    (folder / "hub.yaml").write_text("recipe: recipe.yaml\n")
    about = {"role": "hub", "courier": "flower", "address": "h:1", "versions": {}}
    (folder / "deployment.json").write_text(json.dumps(about))
    return folder


def happened(hub: Path, *events: dict[str, Any]) -> None:
    lines = [json.dumps({"time": NOW - 60, **event}) + "\n" for event in events]
    (hub / "run/events.jsonl").write_text("".join(lines))


SITES: dict[str, Any] = {"event": "sites", "sites": {"ada": {}, "bob": {}}, "time": NOW - 600}
ROUND = {"event": "round", "loop": 0, "round": 2, "of": 9}
REPLIED = {"event": "replied", "site": "ada", "op": "train", "round": 2, "time": NOW - 5}
FAILED = {"event": "failed", "site": "bob", "op": "train", "round": 2, "error": "no memory"}


def test_it_says_where_the_run_stands_and_who_is_waited_for(
    hub: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    happened(hub, {"event": "started"}, SITES, ROUND, REPLIED, FAILED)
    tell = teller(HubSpec(folder=hub / "run"))
    tell("ada", "its SuperNode is not connected")
    tell("bob", "no agent listens")
    tell("ada", "")
    for target in (hub, hub / "hub.yaml"):
        show_status([target])
        told = capfd.readouterr()
        assert "round 3 of 9, since 60 s" in told.err
        for word in ("ada", "answered train", "5 s", "bob", "failed: train", "no memory"):
            assert word in told.out
        assert "waits for bob: no agent listens" in told.out
        assert "waits for ada" not in told.out


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ({"event": "finished", "hash": "abc"}, "finished, hash abc"),
        ({"event": "stopped", "error": "too few"}, "stopped: too few"),
    ],
)
def test_a_run_that_is_over_waits_for_nobody(
    event: dict[str, Any], told: str, hub: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    happened(hub, SITES, ROUND, event)
    teller(HubSpec(folder=hub / "run"))("ada", "away")
    show_status([hub])
    found = capfd.readouterr()
    assert told in found.err
    assert "waits for" not in found.out


def test_a_run_that_has_not_begun(
    hub: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hub)
    show_status([])
    assert "not begun" in capfd.readouterr().err


def test_a_site_is_no_hub(tmp_path: Path, hub: Path) -> None:
    assert hub_file(tmp_path / "site.yaml") is None
    assert hub_file(tmp_path) is None
    (hub / "other.yaml").write_text("")
    assert hub_file(hub / "other.yaml") == hub / "other.yaml"
