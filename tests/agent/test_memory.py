"""What an agent still knows after a kill: all of the last answer, or nothing of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from motet.agent import memory as module
from motet.agent.memory import MAX_DONE, Memory, Nonces
from motet.core import StoreError, Tree, wire
from motet.core.store import write_atomic


def state(number: float, *, changed: bool = True) -> Tree:
    kept = {"state": {"z": torch.full((3,), number)}, "learner": {}, "guards": {}}
    return {"kept": kept, "changed": changed}


def told(memory: Memory) -> tuple[Any, ...]:
    kept = None if memory.state is None else float(memory.state["kept"]["state"]["z"][0])
    changed = None if memory.state is None else memory.state["changed"]
    about = (memory.tag, memory.frame, list(memory.done), memory.since, memory.left)
    return (*about, kept, changed)


@pytest.mark.parametrize("lasting", [True, False])
def test_an_answer_is_known_after_a_restart(tmp_path: Path, lasting: bool) -> None:
    first = Memory(tmp_path, lasting=lasting)
    first.answered("0.0.1", b"reply", state(1), changed=True)
    first.answered("0.0.2", b"", state(2), changed=True)
    again = Memory(tmp_path)
    assert told(again) == told(first) == ("0.0.2", b"", ["0.0.1", "0.0.2"], 0.0, 5, 2.0, True)
    assert again.answer("0.0.2") == b""
    assert again.answer("0.0.1") is None
    assert Memory(None).answer("") is None


def test_a_state_that_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.answered("0.0.1", b"a", state(1), changed=True)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("kept-*")}
    memory.answered("0.0.2", b"b", state(1), changed=False)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("kept-*")}
    assert before == after
    assert told(Memory(tmp_path))[:2] == ("0.0.2", b"b")


def test_old_states_are_removed(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    for number in range(5):
        memory.answered(f"0.0.{number}", b"a", state(number), changed=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["answered-00000005.safetensors", "kept-00000005.safetensors"]
    # What a kill left behind is removed when it is read again.
    for name in ("kept-00000004.safetensors", "answered-00000003.safetensors", ".x.7.part"):
        (tmp_path / name).write_bytes(b"old")
    assert told(Memory(tmp_path)) == told(memory)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    for number in range(3):
        memory = Memory(tmp_path)
        memory.answered(f"0.0.{number}", b"a", state(number), changed=True)
    assert told(Memory(tmp_path)) == told(memory)
    assert list(memory.done) == ["0.0.0", "0.0.1", "0.0.2"]


def test_a_checkpoint_is_remembered(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.answered("0.0.1", b"a", state(1), changed=True)
    memory.saved(state(1, changed=False))
    again = Memory(tmp_path)
    assert told(again) == ("0.0.1", b"a", ["0.0.1"], 0.0, 1, 1.0, False)


def test_a_checkpoint_of_a_site_that_keeps_nothing_costs_nothing(tmp_path: Path) -> None:
    Memory(tmp_path).saved(state(1))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_forgets_what_came_later(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.answered("0.3.1", b"abc", state(4), changed=True)
    memory.restored(state(3, changed=False), 77.5)
    assert told(memory) == told(Memory(tmp_path)) == ("", b"", [], 77.5, 3, 3.0, False)
    assert memory.answer("0.3.1") is None
    assert memory.answer("") is None


def test_an_answer_that_left_nothing_behind_lasts_as_long_as_the_process(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.again("0.0.1", b"a")
    assert memory.answer("0.0.1") == b"a"
    assert (list(memory.done), memory.left) == (["0.0.1"], 1)
    assert told(Memory(tmp_path))[:2] == ("", b"")


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("step", ["answered", "restored", "saved"])
def test_a_kill_at_any_file_leaves_before_or_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, step: str
) -> None:
    """Before or after the writing of either file; what is read is never a mixture."""
    memory = Memory(tmp_path)
    memory.answered("0.0.1", b"one", state(1), changed=True)
    before = told(memory)
    written = 0

    def dying(path: Path, data: bytes, **options: bool) -> None:
        nonlocal written
        if written == at:
            raise Killed
        written += 1
        write_atomic(path, data, **options)
        if written == at:
            raise Killed
        written += 1

    steps = {
        "answered": lambda one: one.answered("0.0.2", b"two", state(2), changed=True),
        "restored": lambda one: one.restored(state(0), 9.0),
        "saved": lambda one: one.saved(state(1, changed=False)),
    }
    monkeypatch.setattr(module, "write_atomic", dying)
    try:
        steps[step](memory)
    except Killed:
        # A process that lives on must say the same as one that was started anew.
        assert told(memory) == before
    monkeypatch.setattr(module, "write_atomic", write_atomic)
    whole = Memory(tmp_path / "whole")
    whole.answered("0.0.1", b"one", state(1), changed=True)
    steps[step](whole)
    found = told(Memory(tmp_path))
    assert found in (before, told(whole))
    if at == 0:
        assert found == before


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    memory.answered("0.0.1", b"one", state(1), changed=True)
    (record,) = tmp_path.glob("answered-*")
    for damage in (b"nonsense", wire.encode({"about": {}}), wire.encode({"about": [1]})):
        record.write_bytes(damage)
        with pytest.raises(StoreError, match="cannot read .*answered-00000001.safetensors"):
            Memory(tmp_path)


def test_the_tags_that_are_remembered_are_bounded() -> None:
    memory = Memory(None)
    for number in range(MAX_DONE + 5):
        memory.again(f"0.{number}.1", b"")
    assert len(memory.done) == MAX_DONE
    assert f"0.{MAX_DONE + 4}.1" in memory.done


def test_a_message_counts_once_also_after_a_restart(tmp_path: Path) -> None:
    now = time.time()
    nonces = Nonces(tmp_path, 60.0)
    assert nonces.complaint("a", now) is None
    assert nonces.complaint("b", now) is None
    assert nonces.complaint("a", now) == "this very message came before, and its turn is over"
    with (tmp_path / "nonces").open("a") as file:
        file.write("torn 17")
    again = Nonces(tmp_path, 60.0)
    assert again.complaint("b", now) is not None
    assert again.complaint("c", now) is None


@pytest.mark.parametrize(("late", "told"), [(100, "100 s ago"), (-100, "100 s from now")])
def test_a_message_of_another_time_does_not_count(late: float, told: str) -> None:
    complaint = Nonces(None, 60.0).complaint("a", time.time() - late)
    assert complaint is not None
    assert f"it was sent {told} by the hub's clock, and 60 s are allowed" in complaint


def test_without_an_age_all_count() -> None:
    nonces = Nonces(None, None)
    assert nonces.complaint("a", 0.0) is nonces.complaint("a", 0.0) is None


def test_old_nonces_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DROP_EVERY", 10)
    clock = 1000.0
    monkeypatch.setattr(time, "time", lambda: clock)
    nonces = Nonces(tmp_path, 5.0)
    for number in range(95):
        clock = 1000.0 + number
        assert nonces.complaint(str(number), clock) is None
    lines = (tmp_path / "nonces").read_text().splitlines()
    assert len(lines) < 20
    assert lines[-1].startswith("94 ")
