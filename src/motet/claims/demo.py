"""The demo: one whole run with its pictures, beside baselines and controls on two seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from motet.claims.base import run_claim
from motet.claims.creamfl import CLAIM
from motet.core.events import Event
from motet.experiment.recipes import shipped_recipe
from motet.experiment.report import write_report
from motet.experiment.runner import run

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
    return write_report(folder / "run", comparison=comparison.plain(CLAIM.metrics))
