"""Whether a round costs what its cohort costs: 1,000 sites against 1,000,000, in turns.

    python benchmarks/scale.py [--pairs 5] [--rounds 12] [--cohort 100]

Each run has a process of its own. FedAvg, a perceptron on handwritten digits, 50 rows at every
site, 5 steps of batch 10. Prints seconds per round (median of all but the first), processor
seconds, start-up and peak memory, and the ratios of the medians. Reports nothing when the runs did
not do the same number of steps.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from typing import Any

SMALL, LARGE = 1_000, 1_000_000
MODEL = {"width": 64, "image": {"name": "pixel-mlp", "side": 8}}
FIGURES = ("seconds", "processor", "start", "memory")


def recipe(sites: int, rounds: int, cohort: int) -> dict[str, Any]:
    """The experiment as plain values."""
    local = {"lr": 0.1, "batch": 10, "steps": 5}
    return {
        "method": {"name": "fedavg", "rounds": rounds, "cohort": cohort, "local": local},
        "data": {"name": "digits", "test": 400, "public": 0},
        "server": MODEL,
        "classify": True,
        "common_start": True,
        "populations": [
            {
                "name": "site",
                "count": sites,
                "modalities": ["image"],
                "partition": {"name": "draw", "rows": 50},
                "models": [MODEL],
            }
        ],
    }


def measure(sites: int, rounds: int, cohort: int, folder: str | None) -> dict[str, Any]:
    """One run in this process."""
    from motet.experiment.runner import run

    begun = time.perf_counter()
    marks: list[tuple[float, float]] = []
    replies = 0

    def listen(event: dict[str, Any]) -> None:
        nonlocal replies
        if event["event"] == "round":
            marks.append((time.perf_counter(), time.process_time()))
        replies += event["event"] == "replied"

    result = run(recipe(sites, rounds, cohort), folder=folder, listeners=[listen])
    marks = marks[1:]
    return {
        "seconds": statistics.median(b[0] - a[0] for a, b in pairwise(marks)),
        "processor": statistics.median(b[1] - a[1] for a, b in pairwise(marks)),
        "start": marks[0][0] - begun,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "steps": replies * 5,
        "accuracy": result.last("accuracy"),
    }


def in_turns(pairs: int, rounds: int, cohort: int, *, saved: bool) -> dict[int, list[Any]]:
    """Size -> what its runs measured, one after the other of each pair."""
    found: dict[int, list[Any]] = {SMALL: [], LARGE: []}
    for pair in range(pairs):
        for sites in (SMALL, LARGE) if pair % 2 == 0 else (LARGE, SMALL):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--sites", str(sites)]
                command += ["--rounds", str(rounds), "--cohort", str(cohort)]
                command += ["--folder", folder] if saved else []
                told = subprocess.run(command, capture_output=True, text=True, check=True)
            found[sites].append(json.loads(told.stdout.splitlines()[-1]))
    return found


def report(found: dict[int, list[Any]]) -> None:
    """Prints medians with their spread, and ratios; exits when the steps differ."""
    steps = {run["steps"] for runs in found.values() for run in runs}
    if len(steps) > 1:
        sys.exit(f"the runs did different numbers of steps: {sorted(steps)}")
    print(f"{steps.pop():,} steps per run; median (least to most)")
    middle: dict[tuple[int, str], float] = {}
    for sites, runs in found.items():
        cells = []
        for figure in FIGURES:
            values = sorted(run[figure] for run in runs)
            middle[sites, figure] = statistics.median(values)
            cells.append(
                f"{figure} {middle[sites, figure]:.3f} ({values[0]:.3f} to {values[-1]:.3f})"
            )
        print(f"{sites:>9,} sites: {', '.join(cells)}")
    for figure in FIGURES[:3]:
        print(f"{figure}: {middle[LARGE, figure] / middle[SMALL, figure]:.3f} x")
    print(f"memory: {middle[LARGE, 'memory'] - middle[SMALL, 'memory']:+.0f} MB")


def main() -> None:
    """Measures one size, or both in turns."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--pairs", type=int, default=5)
    words.add_argument("--rounds", type=int, default=12)
    words.add_argument("--cohort", type=int, default=100)
    words.add_argument("--saved", action="store_true", help="with checkpoints in a folder")
    words.add_argument("--sites", type=int, help="measure this size alone, in this process")
    words.add_argument("--folder", help="where that run goes")
    given = words.parse_args()
    if given.sites:
        print(json.dumps(measure(given.sites, given.rounds, given.cohort, given.folder)))
    else:
        report(in_turns(given.pairs, given.rounds, given.cohort, saved=given.saved))


if __name__ == "__main__":
    main()
