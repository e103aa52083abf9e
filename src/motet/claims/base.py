"""A claim: arms, seeds and what must come out, run and judged by one command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

from motet.core.errors import ConfigError
from motet.evaluate.fairness import correlation
from motet.experiment.compare import Arm, Comparison, Measure, compare, spread
from motet.experiment.spec import with_settings

Plain = dict[str, Any]
HEADS = "| must come out | measured | holds |"
FAIRNESS = "fairness"


@dataclass(frozen=True)
class Expectation:
    """One thing that must come out: a difference between two arms, or an arm's own value.

    ``arm`` minus ``other`` (nothing, where no other is named) in ``metric`` (of the other in
    ``other_metric``, where that is another test point): its mean over the
    seeds must be at least ``least`` and at most ``most``, its value in every seed at least
    ``every_least`` and at most ``every_most``, and above 0 with ``every``. With ``ratio`` the
    arm's mean must be at least that many times the other's, with ``most_ratio`` at most. ``less``
    names a metric of which the same difference is taken off first.
    """

    text: str
    arm: str
    other: str = ""
    metric: str = "accuracy"
    other_metric: str = ""
    less: str = ""
    least: float | None = None
    most: float | None = None
    every_least: float | None = None
    every_most: float | None = None
    ratio: float | None = None
    most_ratio: float | None = None
    every: bool = False

    @property
    def arms(self) -> set[str]:
        """The arms that must have run."""
        return {self.arm, self.other} - {""}

    def judge(self, comparison: Comparison) -> Plain:
        """{"text", "figure", "holds"} on these values."""
        gaps = self._gaps(comparison)
        mean = fmean(gaps)
        bounds = [
            self.least is None or mean >= self.least,
            self.most is None or mean <= self.most,
            self.every_least is None or min(gaps) >= self.every_least,
            self.every_most is None or max(gaps) <= self.every_most,
            not self.every or min(gaps) > 0,
        ]
        if self.every_most is None:
            end = f"smallest {_number(min(gaps), bool(self.other))}"
        else:
            end = f"largest {_number(max(gaps), bool(self.other))}"
        shown = _number(mean, bool(self.other))
        figure = f"{shown} (sd {_number(spread(gaps))}, {end})"
        if self.ratio is not None or self.most_ratio is not None:
            base = comparison.mean(self.other, self.other_metric or self.metric)
            ratio = comparison.mean(self.arm, self.metric) / base if base else float("inf")
            bounds.append(self.ratio is None or ratio >= self.ratio)
            bounds.append(self.most_ratio is None or ratio <= self.most_ratio)
            figure = f"{ratio:.2f} times"
        return {"text": self.text, "figure": figure, "holds": all(bounds)}

    def _gaps(self, comparison: Comparison) -> list[float]:
        gaps = self._differences(comparison, self.metric)
        if self.less:
            theirs = self._differences(comparison, self.less)
            return [a - b for a, b in zip(gaps, theirs, strict=True)]
        return gaps

    def _differences(self, comparison: Comparison, metric: str) -> list[float]:
        if self.other:
            theirs = comparison.of(self.other, self.other_metric or metric)
            return [a - b for a, b in zip(comparison.of(self.arm, metric), theirs, strict=True)]
        return comparison.of(self.arm, metric)


def _number(value: float, signed: bool = False) -> str:
    """One decimal, or as many as a small number needs to be told from 0."""
    digits = 1 if abs(value) >= 1 or value == 0 else 3
    return f"{value:{'+' if signed else ''}.{digits}f}"


@dataclass(frozen=True)
class Claim:
    """The registered experiment behind a method's claim.

    seeds: not those on which anything was chosen (``calibration``). checks: further experiments
    on these seeds, each judged as {"text", "figure", "holds"}. rates: settings per arm among
    which one was chosen on the calibration seeds, such as the learning rates of a grid;
    ``calibrate`` runs them. alone: arm -> the arm in which the same sites learn alone; it then has
    the metric "fairness". measure: what gives an arm's figures where its values are no recipe.
    figure: a PNG of one seed, for the claim's page. notes: what does not hold, or must be known to
    read the figures.
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
    rates: Mapping[str, Sequence[str]] = field(default_factory=dict)
    alone: Mapping[str, str] = field(default_factory=dict)
    measure: Measure | None = None
    figure: Callable[[int], bytes] | None = None
    notes: str = ""

    def compare(
        self, title: str, arms: Sequence[Arm], seeds: Sequence[int], **rest: Any
    ) -> Comparison:
        """Runs, or measures, these arms on these seeds; the rest is as ``compare`` takes it."""
        return compare(title, arms, seeds, measure=self.measure, **rest)


