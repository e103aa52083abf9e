"""``motet compare``, ``motet claim`` and ``motet demo``: arms times seeds."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import typer

from motet.commands.common import RUNS, out, result, say, show_file, table
from motet.core.errors import ConfigError
from motet.core.store import write_atomic
from motet.experiment.compare import Arm, Comparison, compare, spread
from motet.experiment.progress import ArmsProgress, Progress
from motet.experiment.report import write_comparison
from motet.experiment.runner import COMPARISON
from motet.experiment.standing import chief
from motet.experiment.targets import Target, find_target

TRAFFIC = ("MB down", "MB up")


def compare_targets(
    targets: Sequence[str],
    arms: Sequence[str],
    settings: Sequence[str],
    seeds: Sequence[int],
    reference: str | None,
    metrics: Sequence[str],
    jobs: int | None,
    folder: Path | None,
) -> None:
    """Compares recipes, methods and changes to the first of them; prints and writes the outcome."""
    made = arms_of(targets, arms, settings)
    where = folder or RUNS / f"compare-{made[0].name}"
    title = " and ".join([made[0].title, f"{len(made) - 1} more"][: len(made)])
    with running(f"motet compare {shlex.join(targets)}", len(made) * len(seeds)) as tell:
        comparison = compare(
            title,
            made,
            seeds,
            reference=reference or made[0].name,
            folder=where / "arms",
            jobs=jobs,
            command=_command(targets, arms, settings, seeds),
            tell=tell,
        )
    chosen = list(metrics) or usual_metrics(comparison)
    out().print(arms_table(comparison, chosen))
    result(f"report: {write_outcome(where, comparison, chosen)}")


def arms_of(targets: Sequence[str], arms: Sequence[str], settings: Sequence[str]) -> list[Arm]:
    """An arm per target, then one per name in "NAME:field=value", changes to the first target.

    Every arm is checked before the first one runs; raises ConfigError that names the arm.
    """
    made = {name: find_target(name).changed(settings) for name in targets}
    base = next(iter(made.values()))
    named: dict[str, Target] = {target.name: target for target in made.values()}
    if len(named) < len(targets):
        raise ConfigError(f"two arms are named alike: {', '.join(t.name for t in made.values())}")
    changes: dict[str, list[str]] = {}
    for text in arms:
        name, colon, setting = text.partition(":")
        if not colon or "=" not in setting or not _is_name(name):
            raise ConfigError(f"--arm {text!r}: write NAME:FIELD=VALUE, as in mean:data.public=100")
        changes.setdefault(name, []).append(setting)
    for name, own in changes.items():
        if name in named:
            raise ConfigError(f"--arm {name}: there is an arm of this name; write another one")
        named[name] = base.changed(own)
    return [_arm(name, target, changes.get(name, [])) for name, target in named.items()]


def _is_name(text: str) -> bool:
    return text.replace("-", "").replace("_", "").isalnum()


def _arm(name: str, target: Target, changes: Sequence[str]) -> Arm:
    try:
        experiment = target.experiment()
    except ConfigError as error:
        raise ConfigError(f"arm {name}: {error}") from None
    return Arm(name, dict(target.values), ", ".join(changes) or experiment.title or name)


def _command(
    targets: Sequence[str], arms: Sequence[str], settings: Sequence[str], seeds: Sequence[int]
) -> str:
    words = ["motet", "compare", *targets]
    words += [word for arm in arms for word in ("--arm", arm)]
    words += [word for setting in settings for word in ("--set", setting)]
    return shlex.join([*words, "--seeds", ",".join(map(str, seeds))])


def usual_metrics(comparison: Comparison) -> list[str]:
    """What the reference has of these: the server's chief metrics, populations', the traffic."""
    known = comparison.values[comparison.reference][0]
    plain = [name for name in known if "/" not in name and not name.startswith("best ")]
    own = {name: 0 for name in plain if " sites' " not in name and name not in TRAFFIC}
    theirs: dict[str, dict[str, int]] = {}
    for name in plain:
        population, found, metric = name.partition(" sites' ")
        if found:
            theirs.setdefault(population, {})[metric] = 0
    sites = [f"{name} sites' {chief(metrics)[0]}" for name, metrics in theirs.items()]
    return [*(chief(own) if own else []), *sites, *TRAFFIC]


def arms_table(comparison: Comparison, metrics: Sequence[str]) -> Any:
    """Mean and spread over seeds, and what each arm's first metric has above the reference's."""
    base, first = comparison.reference, metrics[0]
    gap = f"{first} above {base}"
    shown = table(comparison.title, ("arm", *metrics, gap), right=(*metrics, gap))
    for arm in comparison.arms:
        has = [all(m in values for values in comparison.values[arm.name]) for m in metrics]
        cells = [
            _figure(comparison.of(arm.name, m), wide=m not in TRAFFIC) if known else "–"
            for m, known in zip(metrics, has, strict=True)
        ]
        paired = has[0] and arm.name != base and first in comparison.values[base][0]
        gaps = comparison.difference(arm.name, base, first) if paired else []
        shown.add_row(arm.name, *cells, _figure(gaps, sign="+") if gaps else "–")
    seeds = ", ".join(map(str, comparison.seeds))
    shown.caption = f"mean ± standard deviation over seeds {seeds}; differences paired by seed"
    shown.caption_justify = "left"
    return shown


def _figure(values: Sequence[float], sign: str = "", wide: bool = True) -> str:
    more = f" ± {spread(values):.1f}" if wide and len(values) > 1 else ""
    return f"{fmean(values):{sign}.1f}{more}"


def write_outcome(folder: Path, comparison: Comparison, metrics: Sequence[str]) -> Path:
    """Writes a comparison as JSON and as a report, whose path is returned."""
    plain = comparison.plain(metrics)
    write_atomic(folder / COMPARISON, json.dumps(plain, indent=1).encode())
    return write_comparison(folder, plain)


def run_the_demo(folder: Path | None, jobs: int | None, show: bool) -> None:
    """Runs the demo and tells where its report is."""
    from motet.claims.demo import run_demo

    with Progress() as progress, running("motet demo") as tell:
        path = run_demo(folder or RUNS / "demo", jobs=jobs, listeners=[progress], tell=tell)
    result(f"report: {path}")
    if show:
        show_file(path)


@contextmanager
def running(command: str, of: int = 0) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Shows how far arms and seeds are; when stopped, says that nothing done is lost."""
    with ArmsProgress(of=of) as progress:
        try:
            yield progress
        except KeyboardInterrupt:
            progress.close()
            say(
                f"stopped; finished runs are kept, and `{command} ...` goes on with the rest",
                "yellow",
            )
            raise typer.Exit(1) from None
