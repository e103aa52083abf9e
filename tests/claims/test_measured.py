"""Arms that are measured by a function are kept and repeated like runs of recipes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.claims.test_base import claim

from motet.claims.base import calibrate, run_claim
from motet.experiment.compare import Arm, Plain, Values, compare

ARMS = (Arm("new", {"rate": 2.0}), Arm("old", {"rate": 1.0}))


def score(values: Plain) -> Values:
    return {"score": values["rate"] * values["seed"], "threads": float(torch.get_num_threads())}


def test_every_arm_is_measured_on_every_seed_and_kept(tmp_path: Path) -> None:
    notes: list[Plain] = []
    made = compare(
        "t", ARMS, (3, 4), reference="new", folder=tmp_path, measure=score, jobs=1,
        command="c", tell=notes.append,
    )  # fmt: skip
    assert made.of("new", "score") == [6, 8]
    assert made.of("old", "score") == [3, 4]
    assert set(made.of("new", "threads")) == {1}
    assert (made.seeds, made.reference, made.command) == ((3, 4), "new", "c")
    assert [note["done"] for note in notes] == [1, 2, 3, 4]
    assert {note["of"] for note in notes} == {4}


def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    where = {"reference": "new", "folder": tmp_path, "measure": score, "jobs": 1}
    compare("t", ARMS, (3,), **where)  # type: ignore[arg-type]
    for path in tmp_path.iterdir():
        path.write_text(json.dumps({"score": 100.0}))
    assert compare("t", ARMS, (3,), **where).of("old", "score") == [100]  # type: ignore[arg-type]
    changed = (replace(ARMS[0], values={"rate": 5.0}), ARMS[1])
    again = compare("t", changed, (3,), **where)  # type: ignore[arg-type]
    assert (again.of("new", "score"), again.of("old", "score")) == ([15], [100])


@pytest.mark.slow
def test_processes_of_their_own_measure_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They find this module where their parent does.
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    made = compare("t", ARMS, (3, 4), reference="new", folder=tmp_path, measure=score, jobs=2)
    assert made.of("new", "score") == [6, 8]
    assert made.of("old", "score") == [3, 4]


def test_a_claim_may_measure_its_arms(tmp_path: Path) -> None:
    made = claim(arms=lambda: ARMS, measure=score, rates={"old": ("rate=3", "rate=4")})
    found = run_claim(made, tmp_path, jobs=1)
    assert found.of("new", "score") == [14, 16]
    assert found.expectations[0]["holds"]
    tried = calibrate(made, tmp_path, jobs=1)
    assert tried.of("old rate=4", "score") == [4]
