"""Arms times seeds, side by side: the same data, split and sampling within a seed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal, TypeAlias

import torch

from motet.core.errors import ConfigError, MotetError
from motet.core.store import write_atomic

Group: TypeAlias = Literal["method", "baseline", "ablation", "control", "bound", "option"]
Plain: TypeAlias = dict[str, Any]
# metric -> value of one run; a site's metric is named "PARTY/METRIC".
Values: TypeAlias = dict[str, float]
# What gives an arm's figures where its values are no recipe, from these values and "seed".
Measure: TypeAlias = Callable[[Plain], Values]
# "METRIC@5" is the mean of the last five reports.
LAST = (3, 5, 10)


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
    measure: Measure | None = None,
    jobs: int | None = None,
    command: str = "",
    tell: Callable[[Plain], None] = lambda note: None,
) -> Comparison:
    """Runs every arm on every seed, ``jobs`` at a time, and keeps each result in ``folder``.

    A result that is there already, of the same recipe and seed, is not computed again.
    measure: a module's own function, for arms that are no recipes; called on one thread.
    tell: called with {"done", "of", "arm", "seed", "values"} after each. Raises MotetError.
    """
    names = [arm.name for arm in arms]
    if reference not in names:
        raise ConfigError(f"the reference {reference!r} is not an arm; there are {names}")
    if not seeds:
        raise ConfigError("a comparison needs at least one seed")
    found: dict[tuple[str, int], Values] = {}
    wanted: list[Job] = []
    what = {} if measure is None else {"measure": f"{measure.__module__}.{measure.__qualname__}"}
    for seed in seeds:
        for arm in arms:
            recipe = {**arm.values, "seed": seed}
            path = folder / f"{arm.name}-{seed}-{_digest({**what, **recipe})}.json"
            if path.exists():
                found[arm.name, seed] = json.loads(path.read_text())
            else:
                wanted.append(Job(arm.name, seed, recipe, path, measure))
    done = len(found)
    for job, values in _run_all(wanted, jobs or os.cpu_count() or 1):
        found[job.arm, job.seed] = values
        done += 1
        total = len(arms) * len(seeds)
        tell({"done": done, "of": total, "arm": job.arm, "seed": job.seed, "values": values})
    values_by_arm = {name: [found[name, seed] for seed in seeds] for name in names}
    return Comparison(title, reference, tuple(seeds), tuple(arms), values_by_arm, command)


def _digest(recipe: Plain) -> str:
    text = json.dumps(recipe, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=4).hexdigest()


@dataclass(frozen=True)
class Job:
    """One arm on one seed, and the file for what comes out."""

    arm: str
    seed: int
    values: Plain
    path: Path
    measure: Measure | None = None

    def run(self) -> Values:
        """The values, which are then in the file as well."""
        if self.measure is None:
            return run_arm(self.values, self.path)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            found = self.measure(self.values)
        finally:
            torch.set_num_threads(threads)
        write_atomic(self.path, json.dumps(found, indent=1).encode())
        return found


def _run_all(wanted: Sequence[Job], jobs: int) -> Iterator[tuple[Job, Values]]:
    """The jobs and their values as they are done; processes of their own, one thread each."""
    if jobs == 1 or len(wanted) < 2:
        for job in wanted:
            yield job, job.run()
        return
    # Forked processes would inherit torch's thread pool in whatever state it is in.
    workers = ProcessPoolExecutor(
        min(jobs, len(wanted)), get_context("spawn"), initializer=_end_at_interrupt
    )
    with workers as pool:
        running = {pool.submit(job.run): job for job in wanted}
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
    """What a run comes to, by metric: the hub's by its name, a site's as "PARTY/METRIC".

    Each is the last value reported; "METRIC@5" (also @3 and @10) is the mean of the last five
    reports and "best METRIC" the hub's best. A test point other than "after local training" is
    named: "SITE/accuracy as received". "pair sites' rsum" is the mean over the sites of one
    population, "sites' rsum" over all. "log NAME" is a number that the method logged. "MB down"
    and "MB up" are all frames of training, "MB tests" those of evaluation at the sites.
    """
    series = _with_means(_series(events))
    values: Values = {}
    for name, by_round in series.items():
        reports = list(by_round.values())
        values[name] = reports[-1]
        for last in LAST:
            values[f"{name}@{last}"] = fmean(reports[-last:])
        if "/" not in name and "sites' " not in name:
            values[f"best {name}"] = max(reports)
    return {**values, **_traffic(events)}


def _series(events: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Metric -> number of the report -> value."""
    series: dict[str, dict[int, float]] = {}
    report = 0
    for event in events:
        if event["event"] == "round":
            report += 1
        elif event["event"] == "metric":
            hub = event["party"] == "hub"
            usual = hub or event["point"] == "after local training"
            point = "" if usual else f" {event['point']}"
            for name, (value, _) in event["metrics"].items():
                full = name if hub else f"{event['party']}/{name}{point}"
                series.setdefault(full, {})[report] = value
        elif event["event"] == "log":
            for name, value in event.items():
                if name not in ("event", "time", "round") and isinstance(value, int | float):
                    series.setdefault(f"log {name}", {})[report] = float(value)
    return series


def _with_means(series: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    """The series, and those of the means over the sites of each population and over all."""
    gathered: dict[str, dict[int, list[float]]] = {}
    for name, by_round in series.items():
        party, slash, metric = name.partition("/")
        for group in (f"{party.rsplit('-', 1)[0]} sites' {metric}", f"sites' {metric}"):
            for report, value in by_round.items() if slash else ():
                gathered.setdefault(group, {}).setdefault(report, []).append(value)
    means = {
        group: {report: fmean(values) for report, values in by_round.items()}
        for group, by_round in gathered.items()
    }
    return {**series, **means}


def _traffic(events: Sequence[Mapping[str, Any]]) -> Values:
    frames = {"MB down": 0, "MB up": 0, "MB tests": 0}
    for event in events:
        if event["event"] == "replied":
            for way in ("down", "up"):
                name = "MB tests" if event["op"] == "evaluate" else f"MB {way}"
                frames[name] += event[way]["frame"]
    return {name: count / 1e6 for name, count in frames.items()}
