"""What an audit found: attacks against defences, pictures, what was tried and what was not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any, TypeAlias

Plain: TypeAlias = dict[str, Any]

NONE = "none"
# Figures by the names in tables, with the decimals in which they are told.
FIGURES = {
    "psnr": ("PSNR, dB", 1),
    "ssim": ("SSIM", 2),
    "labels": ("labels right, %", 0),
    "auc": ("AUC", 3),
    "advantage": ("advantage", 2),
    "hits": ("found at 1 % false alarms", 2),
    "found": ("recognised, %", 1),
    "overlap": ("words in common, %", 1),
}


@dataclass(frozen=True)
class Cell:
    """One figure of one attack under one defence, measured on something several times.

    values: (seed, value) of every picture, text or site. chance: the same of a guess that sees
    nothing of the upload. on: what was attacked, in a few words. control: whether the site had
    never seen the rows in question, so that the attack ought to fail. intervals: per seed, where 95
    % of bootstrap draws lie, for figures of a whole group of rows.
    """

    attack: str
    on: str
    figure: str
    defence: str
    values: tuple[tuple[int, float], ...]
    chance: tuple[tuple[int, float], ...]
    control: bool = False
    intervals: tuple[tuple[float, float], ...] = ()

    @property
    def mean(self) -> float:
        """Mean over seeds of the means within them."""
        return fmean(_by_seed(self.values)) if self.values else math.nan

    @property
    def guess(self) -> float:
        """The same of the guess."""
        return fmean(_by_seed(self.chance)) if self.chance else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; over single values where there is one seed alone."""
        means = _by_seed(self.values)
        found = means if len(means) > 1 else [value for _, value in self.values]
        return stdev(found) if len(found) > 1 else math.nan


def _by_seed(values: Sequence[tuple[int, float]]) -> list[float]:
    groups: dict[int, list[float]] = {}
    for seed, value in values:
        groups.setdefault(seed, []).append(value)
    return [fmean(group) for group in groups.values()]


@dataclass(frozen=True)
class Shot:
    """One picture beside what an attack made of the upload: both as data URLs."""

    attack: str
    on: str
    defence: str
    original: str
    made: str
    psnr: float


@dataclass(frozen=True)
class Gap:
    """Something that was not tried, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class AuditResult:
    """All that an audit has to say. protection: what the recipe itself has between sites and hub.

    seen: what left which site, in words. limits: what the figures do not show.
    """

    title: str
    method: str
    seeds: tuple[int, ...]
    protection: tuple[str, ...]
    defences: tuple[str, ...]
    seen: tuple[str, ...]
    cells: tuple[Cell, ...]
    shots: tuple[Shot, ...]
    gaps: tuple[Gap, ...]
    limits: tuple[str, ...]
    options: Plain = field(default_factory=dict)
    seconds: float = 0.0

    def of(self, attack: str, figure: str, defence: str = NONE) -> list[Cell]:
        """The cells of this attack, figure and defence, one for each thing attacked."""
        return [
            cell
            for cell in self.cells
            if (cell.attack, cell.figure, cell.defence) == (attack, figure, defence)
        ]

    def plain(self) -> Plain:
        """Plain values for a JSON file, with mean and spread of every cell."""
        cells = [
            {**asdict(cell), "mean": cell.mean, "spread": cell.spread, "guess": cell.guess}
            for cell in self.cells
        ]
        found: Plain = _finite({**asdict(self), "cells": cells})
        return found

    def rows(self) -> Iterator[Row]:
        """The table, a row per attack, thing attacked and figure."""
        lines: dict[tuple[str, str, str, bool], dict[str, Cell]] = {}
        for cell in self.cells:
            key = (cell.on, cell.attack, cell.figure, cell.control)
            lines.setdefault(key, {})[cell.defence] = cell
        for (on, attack, figure, control), cells in lines.items():
            yield Row(on, attack, figure, control, cells)


@dataclass(frozen=True)
class Row:
    """One line of the table: defence -> cell."""

    on: str
    attack: str
    figure: str
    control: bool
    cells: Mapping[str, Cell]

    @property
    def name(self) -> str:
        """The figure as a reader calls it."""
        return FIGURES[self.figure][0]

    def told(self, defence: str, plus_minus: str = "±") -> str:
        """Mean and spread under this defence; "–" where it was not measured."""
        cell = self.cells.get(defence)
        if cell is None:
            return "–"
        text = _number(cell.mean, self.figure)
        if not math.isnan(cell.spread):
            return f"{text} {plus_minus} {_number(cell.spread, self.figure)}"
        if len(cell.intervals) == 1:
            low, high = (_number(end, self.figure) for end in cell.intervals[0])
            return f"{text} ({low} to {high})"
        return text

    @property
    def guess(self) -> str:
        """What a guess comes to, without a defence."""
        first = next(iter(self.cells.values()))
        return _number(first.guess, self.figure)


def _number(value: float, figure: str) -> str:
    return "–" if math.isnan(value) else f"{value:.{FIGURES[figure][1]}f}".replace("-", "−")


def joined(results: Sequence[AuditResult]) -> AuditResult:
    """Audits of one recipe on several seeds as one; words that repeat are told once."""
    first = results[0]
    merged: dict[tuple[str, str, str, str, bool], Cell] = {}
    for cell in (cell for result in results for cell in result.cells):
        key = (cell.attack, cell.on, cell.figure, cell.defence, cell.control)
        old = merged.get(key)
        values = cell.values if old is None else (*old.values, *cell.values)
        chance = cell.chance if old is None else (*old.chance, *cell.chance)
        intervals = cell.intervals if old is None else (*old.intervals, *cell.intervals)
        merged[key] = Cell(
            cell.attack, cell.on, cell.figure, cell.defence, values, chance, cell.control, intervals
        )
    return AuditResult(
        title=first.title,
        method=first.method,
        seeds=tuple(seed for result in results for seed in result.seeds),
        protection=first.protection,
        defences=first.defences,
        seen=_once(text for result in results for text in result.seen),
        cells=tuple(merged.values()),
        shots=tuple(shot for result in results for shot in result.shots),
        gaps=_once(gap for result in results for gap in result.gaps),
        limits=_once(text for result in results for text in result.limits),
        options=first.options,
        seconds=sum(result.seconds for result in results),
    )


def _once(items: Iterator[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(items))


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
