"""A run as its folder tells it: status, curves of hub and sites, who took part, what failed."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from motet.core.errors import ConfigError, StoreError
from motet.core.events import Event, read_events
from motet.experiment.spec import read_recipe

HUB = "hub"
# What a party is judged by, the first of these that it reports.
PREFERRED = ("rsum", "accuracy", "cat@10")
Plain = dict[str, Any]
Key = tuple[str, str]


@dataclass(frozen=True)
class Series:
    """One metric of one party: (rounds done, value) in order, and over how many rows."""

    points: tuple[tuple[int, float], ...]
    rows: int = 0

    @property
    def first(self) -> tuple[int, float]:
        """The first point whose value is finite, or NaN."""
        return next(iter(self._finite), (0, math.nan))

    @property
    def last(self) -> tuple[int, float]:
        """The last point whose value is finite, or NaN."""
        return next(iter(reversed(self._finite)), (0, math.nan))

    @property
    def _finite(self) -> list[tuple[int, float]]:
        return [point for point in self.points if math.isfinite(point[1])]


@dataclass(frozen=True)
class RunFiles:
    """What a report needs of a run folder."""

    recipe: Plain
    recipe_text: str
    environment: Plain
    events: Sequence[Event]
    gallery: Plain
    preview: Plain

    @cached_property
    def series(self) -> dict[Key, Series]:
        """(party, metric) -> its curve."""
        return series_of(self.events)

    @cached_property
    def sites(self) -> dict[str, Plain]:
        """Site -> {"modalities", "rows", "model"}, as far as the events tell."""
        found: dict[str, Plain] = {}
        for event in self.events:
            if event["event"] == "sites":
                found |= event["sites"]
            elif event["event"] in ("replied", "failed"):
                found.setdefault(event["site"], {"modalities": [], "rows": None, "model": ""})
        return found

    @cached_property
    def rounds(self) -> tuple[int, int]:
        """(rounds done, rounds planned) over all loops that have begun."""
        planned: dict[int, int] = {}
        done, before = 0, 0
        for event in self.events:
            if event["event"] == "round":
                planned[event["loop"]] = event["of"]
                before = sum(planned.values()) - event["of"]
                done = max(done, before + event["round"])
            elif event["event"] == "checkpoint":
                done = max(done, before + event["round"])
        return done, sum(planned.values())

    @cached_property
    def status(self) -> Plain:
        """{"state": finished, stopped, unfinished or new; "error", "hash", "seconds", "started"}.

        seconds: None for a run that was resumed, since it stood still in between.
        """
        kinds = Counter(event["event"] for event in self.events)
        begun = next((e["time"] for e in self.events if e["event"] == "started"), None)
        end = next((e for e in reversed(self.events) if e["event"] in ("finished", "stopped")), {})
        state = end.get("event", "unfinished" if self.events else "new")
        whole = state == "finished" and begun is not None and not kinds["resumed"]
        return {
            "state": state,
            "error": end.get("error", ""),
            "hash": end.get("hash", ""),
            "seconds": end["time"] - begun if whole else None,
            "started": begun,
            "resumed": kinds["resumed"],
        }

    @property
    def parties(self) -> list[str]:
        """Sites that have a curve, in the order in which they are known."""
        return [site for site in self.sites if self.own_metric(site)]

    def own_metric(self, party: str) -> str:
        """The metric that this party is judged by, or "" when it reports none."""
        names = [metric for owner, metric in self.series if owner == party]
        return next((name for name in PREFERRED if name in names), names[0] if names else "")

    def metrics_of(self, party: str) -> dict[str, Series]:
        """All curves of one party."""
        return {metric: curve for (owner, metric), curve in self.series.items() if owner == party}

    @property
    def failures(self) -> list[Plain]:
        """Failed requests, equal ones together: round, site, op, error, times."""
        counted: Counter[tuple[int, str, str, str]] = Counter(
            (event["round"], event["site"], event["op"], event["error"])
            for event in self.events
            if event["event"] == "failed"
        )
        return [
            {"round": number + 1, "site": site, "op": op, "error": error, "times": times}
            for (number, site, op, error), times in counted.items()
        ]


def read_run(folder: Path) -> RunFiles:
    """Reads what is there; raises ConfigError when it is no run, StoreError for damaged files."""
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise ConfigError(f"there is no run in {folder}: it has no recipe.yaml")
    events = folder / "events.jsonl"
    return RunFiles(
        recipe=read_recipe(path),
        recipe_text=path.read_text(encoding="utf-8"),
        environment=_read_json(folder / "environment.json"),
        events=read_events(events) if events.exists() else [],
        gallery=_read_json(folder / "gallery.json"),
        preview=_read_json(folder / "preview.json"),
    )


def _read_json(path: Path) -> Plain:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"cannot read {path}: {error}; remove it, and the report goes without"
        ) from None
    if not isinstance(content, dict):
        raise StoreError(f"{path} must hold one object; remove it, and the report goes without")
    return content


def series_of(events: Sequence[Event]) -> dict[Key, Series]:
    """Curves of all parties and metrics, at each party's last named test point."""
    points: dict[Key, dict[str, dict[int, float]]] = {}
    rows: dict[Key, int] = {}
    for x, event in _timed_metrics(events):
        for name, (value, n) in event["metrics"].items():
            key = event["party"], name
            own = points.setdefault(key, {})
            # The point that was reported last comes last.
            own[event["point"]] = {**own.pop(event["point"], {}), x: float(value)}
            rows[key] = n
    found: dict[Key, Series] = {}
    for key, by_point in points.items():
        last = list(by_point.values())[-1]
        found[key] = Series(tuple(sorted(last.items())), rows[key])
    return found


def _timed_metrics(events: Sequence[Event]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Metric events with the number of rounds done by then, counted through all loops."""
    before, of, loop = 0, 0, -1
    for event in events:
        if event["event"] == "round" and event["loop"] != loop:
            before, of, loop = before + of, event["of"], event["loop"]
        elif event["event"] == "metric":
            yield before + min(event["round"] + 1, of), event
