"""A host: every question counts once, whoever is killed, and what is refused has no effect."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.agent.toyagents import Odd, host, question
from tests.core.toys import specs

from motet.agent.host import Host
from motet.agent.journal import read_journal
from motet.agent.messages import read_question
from motet.agent.policy import Policy
from motet.core import SiteError, StoreError, Tree, wire

Make = Callable[..., Host]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes the host of ada; made again it is what a restarted agent has."""
    (spec,) = specs(["ada"])

    def made(**options: Any) -> Host:
        (tmp_path / "site").mkdir(exist_ok=True)
        standard = {
            "shelf": tmp_path / "shelf",
            "memory": tmp_path / "memory",
            "folder": tmp_path / "site",
        }
        return host(spec, Odd(), **{**standard, **options})

    return made


def tell(found: Host, op: str, tag: str = "0.0.1", sent: float | None = None, **own: Any) -> bytes:
    tree = question(op, tag, **own)
    asked = read_question({**tree, "sent": tree["sent"] if sent is None else sent})
    request = found.admit(asked, lambda seconds: True)
    return found.answer(request, asked)


def value(frame: bytes) -> Tree:
    tree = wire.decode(frame)
    assert "error" not in tree
    found: Tree = tree["value"]
    return found


def visits(found: Host, tag: str) -> int:
    return int(value(tell(found, "visit", tag))["visits"])


@pytest.mark.parametrize("careful", [True, False])
def test_a_repeated_question_has_the_same_bytes_and_its_effect_once(
    make: Make, careful: bool
) -> None:
    first = make(careful=careful)
    tell(first, "visit", "0.0.1")
    frame = tell(first, "visit", "0.0.2")
    assert tell(first, "visit", "0.0.2") == frame
    # Killed, and started anew: nothing of it was closed or saved.
    again = make(careful=careful)
    assert tell(again, "visit", "0.0.2") == frame
    assert visits(again, "0.0.3") == 3


def test_a_question_that_was_answered_before_the_last_has_no_effect(make: Make) -> None:
    found = make()
    tell(found, "visit", "0.0.1")
    tell(found, "visit", "0.0.2")
    for restarted in (found, make()):
        with pytest.raises(SiteError, match="site ada, round 0, .* answered before, and other"):
            tell(restarted, "visit", "0.0.1")
    assert visits(make(), "0.0.3") == 3


def checkpoint(found: Host, version: int) -> None:
    tell(found, "@save", f"@save{version}", version=version, pinned=[])


def restore(found: Host, version: int, newest: int, sent: float | None = None) -> None:
    tell(found, "@restore", f"@restore{version}", sent, version=version, newest=newest)


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_goes_on_finds_the_state_of_its_checkpoint(make: Make, killed: bool) -> None:
    def after_kill(found: Host) -> Host:
        return make() if killed else found

    found = make()
    assert visits(found, "0.0.1") == 1
    checkpoint(found, 1)
    found = after_kill(found)
    assert visits(found, "0.1.1") == 2
    found = after_kill(found)
    # The hub was killed and asks anew what was answered already, from its last checkpoint.
    restore(found, 1, 1)
    found = after_kill(found)
    assert visits(found, "0.1.1") == 2
    found = after_kill(found)
    checkpoint(found, 2)
    found = after_kill(found)
    assert visits(found, "0.2.1") == 3
    restore(after_kill(found), 0, 0)
    assert visits(after_kill(found), "0.0.1") == 1


def test_what_is_not_saved_since_a_kill_is_saved_later(make: Make, tmp_path: Path) -> None:
    found = make()
    checkpoint(found, 1)
    visits(found, "0.1.1")
    checkpoint(make(), 2)
    again = make()
    checkpoint(again, 3)
    assert [path.name for path in (tmp_path / "shelf").iterdir()] == ["state-000002.safetensors"]
    restore(again, 3, 3)
    assert visits(again, "0.3.1") == 2


def test_a_question_from_before_the_run_went_on_has_no_effect(make: Make) -> None:
    found = make()
    now = time.time()
    tell(found, "visit", "0.0.1", now)
    restore(found, 0, 0, now + 2)
    for restarted in (found, make()):
        with pytest.raises(SiteError, match="was sent before the run was begun anew or taken up"):
            tell(restarted, "visit", "0.0.2", now + 1)
    tell(make(), "visit", "0.0.1", now + 3)


def test_a_refused_reply_has_no_effect_and_the_journal_tells(make: Make, tmp_path: Path) -> None:
    found = make(policy=Policy(reply_mb=0.001))
    visits(found, "0.0.1")
    for restarted in (found, make(policy=Policy(reply_mb=0.001))):
        with pytest.raises(SiteError, match=r"site ada, round 0, operation big: the reply of big"):
            tell(restarted, "big", "0.0.2", count=10_000)
    again = make()
    assert visits(again, "0.0.2") == 2
    assert "big" not in again.door.kept()["kept"]["state"]
    lines = read_journal(tmp_path / "site" / "journal.jsonl")
    assert [(line["what"], line["op"]) for line in lines] == [
        ("left", "visit"),
        ("refused", "big"),
        ("refused", "big"),
        ("left", "visit"),
    ]
    assert "lets 0.001 MB leave at once" in lines[1]["reason"]


def test_bytes_of_a_run_are_counted_over_restarts_but_not_twice(make: Make) -> None:
    size = len(tell(make(), "visit", "0.0.1"))
    policy = Policy(run_mb=(2.5 * size) / 1e6)
    for _ in range(3):
        tell(make(policy=policy), "visit", "0.0.2")
    # A hub that begins anew does not begin with a new allowance.
    restore(make(policy=policy), 0, 0)
    with pytest.raises(SiteError, match="policy lets .* MB leave in all"):
        tell(make(policy=policy), "visit", "0.0.1")
    assert make().status()["bytes left"] == 2 * size


