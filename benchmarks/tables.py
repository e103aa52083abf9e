"""Figures as tables and a plot: for the terminal, and in docs/performance.md between its marks."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

PAGE, FIGURES, PLOT = "performance.md", "performance.json", "performance.svg"
LABELS = {
    "motet": "Motet, serial",
    "motet-coalesced": "Motet, coalesced",
    "motet-auto": "Motet, auto",
    "plain": "plain loop",
    "pfl": "pfl-research",
    "flower": "Flower simulation",
    "limit": "limit: products alone",
    "limit-stacked": "limit: products, sites stacked",
}
HEADS = ("", "s per round", "times the plain loop", "CPU s", "MB", "start-up s", "1st round s")
# What Motet's figures stand for where several engines took part, the first that did.
CHOSEN = ("motet-auto", "motet-coalesced", "motet")


@dataclass(frozen=True)
class Target:
    """Motet takes at most this many times what another takes."""

    work: str
    other: str
    most: float


TARGETS = (
    Target("cnn", "plain", 1.00),
    Target("cnn", "pfl", 0.95),
    Target("mlp", "plain", 0.35),
    Target("mlp", "pfl", 0.40),
    Target("mlp", "flower", 0.05),
    Target("resnet", "plain", 1.03),
    Target("transformer", "plain", 1.03),
)


def ratios(found: dict[str, Any], who: str, other: str, what: str = "rounds") -> list[float]:
    """Round by round, what one took over what the other took just before or after."""
    contenders = found["contenders"]
    pairs = zip(contenders[who][what], contenders[other][what], strict=True)
    return [mine / theirs for mine, theirs in pairs if theirs]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper one."""
    if len(values) < 2:
        return values[0], values[0]
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    return lower, upper


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, quartiles and extremes, as "1.02 (1.01–1.04; 0.98–1.10)"."""
    lower, upper = quartiles(values)
    shown = [_figure(value, digits) for value in (median(values), lower, upper)]
    ends = f"{_figure(min(values), digits)}–{_figure(max(values), digits)}"
    return f"{shown[0]} ({shown[1]}–{shown[2]}; {ends})"


def _figure(value: float, digits: int) -> str:
    # Small values keep as many significant digits as others have decimals.
    return f"{value:.{digits}f}" if value >= 0.1 else f"{value:.{digits}g}"


def rows_of(found: dict[str, Any]) -> list[Sequence[str]]:
    """A row per contender, heads first."""
    rows: list[Sequence[str]] = [HEADS]
    for who, told in found["contenders"].items():
        own = who == "plain"
        peak = told["peak"]
        rows.append(
            (
                LABELS[who],
                spread(told["rounds"], 3),
                "1" if own else spread(ratios(found, who, "plain")),
                _figure(median(told["cpu"]), 3),
                "–" if peak is None else f"{peak:,.0f}",
                f"{told['startup']:.1f}",
                f"{told['first']:.2f}",
            )
        )
    return rows


def summary(name: str, found: dict[str, Any]) -> str:
    """A work's figures for the terminal."""
    if "text" in found:
        return f"\n{name}\n{found['text']}"
    rows = rows_of(found)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)) for r in rows
    ]
    count = len(next(iter(found["contenders"].values()))["rounds"])
    told = f"{name}: {found['title']}; median (quartiles; extremes) of {count} rounds each"
    return "\n".join(["", told, *lines, _agreement(found)])


def _agreement(found: dict[str, Any]) -> str:
    checked = {who: told for who, told in found["checked"].items() if who != "start"}
    apart = max(told["weights"] for told in checked.values())
    losses = [told["loss"] for told in checked.values()]
    first = found["checked"]["start"]["loss"]
    return (
        f"All made the same steps: weights after a round at most {apart:.1e} of its step apart, "
        f"loss from {first:.4f} to {min(losses):.4f}–{max(losses):.4f}."
    )


def write_results(out: Path, name: str, found: dict[str, Any]) -> None:
    """Puts a work's figures into the page, the JSON and the plot in this folder."""
    path = out / FIGURES
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    known[name] = found
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    page = out / PAGE
    if page.exists():
        text = between(page.read_text(encoding="utf-8"), name, block(found))
        text = between(text, "targets", targets(known))
        if any("contenders" in told for told in known.values()):
            draw(out / PLOT, known)
            text = between(text, "plot", f"\n![Time of a round over the plain loop's]({PLOT})\n")
        page.write_text(text, encoding="utf-8")


