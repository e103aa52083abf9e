"""Small runs whose numbers are kept: nothing may change them unnoticed.

When they are meant to change, ``python -m tests.golden.renew`` writes them anew.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from tests.golden.runs import CASES, GOLDEN, record

# The last bits of sums differ between processors, and training makes them larger: 0.0001 between
# plain and AVX-512 instructions.
CLOSE = 0.002
# Of 16 test rows one is 6.25 percent: so much a metric may move when two rows change places.
ROWS = {"rsum": 13.0, "cat@10": 2.0}
OTHER = 6.3


@cache
def golden() -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return kept


@cache
def now(name: str) -> dict[str, Any]:
    return record(CASES[name])


def test_every_method_has_its_run() -> None:
    assert list(golden()) == list(CASES), "python -m tests.golden.renew"


@pytest.mark.parametrize("part", ["bytes", "packed"])
@pytest.mark.parametrize("name", CASES)
def test_bytes_are_what_they_were(name: str, part: str) -> None:
    assert now(name)[part] == golden()[name][part]


@pytest.mark.parametrize("name", CASES)
def test_embeddings_are_what_they_were(name: str) -> None:
    kept = golden()[name]["embeddings"]
    assert set(now(name)["embeddings"]) == set(kept)
    for modality, values in now(name)["embeddings"].items():
        assert values == pytest.approx(kept[modality], abs=CLOSE), modality


@pytest.mark.parametrize("name", CASES)
def test_metrics_are_what_they_were(name: str) -> None:
    kept = golden()[name]["metrics"]
    assert set(now(name)["metrics"]) == set(kept)
    for metric, value in now(name)["metrics"].items():
        slack = ROWS.get(metric.split()[1], OTHER)
        assert value == pytest.approx(kept[metric], abs=slack), metric
