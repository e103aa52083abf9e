"""The demo: one whole run with its pictures, beside baselines and controls on two seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from motet.claims.base import run_claim
from motet.claims.creamfl import CLAIM
from motet.core.events import Event
from motet.core.store import write_atomic
from motet.experiment.recipes import shipped_recipe
from motet.experiment.report import write_report
from motet.experiment.runner import COMPARISON, run

# The arms that answer a newcomer's first questions; `motet claim creamfl` runs all of them.
ARMS = (
    "creamfl",
    "mean",
    "no-lcr",
    "no-private",
    "scrambled",
    "server-only",
    "fedmd",
    "fedavg",
    "anchors",
    "central",
)
SEEDS = (300, 301)


def run_demo(
    folder: Path,
    *,
    seeds: Sequence[int] = SEEDS,
    jobs: int | None = None,
    listeners: Sequence[Callable[[Event], None]] = (),
    tell: Callable[[dict[str, Any]], None] = lambda note: None,
) -> Path:
    """Runs CreamFL on emoji, compares it, and returns the report's path.

    What is in ``folder`` from an earlier demo is taken up, not computed again.
    """
    recipe = {**shipped_recipe("creamfl-emoji"), "seed": seeds[0]}
    run(recipe, folder=folder / "run", listeners=listeners)
    comparison = run_claim(CLAIM, folder / "arms", seeds=seeds, only=ARMS, jobs=jobs, tell=tell)
    told = comparison.plain(CLAIM.metrics)
    write_atomic(folder / "run" / COMPARISON, json.dumps(told, indent=1).encode())
    return write_report(folder / "run", comparison=told)
