"""What every site would get, before anything is trained: rows, modalities, labels."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from motet.core.batch import Dataset
from motet.core.errors import ConfigError
from motet.core.store import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

    from motet.experiment.build import Parties
    from motet.experiment.spec import Experiment

Plain: TypeAlias = dict[str, Any]

LABELS = "labels"
BARS = " ▁▂▃▄▅▆▇█"
# A histogram of more values than these has no room in a terminal.
MOST_BARS = 40
# Sites of a large population are not all counted.
MOST_SITES = 1000
# More names than these would overlap in a picture.
MOST_NAMES = 120
FORMATS = (".png", ".svg")


def preview(experiment: Experiment, about: str | None = None) -> Plain:
    """What every site of an experiment would get; trains nothing and builds no model.

    about: the column whose values are counted, such as group or style; by default the labels
    where there are any. Returns what ``preview_of`` does. Raises ConfigError, DataError.
    """
    from motet.experiment.build import build_parties

    return preview_of(build_parties(experiment), experiment.title, about)


def preview_of(parties: Parties, title: str = "", about: str | None = None) -> Plain:
    """{"title", "about", "labels": names, "sites": {name: counts}, "public", "test"}.

    counts of a site: "rows", "modalities", "present" (modality -> rows that have it), "labels"
    (rows per name, in their order) and "model". Public and test set have the same but a model;
    "public" is None without one; of a large population "sites" has the first. "about" is "" and
    "labels" empty for data without labels.
    Raises ConfigError for a column that is not there.
    """
    shared = {"test": parties.test}
    if parties.public is not None:
        shared["public"] = parties.public
    listed = parties.sites[:MOST_SITES]
    everyone = {**{site.name: site.data for site in listed}, **shared}
    column = LABELS if about is None else about
    if about is None and any(data.labels is None for data in everyone.values()):
        column = ""
    values = {name: _values(data, column) for name, data in everyone.items()}
    names = _names(parties.test, column, values)
    sites = {
        site.name: {**_counts(site.data, values[site.name], names), "model": site.model}
        for site in listed
    }
    told = {name: _counts(data, values[name], names) for name, data in shared.items()}
    return {
        "title": title,
        "about": column,
        "labels": [str(name) for name in names],
        "sites": sites,
        "public": told.get("public"),
        "test": told["test"],
    }


def _values(data: Dataset, column: str) -> list[Any]:
    """The column's value of every row, labels by their names and only where there is one."""
    if not column:
        return []
    if column in data.about:
        given = data.about[column]
        return given.tolist() if isinstance(given, Tensor) else list(given)
    if column == LABELS and data.labels is not None:
        numbers = data.labels[data.labels >= 0].tolist()
        return [data.classes[number] for number in numbers] if data.classes else numbers
    known = sorted([*data.about, *([] if data.labels is None else [LABELS])])
    there = f"write one of {', '.join(known)}" if known else "the data have no columns to count"
    raise ConfigError(f"there is no column {column!r}; {there}")


