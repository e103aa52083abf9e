"""Arms times seeds, side by side: the same data, split and sampling within a seed."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, TypeAlias

from motet.core.errors import ConfigError, MotetError
from motet.core.store import write_atomic

Group: TypeAlias = Literal["method", "baseline", "ablation", "control", "bound", "option"]
Plain: TypeAlias = dict[str, Any]
# metric -> value of one run; a site's metric is named "PARTY/METRIC".
Values: TypeAlias = dict[str, float]


@dataclass(frozen=True)
class Arm:
    """One column of a comparison: a name, the recipe's plain values, what it is there for."""

    name: str
    values: Plain
    title: str = ""
    group: Group = "method"


@dataclass(frozen=True)
class Comparison:
    """Values of every arm, metric and seed."""

    title: str
    reference: str
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    values: Mapping[str, Sequence[Values]]
    command: str = ""
    expectations: Sequence[Plain] = field(default_factory=tuple)

    def of(self, arm: str, metric: str) -> list[float]:
        """One value per seed; raises ConfigError for an arm or metric that is not there."""
        try:
            return [values[metric] for values in self.values[arm]]
        except KeyError:
            raise ConfigError(f"the comparison has no {metric!r} of an arm {arm!r}") from None

    def mean(self, arm: str, metric: str) -> float:
        """Mean over seeds."""
        return fmean(self.of(arm, metric))

    def difference(self, arm: str, other: str, metric: str) -> list[float]:
        """``arm`` minus ``other``, seed by seed."""
        return [a - b for a, b in zip(self.of(arm, metric), self.of(other, metric), strict=True)]

    def plain(self, metrics: Sequence[str]) -> Plain:
        """What reports and tables show, as plain values."""
        arms = {
            arm.name: {
                "title": arm.title or arm.name,
                "group": arm.group,
                "values": {
                    metric: self.of(arm.name, metric)
                    for metric in metrics
                    if all(metric in values for values in self.values[arm.name])
                },
            }
            for arm in self.arms
        }
        return {
            "title": self.title,
            "reference": self.reference,
            "seeds": list(self.seeds),
            "metrics": list(metrics),
            "arms": arms,
            "expectations": list(self.expectations),
            "command": self.command,
        }


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds, 0 for a single one."""
    return stdev(values) if len(values) > 1 else 0.0


def compare(
    title: str,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    *,
    reference: str,
    folder: Path,
    jobs: int | None = None,
    command: str = "",
    tell: Callable[[Plain], None] = lambda note: None,
) -> Comparison:
    """Runs every arm on every seed, ``jobs`` at a time, and keeps each result in ``folder``.

    A result that is there already, of the same recipe and seed, is not computed again.
    tell: called with {"done", "of", "arm", "seed", "values"} after each. Raises MotetError.
    """
    names = [arm.name for arm in arms]
    if reference not in names:
        raise ConfigError(f"the reference {reference!r} is not an arm; there are {names}")
    if not seeds:
        raise ConfigError("a comparison needs at least one seed")
    found: dict[tuple[str, int], Values] = {}
    wanted: list[tuple[str, int, Plain, Path]] = []
    for seed in seeds:
        for arm in arms:
            recipe = {**arm.values, "seed": seed}
            path = folder / f"{arm.name}-{seed}-{_digest(recipe)}.json"
            if path.exists():
                found[arm.name, seed] = json.loads(path.read_text())
            else:
                wanted.append((arm.name, seed, recipe, path))
    done = len(found)
    for (name, seed), values in _run_all(wanted, jobs or os.cpu_count() or 1):
        found[name, seed] = values
        done += 1
        total = len(arms) * len(seeds)
        tell({"done": done, "of": total, "arm": name, "seed": seed, "values": values})
    values_by_arm = {name: [found[name, seed] for seed in seeds] for name in names}
    return Comparison(title, reference, tuple(seeds), tuple(arms), values_by_arm, command)


def _digest(recipe: Plain) -> str:
    text = json.dumps(recipe, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=4).hexdigest()


def _run_all(wanted: Sequence[tuple[str, int, Plain, Path]], jobs: int) -> Any:
    """Yields ((arm, seed), values) as they are done; processes of their own, one thread each."""
    if jobs == 1 or len(wanted) < 2:
        for name, seed, recipe, path in wanted:
            yield (name, seed), run_arm(recipe, path)
        return
    # Forked processes would inherit torch's thread pool in whatever state it is in.
    workers = ProcessPoolExecutor(
        min(jobs, len(wanted)), get_context("spawn"), initializer=_end_at_interrupt
    )
    with workers as pool:
        running: dict[Future[Values], tuple[str, int]] = {
            pool.submit(run_arm, recipe, path): (name, seed) for name, seed, recipe, path in wanted
        }
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _end_at_interrupt() -> None:
    # At Ctrl-C a worker ends at once and silently: the parent tells, and what is done is kept.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_arm(recipe: Plain, path: Path) -> Values:
    """One run; its last values are written to ``path`` and returned."""
    from motet.experiment.runner import run

    try:
        result = run(recipe)
    except MotetError as error:
        raise type(error)(f"{path.stem}: {error}") from None
    values = last_values(result.events)
    write_atomic(path, json.dumps(values, indent=1).encode())
    return values


def last_values(events: Sequence[Mapping[str, Any]]) -> Values:
    """The last value of each metric, the hub's by its name, a site's as "PARTY/METRIC".

    "best METRIC" is the hub's best over the rounds; "pair sites' rsum" and the like are means
    over the sites of one population; "MB down" and "MB up" are all frames of the run.
    """
    values: Values = {}
    frames = {"down": 0, "up": 0}
    for event in events:
        if event["event"] == "metric":
            hub = event["party"] == "hub"
            for name, (value, _) in event["metrics"].items():
                values[name if hub else f"{event['party']}/{name}"] = value
                if hub:
                    values[f"best {name}"] = max(value, values.get(f"best {name}", -math.inf))
        elif event["event"] == "replied":
            for way in frames:
                frames[way] += event[way]["frame"]
    values |= _population_means(values)
    return {**values, "MB down": frames["down"] / 1e6, "MB up": frames["up"] / 1e6}


def _population_means(values: Values) -> Values:
    gathered: dict[str, list[float]] = {}
    for name, value in values.items():
        party, slash, metric = name.partition("/")
        if slash:
            gathered.setdefault(f"{party.rsplit('-', 1)[0]} sites' {metric}", []).append(value)
    return {name: fmean(found) for name, found in gathered.items()}
