"""The journal: everything that left, before it leaves; no values; no half lines."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from motet.agent.journal import MAX_SHAPES, Journal, read_journal
from motet.core import Kind, Request, StoreError, Tree

REQUEST = Request("ada", "train", "0.1.2", 1)
SENDS = {"weights": Kind.WEIGHTS, "metrics": Kind.METRIC}
VALUE: Tree = {
    "weights": {"a": torch.full((2, 3), 4711.0), "b": torch.ones(4, dtype=torch.float16)},
    "metrics": {"accuracy": [0.4711, 9]},
    "samples": 4711,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.jsonl"


def test_a_line_says_what_left_and_never_the_values(path: Path) -> None:
    journal = Journal(path)
    journal.left(REQUEST, VALUE, SENDS, b"frame")
    journal.close()
    (line,) = read_journal(path)
    assert line.pop("time") > 1.7e9
    assert line == {
        "what": "left",
        "site": "ada",
        "round": 1,
        "op": "train",
        "tag": "0.1.2",
        "kinds": {"weights": 2 * 3 * 4 + 4 * 2},
        "keys": ["metrics", "samples", "weights"],
        "shapes": {"weights.a": ["float32", 2, 3], "weights.b": ["float16", 4]},
        "bytes": 5,
        "hash": hashlib.blake2b(b"frame", digest_size=16).hexdigest(),
    }
    assert "4711" not in path.read_text()


def test_a_reply_that_leaves_again_is_noted_again(path: Path) -> None:
    journal = Journal(path)
    journal.left(REQUEST, VALUE, SENDS, b"frame")
    journal.left(REQUEST, VALUE, SENDS, b"frame", again=True)
    journal.close()
    first, second = read_journal(path)
    assert "again" not in first
    assert second["again"] is True
    assert first["hash"] == second["hash"]


def test_what_a_guard_says_is_control(path: Path) -> None:
    journal = Journal(path)
    request = Request("ada", "@secure.keys", "0.1.2@secure.keys", 1)
    journal.left(request, {"box": torch.zeros(32, dtype=torch.uint8)}, {}, b"frame")
    journal.close()
    assert read_journal(path)[0]["kinds"] == {"control": 32}


def test_many_shapes_are_cut(path: Path) -> None:
    journal = Journal(path)
    weights = {f"w{i:04d}": torch.zeros(1) for i in range(MAX_SHAPES + 3)}
    journal.left(REQUEST, {"weights": weights}, SENDS, b"frame")
    journal.close()
    shapes = read_journal(path)[0]["shapes"]
    assert len(shapes) == MAX_SHAPES + 1
    assert shapes["..."] == 3


def test_a_refusal_is_noted_with_its_reason(path: Path) -> None:
    journal = Journal(path)
    journal.kept_back(REQUEST, "too much")
    journal.close()
    (line,) = read_journal(path)
    assert (line["what"], line["reason"], line["op"]) == ("refused", "too much", "train")


def test_every_line_is_on_the_disk_before_its_reply(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path)
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(len(read_journal(path))))
    for _ in range(2):
        journal.left(REQUEST, VALUE, SENDS, b"frame")
    journal.close()
    assert seen == [1, 2]


@pytest.mark.parametrize("torn", ["", '{"what": "le', "x" * 10_000])
@pytest.mark.parametrize("whole", [0, 1, 200])
def test_half_a_line_is_cut(path: Path, torn: str, whole: int) -> None:
    path.parent.mkdir()
    lines = json.dumps({"what": "left", "n": "0" * 90}) + "\n"
    path.write_text(lines * whole + torn)
    journal = Journal(path)
    journal.kept_back(REQUEST, "no")
    journal.close()
    assert [line["what"] for line in read_journal(path)] == ["left"] * whole + ["refused"]


def test_a_full_disk_leaves_no_half_line_and_nothing_leaves(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path)
    journal.kept_back(REQUEST, "before")
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, data: real(handle, data[:20]))
        with pytest.raises(StoreError, match="cannot write the journal .*nothing may leave"):
            journal.left(REQUEST, VALUE, SENDS, b"frame")
    journal.kept_back(REQUEST, "after")
    journal.close()
    assert [line["reason"] for line in read_journal(path)] == ["before", "after"]


def test_others_cannot_read_it(path: Path) -> None:
    Journal(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_there_may_be_no_journal_yet(path: Path) -> None:
    assert read_journal(path) == []
