"""`motet claim`, `motet claims`: experiments behind what the methods claim, run and judged."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import typer

from motet.claims import claim_named, list_claims, run_claim
from motet.claims.base import Claim, calibrate, markdown, summary
from motet.commands.common import RUNS, out, result, say, table
from motet.commands.compare import arms_table, running, write_outcome
from motet.core.store import write_atomic
from motet.experiment.compare import Comparison
from motet.experiment.runner import environment

# One folder for the arms of all claims: a baseline that two of them share runs once.
ARMS = RUNS / "claim-arms"


def check_claim(
    name: str,
    seeds: Sequence[int] | None,
    only: Sequence[str],
    jobs: int | None,
    write: Path | None,
) -> None:
    """Runs one claim; leaves with 1 when something that must come out did not."""
    claim = claim_named(name)
    comparison = _check(claim, seeds, only, jobs)
    if write is not None:
        _write_page(write, claim, comparison)
    _leave(comparison)


def check_all(jobs: int | None, write: Path | None) -> None:
    """Runs all claims, those that were interrupted from where they stood; writes pages."""
    outcomes: list[tuple[Claim, Comparison]] = []
    for name in list_claims():
        claim = claim_named(name)
        outcomes.append((claim, _check(claim, None, (), jobs)))
        if write is not None:
            _write_page(write, *outcomes[-1])
    _leave(*(comparison for _, comparison in outcomes))


def calibrate_claim(name: str, jobs: int | None) -> None:
    """Shows what each setting that was tried comes to on the calibration seeds."""
    claim = claim_named(name)
    count = sum(map(len, claim.rates.values())) * len(claim.calibration)
    with running(f"motet claim {name} --calibrate", count) as tell:
        comparison = calibrate(claim, ARMS, jobs=jobs, tell=tell)
    out().print(arms_table(comparison, claim.metrics))


def _check(
    claim: Claim, seeds: Sequence[int] | None, only: Sequence[str], jobs: int | None
) -> Comparison:
    folder = RUNS / f"claim-{claim.name}"
    arms = len({*only, claim.reference}) if only else len(claim.arms())
    with running(f"motet claim {claim.name}", arms * len(seeds or claim.seeds)) as tell:
        comparison = run_claim(
            claim, ARMS, seeds=seeds, only=list(only) or None, jobs=jobs, tell=tell
        )
    out().print(arms_table(comparison, claim.metrics))
    out().print(_judged(comparison))
    result(f"report: {write_outcome(folder, comparison, claim.metrics)}")
    return comparison


def _write_page(folder: Path, claim: Claim, comparison: Comparison) -> None:
    """The claim's page and picture in ``folder``/claims, and the table of all that are there."""
    pages = folder / "claims"
    path = pages / f"{claim.name}.md"
    write_atomic(path, markdown(claim, comparison, environment(), date.today()).encode())
    if claim.figure is not None:
        write_atomic(pages / f"{claim.name}.png", claim.figure(comparison.seeds[0]))
    there = {page.stem: page.read_text(encoding="utf-8") for page in pages.glob("*.md")}
    write_atomic(folder / "claims.md", summary(there).encode())
    result(f"page: {path}")


def _leave(*comparisons: Comparison) -> None:
    judged = [item for comparison in comparisons for item in comparison.expectations]
    failed = sum(not item["holds"] for item in judged)
    if failed:
        say(f"{failed} of {len(judged)} of what must come out did not", "red")
        raise typer.Exit(1)


def _judged(comparison: Comparison) -> Any:
    shown = table("Must come out", ("what", "measured", "holds"))
    for item in comparison.expectations:
        shown.add_row(item["text"], item["figure"], "yes" if item["holds"] else "NO")
    return shown
