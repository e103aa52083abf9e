"""An audit as a page, as tables in Markdown, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from motet.audit.outcome import NONE, AuditResult, Cell, Row, Shot
from motet.core.store import write_atomic
from motet.experiment.report.page import TEMPLATES as HOUSE
from motet.experiment.report.text import duration, listed, plural

Plain: TypeAlias = dict[str, Any]

TEMPLATES = Path(__file__).parent / "templates"
JSON = "audit.json"
PAGE = "audit.html"
MOST_PICTURES = 3
PICTURES = (
    "PSNR and SSIM of what was made against the true pictures, higher is closer; beside them those "
    "of the mean public picture, which needs no upload."
)
MEMBERS = (
    "Rows that the site trained on against as many that it did not, drawn alike. AUC 0.5 and "
    "advantage near chance mean that the upload does not tell them apart."
)
TEXTS = "How often what was sent for a text leads back to it, beside a guess."


def write_audit(result: AuditResult, folder: Path) -> Path:
    """Writes audit.json and audit.html into the folder; returns the page's path."""
    text = json.dumps(result.plain(), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / JSON, text.encode())
    write_atomic(folder / PAGE, page(result).encode())
    return folder / PAGE


def page(result: AuditResult) -> str:
    """The audit as one HTML file that needs nothing else; all that comes from data is escaped."""
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES, HOUSE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    view = {
        "audit": result,
        "sentences": sentences(result),
        "facts": _facts(result),
        "defences": (NONE, *result.defences),
        "blocks": [_block(result, on, rows) for on, rows in by_target(result)],
    }
    return environment.get_template("audit.html.j2").render(view)


def _facts(result: AuditResult) -> list[tuple[str, str]]:
    return [
        ("method", result.method),
        ("seeds", ", ".join(map(str, result.seeds))),
        ("defences", listed(list(result.defences)) or "none"),
        ("gradients per inversion", str(result.options.get("budget", "–"))),
        ("took", duration(result.seconds)),
    ]


def by_target(result: AuditResult) -> list[tuple[str, list[Row]]]:
    """Rows of the table by what they attack, what is alike beneath one title."""
    found: dict[str, list[Row]] = {}
    for row in result.rows():
        found.setdefault(row.on, []).append(row)
    return list(found.items())


def _block(result: AuditResult, on: str, rows: Sequence[Row]) -> Plain:
    defences = (NONE, *result.defences)
    figures = {row.figure for row in rows}
    note = PICTURES if "psnr" in figures else MEMBERS if "auc" in figures else TEXTS
    lines = _shots([shot for shot in result.shots if shot.on == on])
    return {
        "on": on[:1].upper() + on[1:],
        "note": note,
        "rows": [
            {
                "attack": row.attack,
                "name": row.name,
                "chance": row.guess,
                "control": row.control,
                "cells": [row.told(name) for name in defences],
            }
            for row in rows
        ],
        "shots": lines,
    }


def _shots(shots: Sequence[Shot]) -> list[Plain]:
    """A line per picture and attack: the true picture, and what was made of it by defence."""
    chosen = list(dict.fromkeys(shot.original for shot in shots))[:MOST_PICTURES]
    lines: dict[tuple[int, str], Plain] = {}
    for shot in shots:
        if shot.original in chosen:
            key = (chosen.index(shot.original), shot.attack)
            line = {"attack": shot.attack, "original": shot.original, "made": {}}
            lines.setdefault(key, line)["made"][shot.defence] = shot
    return [lines[key] for key in sorted(lines, key=lambda key: key[0])]


def sentences(result: AuditResult) -> list[str]:
    """The worst that was found, in words: of pictures, of texts and of members."""
    told: list[str] = []
    bare = [cell for cell in result.cells if cell.defence == NONE and not cell.control]
    for figure, say in (("psnr", _say_pictures), ("found", _say_texts), ("auc", _say_members)):
        cells = [cell for cell in bare if cell.figure == figure]
        if cells:
            told.append(say(max(cells, key=lambda cell: cell.mean), result))
    return told or ["No attack of this audit fits what leaves the sites; see what was not tried."]


def _say_pictures(worst: Cell, result: AuditResult) -> str:
    best = _best_defence(worst, result)
    return (
        f"Pictures: {worst.attack} comes to {worst.mean:.1f} dB without a further defence, where "
        f"the mean public picture comes to {worst.guess:.1f} dB ({worst.on}).{best}"
    )


def _best_defence(worst: Cell, result: AuditResult) -> str:
    """What the strongest attack still reaches under each defence."""
    same = [
        cell
        for cell in result.cells
        if cell.on == worst.on and cell.figure == worst.figure and not cell.control
    ]
    told = []
    for name in result.defences:
        values = [cell.mean for cell in same if cell.defence == name]
        if values:
            told.append(f"{max(values):.1f} dB under {name}")
    return f" The best attack on it still reaches {listed(told)}." if told else ""


def _say_texts(worst: Cell, result: AuditResult) -> str:
    return (
        f"Texts: {worst.mean:.0f} % of those taken for unknown are recognised, where a guess is "
        f"right in {worst.guess:.1f} % ({worst.on})."
    )


def _say_members(worst: Cell, result: AuditResult) -> str:
    control = [
        cell.mean
        for cell in result.cells
        if (cell.attack, cell.on, cell.figure, cell.control)
        == (worst.attack, worst.on, worst.figure, True)
    ]
    beside = f", {control[0]:.2f} where the site never saw the rows" if control else ""
    return (
        f"Members: the best of {plural(_attacks(worst, result), 'attack')} has an AUC of "
        f"{worst.mean:.2f}{beside}; 0.50 is a guess ({worst.on})."
    )


def _attacks(worst: Cell, result: AuditResult) -> int:
    return len({cell.attack for cell in result.cells if cell.figure == worst.figure})


def markdown(result: AuditResult) -> str:
    """The audit's tables in Markdown, with what was not tried and what the figures do not show."""
    parts = [f"## {result.title}", "", *(f"{text}\n" for text in sentences(result))]
    heads = ["no defence" if name == NONE else name for name in (NONE, *result.defences)]
    for on, rows in by_target(result):
        parts += [f"### {on[:1].upper()}{on[1:]}", ""]
        parts += [_line(["attack", "figure", "chance", *heads])]
        parts += [_line(["---", "---", *["---:"] * (1 + len(heads))])]
        for row in rows:
            name = f"{row.attack} (control)" if row.control else row.attack
            cells = [row.told(defence) for defence in (NONE, *result.defences)]
            parts.append(_line([name, row.name, row.guess, *cells]))
        parts.append("")
    parts += ["### What was not tried", ""]
    parts += [f"- {gap.what}: {gap.why}" for gap in result.gaps] or ["- nothing was left out"]
    return "\n".join([*parts, ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
