"""Where a run stands, added up from its events, and figures in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from motet.core.events import Event

# What a reader looks for first; a model that has none of these shows what it has.
CHIEF = ("rsum", "accuracy", "cat@10")
SHOWN = 3


@dataclass
class Standing:
    """Where a run stands: what its events add up to.

    round, of: number of the round that runs, from 0, and how many there are. metrics: the hub's
    last ones; others: metric -> values of sites in the newest report. failed: party -> failures in
    this round. down, up: bytes of all frames. began: when the first round since
    the last start began.
    """

    loop: int = 0
    round: int = -1
    of: int = 0
    done: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    others: dict[str, list[float]] = field(default_factory=dict)
    answers: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    down: int = 0
    up: int = 0
    first: int = 0
    began: float = 0.0
    round_began: float = 0.0

    def add(self, event: Event) -> None:
        """Takes one more event into account."""
        kind = event["event"]
        if kind == "round":
            self._begin(event)
        elif kind == "replied":
            self.answers += 1
            self.down += event["down"]["frame"]
            self.up += event["up"]["frame"]
        elif kind == "failed":
            self.failed[event["site"]] = self.failed.get(event["site"], 0) + 1
        elif kind == "metric":
            self._measured(event)
        elif kind == "finished":
            self.done = True

    def _begin(self, event: Event) -> None:
        if not self.began or event["loop"] != self.loop:
            self.first, self.began = event["round"], event["time"]
        self.loop, self.round, self.of = event["loop"], event["round"], event["of"]
        self.round_began = event["time"]
        self.answers = 0
        self.failed = {}
        self.others = {}

    def _measured(self, event: Event) -> None:
        for name, (value, _) in event["metrics"].items():
            if event["party"] == "hub":
                self.metrics[name] = value
                self.best[name] = max(value, self.best.get(name, value))
            else:
                self.others.setdefault(name, []).append(value)

    def new_start(self) -> None:
        """Forgets when the rounds began: those before the last start say nothing of it."""
        self.began = 0.0

    def left(self, now: float) -> float | None:
        """Seconds until the last round ends, by the mean round since the last start, or None.

        The round that runs counts as far as it has come.
        """
        rounds = self.of if self.done else self.round
        behind = rounds - self.first
        if behind < 1:
            return None
        mean = (self.round_began - self.began) / behind
        gone = min(now - self.round_began, mean)
        return max(0.0, (self.of - rounds) * mean - gone)

    def figures(self) -> str:
        """The chief metrics in words: the hub's, or the mean over sites where it has none."""
        if self.metrics:
            return "  ".join(f"{name} {self.metrics[name]:.1f}" for name in chief(self.metrics))
        return "  ".join(
            f"sites' {name} {fmean(self.others[name]):.1f}" for name in chief(self.others)
        )

    def troubles(self) -> str:
        """The sites that failed in this round, each with how often."""
        names = [f"{name} x{n}" if n > 1 else name for name, n in sorted(self.failed.items())]
        return f"failed: {', '.join(names)}" if names else ""


def chief(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics to show where there is room for a few."""
    plain = [name for name in metrics if "@" not in name or name in CHIEF]
    return [name for name in CHIEF if name in metrics] or plain[:SHOWN]


def duration(seconds: float) -> str:
    """Seconds in words: "0.4 s", "12 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size_of(count: int) -> str:
    """Bytes in words, in powers of 1000: "812 B", "4.1 kB", "12.3 MB"."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