def _names(data: Dataset, column: str, values: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Everything that occurs: labels in their own order, other values sorted."""
    seen = {value for party in values.values() for value in party}
    if column == LABELS and data.classes:
        return [name for name in data.classes if name in seen]
    return sorted(seen)


def _counts(data: Dataset, values: Sequence[Any], names: Sequence[Any]) -> Plain:
    position = {name: i for i, name in enumerate(names)}
    counts = [0] * len(names)
    for value in values:
        counts[position[value]] += 1
    return {
        "rows": len(data),
        "modalities": list(data.modalities),
        "present": {name: int(data.present[name].sum()) for name in data.modalities},
        "labels": counts,
    }


def write_preview(told: Mapping[str, Any], path: Path) -> None:
    """Writes a preview as JSON."""
    write_atomic(path, json.dumps(told, indent=1, ensure_ascii=False).encode())


def preview_table(told: Mapping[str, Any]) -> Table:
    """A preview as a table for the terminal: a row per site, then public and test set."""
    from rich import box
    from rich.table import Table

    names = told["labels"]
    modalities = _modalities(told)
    table = Table(title=told["title"] or None, box=box.SIMPLE_HEAD, title_justify="left")
    for head in ("site", "model"):
        table.add_column(head)
    for head in ("rows", *modalities):
        table.add_column(head, justify="right")
    if names:
        table.add_column(f"{told['about']}, of {len(names)}", justify="right", min_width=4)
        table.add_column("most rows have")
    bars = 0 < len(names) <= MOST_BARS
    if bars:
        table.add_column("histogram", no_wrap=True)
    parties = _parties(told)
    for place, (name, counts) in enumerate(parties):
        cells = [name, counts.get("model", ""), f"{counts['rows']:,}"]
        cells += [
            f"{counts['present'][modality]:,}" if modality in counts["present"] else "–"
            for modality in modalities
        ]
        if names:
            cells += [str(sum(n > 0 for n in counts["labels"])), _most(names, counts["labels"])]
        if bars:
            cells.append(bars_of(counts["labels"]))
        table.add_row(*cells, end_section=place == len(told["sites"]) - 1)
    return table


def _parties(told: Mapping[str, Any]) -> list[tuple[str, Plain]]:
    others = [("public set", told["public"]), ("test set", told["test"])]
    return [*told["sites"].items(), *((name, counts) for name, counts in others if counts)]


def _modalities(told: Mapping[str, Any]) -> list[str]:
    return sorted({name for _, counts in _parties(told) for name in counts["present"]})


def _most(names: Sequence[str], counts: Sequence[int], shown: int = 2) -> str:
    order = sorted(range(len(names)), key=lambda i: (-counts[i], i))
    return ", ".join(f"{names[i]} ({counts[i]})" for i in order[:shown] if counts[i])


def bars_of(counts: Sequence[int]) -> str:
    """A histogram in one line; whatever occurs at all has a bar."""
    most = max(counts, default=0)
    steps = len(BARS) - 1
    return "".join(BARS[-(-count * steps // most)] if count else BARS[0] for count in counts)


def draw_preview(told: Mapping[str, Any], path: Path) -> None:
    """Draws rows per label and rows per modality at every site, as .png or .svg by the name."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path}: a preview is drawn as {' or '.join(FORMATS)}; end it in one")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    parties = _parties(told)
    width = min(5 + 0.12 * len(told["labels"]), 16)
    height = 1.6 + 0.32 * len(parties) + (0.9 if _named(told) else 0)
    figure = Figure(figsize=(width + 2, height), layout="constrained")
    ratios = [max(len(_modalities(told)), 1), max(width * 1.4, 4)]
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=ratios)
    _draw_modalities(left, told, parties)
    _draw_labels(right, told, parties)
    figure.suptitle(told["title"], fontsize=11, parse_math=False)
    picture = io.BytesIO()
    # Without these two an equal preview would give another file every time.
    with rc_context({"svg.hashsalt": "motet"}):
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(picture, format=path.suffix[1:], dpi=130, metadata=metadata)
    write_atomic(path, picture.getvalue())


def _named(told: Mapping[str, Any]) -> bool:
    return 0 < len(told["labels"]) <= MOST_NAMES


def _draw_modalities(axes: Axes, told: Mapping[str, Any], parties: Sequence[Any]) -> None:
    modalities = _modalities(told)
    matrix = [[counts["present"].get(name, 0) for name in modalities] for _, counts in parties]
    shares = [
        [n / max(counts["rows"], 1) for n in row]
        for row, (_, counts) in zip(matrix, parties, strict=True)
    ]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=2.5, aspect="auto")
    for y, row in enumerate(matrix):
        for x, count in enumerate(row):
            axes.text(x, y, f"{count:,}" if count else "–", ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(modalities)), modalities)
    axes.set_yticks(range(len(parties)), [name for name, _ in parties])
    axes.set_title("rows with", fontsize=9)


def _draw_labels(axes: Axes, told: Mapping[str, Any], parties: Sequence[Any]) -> None:
    names = told["labels"]
    if not names:
        axes.set_axis_off()
        axes.set_title("the data have no labels", fontsize=9)
        return
    # Nothing stays white, so that one row can be told from none.
    matrix = [[count or float("nan") for count in counts["labels"]] for _, counts in parties]
    # Public and test set are drawn on other sizes; the sites are what is to be compared.
    most = max((max(counts["labels"]) for counts in told["sites"].values()), default=1)
    picture = axes.imshow(
        matrix, cmap="magma_r", vmin=1, vmax=max(most, 2), aspect="auto", interpolation="nearest"
    )
    if _named(told):
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6, parse_math=False)
    axes.set_title(f"rows by {told['about']} ({len(names)}), white: none", fontsize=9)
    axes.figure.colorbar(picture, ax=axes, fraction=0.03, pad=0.01)
