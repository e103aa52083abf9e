"""What is kept of one small run of every method: bytes, embeddings and metrics."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tests.conformance.tiny import VARIANTS, Case, coded, try_out

from motet.experiment.runner import Result
from motet.methods.registry import METHODS

GOLDEN = Path(__file__).with_name("golden.json")
CASES = {**{name: Case(name) for name in METHODS}, **VARIANTS}


def record(case: Case) -> dict[str, Any]:
    """The run of a case in numbers."""
    result = try_out(case)
    return {
        "bytes": volume(result),
        "packed": volume(try_out(case, coded(case.name, representations="int8", weights="fp16"))),
        "embeddings": embeddings(result),
        "metrics": metrics(result),
    }


def volume(result: Result) -> dict[str, int]:
    """Bytes of the whole run by operation, direction and kind.

    Without the frames in which metrics come back: their lengths hang on the digits.
    """
    counts: Counter[str] = Counter()
    for event in result.events:
        if event["event"] == "replied":
            for way in ("down", "up"):
                for kind, count in event[way].items():
                    counts[f"{event['op']} {way} {kind}"] += count
    del counts["evaluate up frame"]
    return dict(sorted(counts.items()))


def embeddings(result: Result) -> dict[str, list[float]]:
    """Modality -> the hub's embeddings of the first three test rows, one after the other."""
    if result.model is None:
        return {}
    model = result.model.eval()
    rows = model.prepare(result.test.take([0, 1, 2]))
    with torch.no_grad():
        features = model(next(rows.batches(3))).features
    return {
        name: [round(value, 4) for value in features[name].flatten().tolist()]
        for name in sorted(features)
    }


def metrics(result: Result) -> dict[str, float]:
    """The last value of every metric of every party."""
    values: dict[str, float] = {}
    for event in result.events:
        if event["event"] == "metric":
            for name, (value, _) in event["metrics"].items():
                values[f"{event['party']} {name}"] = round(value, 2)
    return dict(sorted(values.items()))
