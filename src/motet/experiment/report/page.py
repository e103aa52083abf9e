"""The report: one HTML file that needs nothing else, made from what is in a run folder."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from motet.core.errors import ConfigError
from motet.core.store import write_atomic
from motet.experiment.report.arms import arms_sentence, arms_view
from motet.experiment.report.parts import (
    curve_charts,
    hues,
    key_figures,
    result_sentence,
    site_rows,
)
from motet.experiment.report.pictures import gallery_view, preview_view
from motet.experiment.report.protection import protection_view
from motet.experiment.report.run import RunFiles, read_run
from motet.experiment.report.text import day, duration, plural
from motet.experiment.report.traffic import traffic_of, traffic_view

REPORT = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
MOST_FAILURES = 50
Plain = dict[str, Any]


def write_report(run_folder: Path, *, comparison: Mapping[str, Any] | None = None) -> Path:
    """Writes report.html into a run folder, finished or not, and returns its path.

    comparison: ``Comparison.plain(...)``, for a section on arms and seeds. Equal folders give
    equal reports. Raises ConfigError when there is no run, StoreError for files that cannot be
    read or written.
    """
    view = run_view(read_run(run_folder))
    if comparison is not None:
        view["sentences"].append(arms_sentence(comparison))
        view["arms"] = arms_view(comparison)
    return _write(run_folder, view)


def write_comparison(folder: Path, comparison: Mapping[str, Any]) -> Path:
    """Writes report.html for a comparison alone and returns its path; raises StoreError."""
    view: Plain = {
        "title": comparison["title"],
        "sentences": [arms_sentence(comparison)],
        "run": None,
        "arms": arms_view(comparison),
    }
    return _write(folder, view)


def _write(folder: Path, view: Plain) -> Path:
    path = folder / REPORT
    write_atomic(path, render(view).encode())
    return path


def render(view: Mapping[str, Any]) -> str:
    """The page; everything that comes from data or recipes is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(view)


def run_view(run: RunFiles) -> Plain:
    """All that the template shows of a run."""
    traffic = traffic_of(run.events)
    failures = run.failures
    return {
        "title": run.recipe.get("title") or _method(run)["title"],
        "sentences": [result_sentence(run)],
        "arms": None,
        "run": {
            "method": _method(run),
            "facts": _facts(run),
            "status": _status(run),
            "figures": key_figures(run, traffic),
            "gallery": gallery_view(run.gallery),
            "charts": curve_charts(run),
            "hues": hues(run),
            "sites": site_rows(run, traffic),
            "traffic": traffic_view(list(run.sites), traffic) if traffic.down.messages else None,
            "protection": protection_view(run),
            "preview": preview_view(run.preview),
            "failures": failures[:MOST_FAILURES],
            "more_failures": max(len(failures) - MOST_FAILURES, 0),
            "recipe": run.recipe_text,
            "recipe_url": _text_url(run.recipe_text),
            "environment": run.environment,
            "seed": run.recipe.get("seed", 0),
            "hash": run.status["hash"],
            "strict": bool(_part(run, "engine").get("strict")),
        },
    }


def _part(run: RunFiles, name: str) -> Plain:
    part = run.recipe.get(name)
    return part if isinstance(part, dict) else {}


def _method(run: RunFiles) -> Plain:
    """The method's name and what its own page says of paper and traffic."""
    from motet.methods.registry import method_class

    given = run.recipe.get("method")
    name = str(given.get("name", "")) if isinstance(given, dict) else str(given or "")
    try:
        method = method_class(name)
    except ConfigError:
        # A method of a package that is not installed here: the run can be shown all the same.
        return {"name": name, "title": name, "paper": "", "travels": ""}
    about = method.about()
    return {
        "name": name,
        "title": method.__name__,
        "paper": about.get("paper", ""),
        "travels": about.get("travels", ""),
    }


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    """Term and text of the line under the title."""
    done, planned = run.rounds
    data, status = _part(run, "data"), run.status
    facts = [("method", _method(run)["title"]), ("data", str(data.get("name", "")))]
    if data.get("public"):
        # The unit names a column: its own name is a word for it, but for ids of pictures.
        unit = str(data.get("unit") or "row").removesuffix("_id")
        facts.append(("public set", plural(int(data["public"]), unit)))
    facts.append(("rounds", f"{done}" if done == planned else f"{done} of {planned}"))
    facts.append(("seed", str(run.recipe.get("seed", 0))))
    if status["seconds"] is not None:
        facts.append(("took", duration(status["seconds"])))
    if status["resumed"]:
        facts.append(("resumed", plural(status["resumed"], "time")))
    if status["started"] is not None:
        facts.append(("date", day(status["started"])))
    return [(term, text) for term, text in facts if text]


def _status(run: RunFiles) -> Plain:
    """State of the run and, where it is not finished, what to say of it."""
    done, planned = run.rounds
    state, error = run.status["state"], run.status["error"]
    told = {
        "finished": "",
        "stopped": f"This run stopped after {done} of {planned} rounds: {error}"
        if planned
        else f"This run stopped before its first round: {error}",
        "unfinished": f"This run is not finished: {done} of {planned} rounds are done so far.",
        "new": "This run has not begun.",
    }
    return {"state": state, "text": told[state]}


def _text_url(text: str) -> str:
    return f"data:text/yaml;charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"