def test_a_kind_that_may_not_leave_is_refused_before_any_work(make: Make, tmp_path: Path) -> None:
    found = make(policy=Policy(kinds=("weights",)))
    path = tmp_path / "work"
    with pytest.raises(SiteError, match="wait sends 'z', which is logits"):
        tell(found, "wait", path=str(path))
    assert not path.with_name("work.begun").exists()
    value(tell(found, "big", "0.0.2", count=1))


def test_a_failure_has_no_effect_and_its_text_stays_here(make: Make, tmp_path: Path) -> None:
    found = make(candid=False)
    visits(found, "0.0.1")
    with pytest.raises(SiteError, match=r"operation fail: ValueError \(line \d+ of") as caught:
        tell(found, "fail", "0.0.2")
    assert "4711" not in str(caught.value)
    assert "4711" not in found.status()["error"]
    assert "4711" in (tmp_path / "site" / "errors.log").read_text()
    assert found.status()["refusals"] == 1
    assert visits(found, "0.0.2") == 2


def test_an_operation_that_takes_too_long_is_given_up(make: Make, tmp_path: Path) -> None:
    found = make(seconds=0.05)
    with pytest.raises(SiteError, match=r"operation wait: it took more than 0.05 s, which is this"):
        tell(found, "wait", path=str(tmp_path / "never"))
    assert found.door.kept()["kept"]["state"] == {}
    assert visits(found, "0.0.2") == 1


def test_an_unknown_operation_is_refused_by_the_door(make: Make) -> None:
    with pytest.raises(SiteError, match=r"site ada refuses 'run': it is not an @at_site function"):
        tell(make(), "run")
    with pytest.raises(SiteError, match="knows no built-in operation '@exec'"):
        tell(make(), "@exec")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": "0.0.0"}, "the hub runs Motet 0.0.0 and this site .*install the same"),
        ({"method": "other"}, "about the recipe other, and this site was set up for 0123"),
        ({"method": ""}, "about the recipe of no name"),
    ],
)
def test_another_version_or_recipe_is_refused(make: Make, change: Tree, told: str) -> None:
    asked = read_question({**question("visit"), **change})
    with pytest.raises(SiteError, match=told):
        make().admit(asked, lambda seconds: True)


def test_a_method_that_may_not_ask_is_refused(make: Make) -> None:
    with pytest.raises(SiteError, match="lets fedavg ask, and not odd"):
        tell(make(policy=Policy(methods=("fedavg",))), "visit")


def test_a_message_counts_once(make: Make) -> None:
    """Whoever holds old messages cannot have their effect again, also after a restart."""
    first = make(age=60.0)
    asked = read_question(question("visit", "0.0.1"))
    request = first.admit(asked, lambda seconds: True)
    frame = first.answer(request, asked)
    assert first.answer(request, asked) == frame
    restore(first, 0, 0, asked.sent)
    for found in (first, make(age=60.0)):
        with pytest.raises(SiteError, match="this very message came before"):
            found.answer(request, asked)
    with pytest.raises(SiteError, match=r"sent 3,\d\d\d s ago by the hub's clock, and 60 s are"):
        tell(make(age=60.0, memory=None), "visit", "0.0.9", time.time() - 3500)


def test_a_reply_that_leaves_again_is_noted(make: Make, tmp_path: Path) -> None:
    tell(make(), "visit", "0.0.1")
    tell(make(), "visit", "0.0.1")
    lines = read_journal(tmp_path / "site" / "journal.jsonl")
    assert [line.get("again", False) for line in lines] == [False, True]
    assert lines[0]["hash"] == lines[1]["hash"]
    assert lines[0]["kinds"] == {"logits": 8}


def test_nothing_leaves_that_cannot_be_noted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    found = make()
    journal = found._journal
    assert journal is not None

    def full(*_: Any, **__: Any) -> None:
        raise StoreError("cannot write the journal")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "left", full)
        with pytest.raises(SiteError, match="cannot write the journal"):
            tell(found, "visit", "0.0.1")
    assert found.memory.answer("0.0.1") is None
    assert visits(found, "0.0.1") == 1


def test_a_memory_that_cannot_be_written_leaves_the_site_as_it_was(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = make()
    visits(found, "0.0.1")

    def full(*_: Any, **__: Any) -> None:
        raise StoreError("cannot write answered.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr("motet.agent.memory.write_atomic", full)
        with pytest.raises(SiteError, match="cannot write answered"):
            tell(found, "visit", "0.0.2")
    assert visits(found, "0.0.2") == 2
    assert visits(make(), "0.0.3") == 3


def test_what_keeps_nothing_is_not_written_where_care_is_not_needed(
    make: Make, tmp_path: Path
) -> None:
    found = make(careful=False)
    frame = tell(found, "nothing", z=torch.ones(3))
    assert tell(found, "nothing", z=torch.ones(3)) == frame
    assert not (tmp_path / "memory").exists()
    tell(make(), "nothing", z=torch.ones(3))
    assert (tmp_path / "memory").exists()


def test_status_tells_what_it_does_and_did(make: Make) -> None:
    found = make()
    assert found.status()["doing"] == "idle"
    tell(found, "visit", "0.0.1")
    status = found.status()
    assert (status["answers"], status["last"], status["error"]) == (1, "visit, round 0", "")
    assert status["rows"] == len(found.door.site.data)
    assert wire.decode(wire.encode(status)) == status