def calibrate(
    claim: Claim,
    folder: Path,
    *,
    jobs: int | None = None,
    tell: Callable[[Plain], None] = lambda note: None,
) -> Comparison:
    """Runs every arm that has ``rates`` with each of them, on the calibration seeds.

    The arms are named "ARM SETTING"; the claim's own arms hold what was chosen.
    """
    if not claim.rates or not claim.calibration:
        raise ConfigError(f"{claim.name} has no settings to calibrate")
    known = {arm.name: arm for arm in claim.arms()}
    arms = [
        Arm(f"{name} {setting}", with_settings(known[name].values, [setting]), "", "option")
        for name, settings in claim.rates.items()
        for setting in settings
    ]
    return claim.compare(
        f"{claim.title}: calibration",
        arms,
        claim.calibration,
        reference=arms[0].name,
        folder=folder,
        jobs=jobs,
        command=f"motet claim {claim.name} --calibrate",
        tell=tell,
    )


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
        named = {*only, claim.reference}
        named |= {claim.alone[name] for name in named if name in claim.alone}
        arms = [arm for arm in arms if arm.name in named]
    chosen = tuple(seeds or claim.seeds)
    overlap = sorted(set(chosen) & set(claim.calibration))
    if overlap:
        raise ConfigError(f"seeds {overlap} were used to choose the setting; take others")
    command = f"motet claim {claim.name}"
    if seeds:
        command += f" --seeds {','.join(map(str, chosen))}"
    comparison = claim.compare(
        claim.title,
        arms,
        chosen,
        reference=claim.reference,
        folder=folder,
        jobs=jobs,
        command=command,
        tell=tell,
    )
    comparison = with_fairness(comparison, claim.alone)
    names = {arm.name for arm in arms}
    judged = [
        expectation.judge(comparison)
        for expectation in claim.expectations
        if expectation.arms <= names
    ]
    if only is None:
        judged += claim.checks(chosen)
    return replace(comparison, expectations=tuple(judged))


def with_fairness(comparison: Comparison, alone: Mapping[str, str]) -> Comparison:
    """The comparison in which the arms of ``alone`` have the metric "fairness".

    It is 100 times the correlation, over sites, of their accuracy with what they reach alone. A
    site that reports no model of its own has the hub's.
    """
    values = dict(comparison.values)
    for arm, other in alone.items():
        if arm in values and other in values:
            pairs = zip(comparison.values[arm], comparison.values[other], strict=True)
            values[arm] = [{**mine, FAIRNESS: _fairness(mine, base)} for mine, base in pairs]
    return replace(comparison, values=values)


def _fairness(mine: Mapping[str, float], base: Mapping[str, float]) -> float:
    sites = [name for name in base if name.endswith("/accuracy")]
    got = [mine[name] if name in mine else mine["accuracy"] for name in sites]
    return correlation([base[name] for name in sites], got)


def markdown(claim: Claim, comparison: Comparison, versions: dict[str, str], day: date) -> str:
    """The claim's outcome as a page: what must come out, the table, seeds, command, versions."""
    lines = [f"# Claim: {claim.title}", "", claim.paper, ""]
    lines += [HEADS, "|---|---|---|"]
    for item in comparison.expectations:
        verdict = "yes" if item["holds"] else "**no**"
        lines.append(f"| {item['text']} | {item['figure']} | {verdict} |")
    lines += ["", *_table(claim, comparison), ""]
    if claim.notes:
        lines += [claim.notes.strip(), ""]
    if claim.figure is not None:
        lines += [f"![seed {comparison.seeds[0]}]({claim.name}.png)", ""]
    seeds = ", ".join(map(str, comparison.seeds))
    chosen = ", ".join(map(str, claim.calibration))
    lines.append(f"Seeds {seeds}; the setting was chosen on {chosen or 'none'}.")
    listed = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines += [f"Command: `{comparison.command}`. Date: {day.isoformat()}. {listed}.", ""]
    return "\n".join(lines)


def summary(pages: Mapping[str, str]) -> str:
    """All claims on one page, from those of each: name -> what ``markdown`` made of it."""
    judged: list[str] = []
    rows: list[str] = []
    for name, page in sorted(pages.items()):
        lines = page.splitlines()
        first = lines.index(HEADS) + 2
        last = next(i for i in range(first, len(lines)) if not lines[i].startswith("|"))
        seeds = next(line for line in lines if line.startswith("Seeds "))
        seeds = seeds.removeprefix("Seeds ").partition(";")[0]
        made = next(line for line in lines if line.startswith("Command: "))
        command, _, day = made.removeprefix("Command: ").partition(". Date: ")
        link = f"[{name}](claims/{name}.md)"
        ends = f"{seeds} | {command} | {day.partition('.')[0]} |"
        for line in lines[first:last]:
            rows.append(f"| {link} {line} {ends}")
            link, ends = "", " | | |"
        judged += lines[first:last]
    held = sum(line.endswith("| yes |") for line in judged)
    lines = [
        "# Claims",
        "",
        "A claim is an experiment, never an assertion about the code: arms (the method, its",
        "baselines, its ablations and negative controls), seeds that nothing was chosen on, and",
        "what must come out. `motet claim NAME` runs one, `motet claims` all; both exit with 1",
        "when something did not hold. Versions are on each claim's page.",
        "",
        f"{len(pages)} claims, {len(judged)} lines, of which {held} hold and "
        f"{len(judged) - held} do not.",
        "",
        "| claim | must come out | measured | holds | seeds | command | date |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]
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
