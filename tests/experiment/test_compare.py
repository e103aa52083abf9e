"""Comparisons: arms times seeds, kept results, processes that change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.methods import tiny

from motet.core import ConfigError
from motet.experiment import compare as module
from motet.experiment.compare import Arm, Comparison, compare, last_values

SMALL = [
    "data={name: emoji, options: {size: 8}, unit: concept, test: 16, public: 16}",
    "populations.2.where={style: noto-v1}",
    "populations.0.where={style: noto-v1}",
    "populations.1.where={style: noto-v1}",
    "method.rounds=1",
]


def small(*settings: str) -> dict[str, Any]:
    return tiny.recipe(*SMALL, *settings)


def arms() -> list[Arm]:
    return [Arm("creamfl", small()), Arm("mean", small("method.aggregation=mean"), "", "ablation")]


def test_processes_give_the_same_values_and_kept_results_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = compare("t", arms(), [1], reference="creamfl", folder=tmp_path / "a", jobs=2)
    here = compare("t", arms(), [1], reference="creamfl", folder=tmp_path / "b", jobs=1)
    assert apart.values == here.values
    monkeypatch.setattr(module, "run_arm", lambda *_: pytest.fail("was run again"))
    again = compare("t", arms(), [1], reference="creamfl", folder=tmp_path / "b", jobs=1)
    assert again.values == here.values


def test_another_recipe_under_the_same_name_is_run(tmp_path: Path) -> None:
    first = [Arm("creamfl", small())]
    other = [Arm("creamfl", small("method.gamma=0.1"))]
    told: list[Any] = []
    for wanted in (first, other):
        compare("t", wanted, [1], reference="creamfl", folder=tmp_path, jobs=1, tell=told.append)
    assert len(told) == 2


def test_a_failing_arm_is_named_and_leaves_no_result(tmp_path: Path) -> None:
    bad = [Arm("creamfl", small("data.public=1"))]
    with pytest.raises(ConfigError, match="creamfl-1"):
        compare("t", bad, [1], reference="creamfl", folder=tmp_path, jobs=1)
    assert not list(tmp_path.glob("*"))


def test_a_reference_that_is_no_arm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reference"):
        compare("t", arms(), [1], reference="best", folder=tmp_path)
    with pytest.raises(ConfigError, match="seed"):
        compare("t", arms(), [], reference="creamfl", folder=tmp_path)


def test_differences_are_paired_by_seed() -> None:
    values = {"a": [{"x": 5.0}, {"x": 1.0}], "b": [{"x": 1.0}, {"x": 5.0}]}
    made = Comparison("t", "a", (0, 1), (Arm("a", {}), Arm("b", {})), values)
    assert made.difference("a", "b", "x") == [4.0, -4.0]
    with pytest.raises(ConfigError, match="'y'"):
        made.of("a", "y")
    plain = made.plain(["x", "y"])
    assert plain["arms"]["a"]["values"] == {"x": [5.0, 1.0]}
    json.dumps(plain)


def test_last_values_names_parties_points_bests_means_and_bytes() -> None:
    def metric(party: str, value: float, point: str = "after local training") -> dict[str, Any]:
        metrics = {"rsum": [value, 4]}
        return {"event": "metric", "party": party, "point": point, "metrics": metrics}

    def replied(op: str) -> dict[str, Any]:
        return {"event": "replied", "op": op, "down": {"frame": 2_000_000}, "up": {"frame": 500000}}

    events = [
        {"event": "round"},
        metric("hub", 9.0, "hub"),
        metric("pair-1", 1.0),
        {"event": "log", "round": 0, "rank": 3, "text": "no number"},
        {"event": "round"},
        metric("hub", 7.0, "hub"),
        metric("pair-1", 3.0),
        metric("pair-2", 5.0),
        metric("image-1", 10.0),
        metric("pair-1", 2.0, "as received"),
        replied("train"),
        replied("train"),
        replied("evaluate"),
    ]
    found = last_values(events)
    # The mean over the last reports, of which there are two.
    late = {name: value for name, value in found.items() if name.endswith("@3")}
    assert late.pop("rsum@3") == 8.0
    assert late.pop("pair-1/rsum@3") == 2.0
    assert late.pop("pair sites' rsum@3") == (1.0 + 4.0) / 2
    assert late.pop("sites' rsum@3") == (1.0 + 6.0) / 2
    assert {name: value for name, value in found.items() if "@" not in name} == {
        "rsum": 7.0,
        "best rsum": 9.0,
        "pair-1/rsum": 3.0,
        "pair-2/rsum": 5.0,
        "image-1/rsum": 10.0,
        "pair-1/rsum as received": 2.0,
        "pair sites' rsum": 4.0,
        "image sites' rsum": 10.0,
        "sites' rsum": 6.0,
        "pair sites' rsum as received": 2.0,
        "sites' rsum as received": 2.0,
        "log rank": 3.0,
        "best log rank": 3.0,
        "MB down": 4.0,
        "MB up": 1.0,
        "MB tests": 2.5,
    }
