"""``motet run``, ``motet resume`` and ``motet report``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import typer

from motet.commands.common import newest_run, out, result, say, show_file, table
from motet.core.errors import ConfigError, StoreError
from motet.core.events import Event, read_events
from motet.experiment.build import build_parties
from motet.experiment.progress import Progress
from motet.experiment.report import write_comparison, write_report
from motet.experiment.report.run import Series, series_of
from motet.experiment.runner import COMPARISON, EVENTS, METRICS, MODEL, RECIPE, run
from motet.experiment.spec import Experiment, method_name, parse_experiment, read_recipe
from motet.experiment.standing import chief
from motet.experiment.targets import find_target, run_folder, same_recipe


def run_target(
    target: str, settings: Sequence[str], seed: int | None, folder: Path | None, quiet: bool
) -> None:
    """Runs a recipe or a method, or takes up its unfinished run."""
    found = find_target(target).changed(settings, seed)
    experiment = found.experiment()
    run_in(folder or run_folder(found.name, experiment), experiment, quiet)


def resume_run(folder: Path, quiet: bool) -> None:
    """Takes up the run in this folder."""
    path = folder / RECIPE
    if not path.exists():
        raise ConfigError(f"there is no run in {folder}: it has no {RECIPE}; write a run's folder")
    run_in(folder, parse_experiment(read_recipe(path), str(path)), quiet)


def run_in(folder: Path, experiment: Experiment, quiet: bool) -> None:
    """Runs in this folder from where it stands, then prints metrics and the report's path."""
    before = _events_of(folder) if same_recipe(folder, experiment) else []
    if _is_finished(folder, experiment, before):
        if not quiet:
            say(f"{folder} holds this run already, finished; remove the folder to run it anew")
    else:
        _run(folder, experiment, before, quiet)
    if not quiet:
        events = _events_of(folder)
        print_metrics(events)
        # By it one tells whether a run elsewhere came to the same.
        result(f"hash: {events[-1].get('hash') or 'none, since the hub has no model'}")
    result(f"report: {write_report(folder)}")


def _is_finished(folder: Path, experiment: Experiment, events: Sequence[Event]) -> bool:
    """Whether all is there: a process may be killed between its last round and the last file."""
    files = [METRICS] if experiment.server is None else [METRICS, MODEL]
    told = any(event["event"] == "finished" for event in events)
    return told and all((folder / name).exists() for name in files)


def _run(folder: Path, experiment: Experiment, before: Sequence[Event], quiet: bool) -> None:
    title = experiment.title or method_name(experiment.method)

    def announce(event: Event) -> None:
        # Not before: up to here a mistake in the recipe may still come to light.
        if event["event"] in ("started", "resumed") and not quiet:
            resumed = event["event"] == "resumed"
            say(f"{title}: {'going on with the unfinished run' if resumed else 'runs'} in {folder}")

    with Progress(quiet=quiet, before=before) as progress:
        try:
            parties = build_parties(experiment)
            run(experiment, folder=folder, listeners=[announce, progress], parties=parties)
        except KeyboardInterrupt:
            progress.close()
            say(f"stopped; {_how_to_go_on(folder)}", "yellow")
            raise typer.Exit(1) from None
        except StoreError:
            # Of all errors the one that is gone when the disk has room again.
            progress.close()
            if (folder / RECIPE).exists():
                say(_how_to_go_on(folder), "yellow")
            raise


def _how_to_go_on(folder: Path) -> str:
    if (folder / RECIPE).exists():
        return f"what is done is kept: `motet resume {folder}` goes on from there"
    return "nothing was done yet: the same command starts again"


def _events_of(folder: Path) -> list[Event]:
    path = folder / EVENTS
    return read_events(path) if path.exists() else []


def print_metrics(events: Sequence[Event]) -> None:
    """The hub's metrics, and the chief ones of the sites, from first to last round."""
    series = series_of(events)
    console = out()
    hub = {metric: curve for (party, metric), curve in series.items() if party == "hub"}
    if hub:
        numbers = ("first", "best", "last", "rows")
        shown = table("Server", ("metric", *numbers), right=numbers)
        for metric, curve in hub.items():
            shown.add_row(metric, *_figures(curve), f"{curve.rows:,}")
        console.print(shown)
    sites = {key: curve for key, curve in series.items() if key[0] != "hub"}
    if sites:
        console.print(_sites_table(sites))


def _sites_table(series: dict[tuple[str, str], Series]) -> object:
    numbers = ("first", "best", "last", "rows")
    shown = table("Sites, own models", ("site", "metric", *numbers), right=numbers)
    parties = list(dict.fromkeys(party for party, _ in series))
    for party in parties:
        own = {metric: curve for (name, metric), curve in series.items() if name == party}
        for metric in chief(own)[:1]:
            shown.add_row(party, metric, *_figures(own[metric]), f"{own[metric].rows:,}")
    return shown


def _figures(curve: Series) -> list[str]:
    values = [value for _, value in curve.points]
    return [f"{value:.1f}" for value in (curve.first[1], max(values), curve.last[1])]


def report_run(folder: Path | None, show: bool) -> None:
    """Writes the report of a run or a comparison, by default of the newest run."""
    where = newest_run() if folder is None else folder
    comparison = where / COMPARISON
    told = json.loads(comparison.read_text(encoding="utf-8")) if comparison.exists() else None
    if told is not None and not (where / RECIPE).exists():
        path = write_comparison(where, told)
    else:
        path = write_report(where, comparison=told)
    result(f"report: {path}")
    if show:
        show_file(path)
