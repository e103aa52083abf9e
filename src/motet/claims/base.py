"""A claim: arms, seeds and what must come out, run and judged by one command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

from motet.core.errors import ConfigError
from motet.experiment.compare import Arm, Comparison, compare, spread

Plain = dict[str, Any]


@dataclass(frozen=True)
class Expectation:
    """One thing that must come out: a difference between two arms, or a check of its own.

    ``arm`` minus ``other`` in ``metric``: the mean over seeds must be at least ``least`` (and at
    most ``most``); with ``every`` the difference must be above 0 in every seed. With
    ``ratio`` the arm's mean must be at least that many times the other's.
    """

    text: str
    arm: str
    other: str
    metric: str
    least: float | None = None
    most: float | None = None
    ratio: float | None = None
    every: bool = False

    def judge(self, comparison: Comparison) -> Plain:
        """{"text", "figure", "holds"} on these values."""
        gaps = comparison.difference(self.arm, self.other, self.metric)
        mean = fmean(gaps)
        holds = True
        figure = f"{mean:+.1f} (sd {spread(gaps):.1f}, smallest {min(gaps):+.1f})"
        if self.least is not None:
            holds &= mean >= self.least
        if self.most is not None:
            holds &= mean <= self.most
        if self.every:
            holds &= min(gaps) > 0
        if self.ratio is not None:
            base = comparison.mean(self.other, self.metric)
            ratio = comparison.mean(self.arm, self.metric) / base if base else float("inf")
            holds &= ratio >= self.ratio
            figure = f"{ratio:.2f} times"
        return {"text": self.text, "figure": figure, "holds": holds}


@dataclass(frozen=True)
class Claim:
    """The registered experiment behind a method's claim.

    seeds: not those on which anything was chosen (``calibration``). checks: further experiments
    on these seeds, each judged as {"text", "figure", "holds"}. notes: what does not hold, or must
    be known to read the figures.
    """

    name: str
    title: str
    paper: str
    arms: Callable[[], Sequence[Arm]]
    reference: str
    metrics: tuple[str, ...]
    expectations: tuple[Expectation, ...]
    seeds: tuple[int, ...]
    calibration: tuple[int, ...] = ()
    checks: Callable[[Sequence[int]], Sequence[Plain]] = lambda seeds: ()
    notes: str = ""


def run_claim(
    claim: Claim,
    folder: Path,
    *,
    seeds: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
    jobs: int | None = None,
    tell: Callable[[Plain], None] = lambda note: None,
) -> Comparison:
    """Runs the claim's arms and judges what came out; results are kept in ``folder``.

    only: names of arms; expectations about others are then left out.
    """
    arms = list(claim.arms())
    if only is not None:
        unknown = sorted(set(only) - {arm.name for arm in arms})
        if unknown:
            listed = ", ".join(arm.name for arm in arms)
            raise ConfigError(f"{claim.name} has no arm {unknown[0]!r}; it has {listed}")
        arms = [arm for arm in arms if arm.name in only or arm.name == claim.reference]
    chosen = tuple(seeds or claim.seeds)
    overlap = sorted(set(chosen) & set(claim.calibration))
    if overlap:
        raise ConfigError(f"seeds {overlap} were used to choose the setting; take others")
    command = f"motet claim {claim.name}"
    if seeds:
        command += f" --seeds {','.join(map(str, chosen))}"
    comparison = compare(
        claim.title,
        arms,
        chosen,
        reference=claim.reference,
        folder=folder,
        jobs=jobs,
        command=command,
        tell=tell,
    )
    names = {arm.name for arm in arms}
    judged = [
        expectation.judge(comparison)
        for expectation in claim.expectations
        if {expectation.arm, expectation.other} <= names
    ]
    if only is None:
        judged += claim.checks(chosen)
    return replace(comparison, expectations=tuple(judged))


def markdown(claim: Claim, comparison: Comparison, versions: dict[str, str], day: date) -> str:
    """The claim's outcome as a page: what must come out, the table, seeds, command, versions."""
    lines = [f"# Claim: {claim.title}", "", claim.paper, ""]
    lines += ["| must come out | measured | holds |", "|---|---|---|"]
    for item in comparison.expectations:
        verdict = "yes" if item["holds"] else "**no**"
        lines.append(f"| {item['text']} | {item['figure']} | {verdict} |")
    lines += ["", *_table(claim, comparison), ""]
    if claim.notes:
        lines += [claim.notes.strip(), ""]
    seeds = ", ".join(map(str, comparison.seeds))
    chosen = ", ".join(map(str, claim.calibration))
    lines.append(f"Seeds {seeds}; the setting was chosen on {chosen or 'none'}.")
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines += [f"Command: `{comparison.command}`. Date: {day.isoformat()}. {listed}.", ""]
    return "\n".join(lines)


def _table(claim: Claim, comparison: Comparison) -> list[str]:
    heads = [*claim.metrics, f"{claim.reference} minus it, {claim.metrics[0]}"]
    lines = [f"| arm | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for arm in comparison.arms:
        cells: list[str] = []
        for metric in claim.metrics:
            known = all(metric in values for values in comparison.values[arm.name])
            values = comparison.of(arm.name, metric) if known else []
            cells.append(f"{fmean(values):.1f} ± {spread(values):.1f}" if values else "–")
        if arm.name == claim.reference or claim.metrics[0] not in comparison.values[arm.name][0]:
            cells.append("–")
        else:
            gaps = comparison.difference(claim.reference, arm.name, claim.metrics[0])
            cells.append(f"{fmean(gaps):+.1f} ± {spread(gaps):.1f} (smallest {min(gaps):+.1f})")
        lines.append(f"| {arm.title or arm.name} ({arm.group}) | {' | '.join(cells)} |")
    lines += ["", "Mean ± standard deviation over the seeds; differences are paired by seed."]
    return lines