def between(text: str, name: str, block: str) -> str:
    """The text with this between the marks of a name; as it was where there are none."""
    start, end = f"<!-- measured: {name} -->", "<!-- end -->"
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{start}\n{block}\n{end}", text, count=1)


def block(found: dict[str, Any]) -> str:
    """A work's part of the page."""
    about = found["machine"]
    where = (
        f"{about['processor']}, {about['cores']} cores, {about['memory GB']} GB, "
        f"{about['system']}, Python {about['python']}; {about['day']}, load {about['load']}"
    )
    if "text" in found:
        return f"\n```\n$ {found['command']}\n{found['text']}\n```\n\n{where}.\n"
    heads, *rows = rows_of(found)
    lines = [_line(heads), _line(["---"] + ["---:"] * (len(heads) - 1)), *map(_line, rows)]
    versions: dict[str, str] = {}
    for told in found["contenders"].values():
        versions |= told["versions"]
    named = ", ".join(f"{package} {version}" for package, version in sorted(versions.items()))
    missing = "".join(f" Without {LABELS[who]}: {why}." for who, why in found["missing"].items())
    count = len(next(iter(found["contenders"].values()))["rounds"])
    note = (
        f"{found['title']}. Median (quartiles; extremes) of {count} rounds each, in turn; "
        f"{found['threads']} thread(s). {_agreement(found)}{missing}"
    )
    profiled = [line for who, parts in found["profile"].items() for line in _profile(who, parts)]
    return "\n".join(["", *lines, "", note, "", *profiled, f"{where}; {named}.", ""])


def _profile(who: str, parts: dict[str, float]) -> list[str]:
    """Where the time of a round goes, as lines of a table."""
    lines = [_line((f"where a round of {LABELS[who]} goes", "share")), "|---|---:|"]
    return [*lines, *(_line((name, f"{share:.1%}")) for name, share in parts.items()), ""]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def targets(known: dict[str, Any]) -> str:
    """What is to be reached, and what was measured."""
    lines = [_line(("work", "against", "at most", "measured", "holds")), "|---|---|---:|---:|---|"]
    for target in TARGETS:
        contenders = known.get(target.work, {}).get("contenders", {})
        mine = next((who for who in CHOSEN if who in contenders), None)
        if mine is None or target.other not in contenders:
            cells = ("not measured", "")
        else:
            found = ratios(known[target.work], mine, target.other)
            cells = (spread(found), "yes" if median(found) <= target.most else "**no**")
        lines.append(_line((target.work, LABELS[target.other], f"{target.most:.2f}", *cells)))
    return "\n".join(["", *lines, ""])


def draw(path: Path, known: dict[str, Any]) -> None:
    """Seconds per round over the plain loop's, by work; a line from the lowest to the highest."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    works = [name for name, found in known.items() if "contenders" in found]
    with rc_context({"svg.hashsalt": "motet", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure((7.5, 1.2 + 0.7 * len(works)), layout="constrained")
        axes = figure.subplots()
        shown = [who for who in LABELS if any(who in known[w]["contenders"] for w in works)]
        for number, who in enumerate(shown):
            shift = (number - (len(shown) - 1) / 2) * 0.1
            color = f"C{number}"
            for place, work in enumerate(works):
                if who not in known[work]["contenders"]:
                    continue
                found = ratios(known[work], who, "plain")
                ends, at = [min(found), max(found)], place + shift
                axes.plot(ends, [at, at], color=color, linewidth=1)
                label = LABELS[who] if work == _first(known, works, who) else None
                axes.plot([median(found)], [at], "o", color=color, markersize=4, label=label)
        axes.axvline(1, color="grey", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yticks(range(len(works)), works)
        axes.invert_yaxis()
        axes.set_xlabel("time of a round over the plain loop's (median, lowest to highest)")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        figure.savefig(path, metadata={"Date": None})


def _first(known: dict[str, Any], works: Sequence[str], who: str) -> str:
    return next(work for work in works if who in known[work]["contenders"])
