"""``motet data``: who would get what, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from motet.commands.common import RUNS, out, result
from motet.core.batch import Dataset
from motet.core.method import Method
from motet.data._common import codes_of
from motet.data.registry import list_data, load_data
from motet.experiment.preview import draw_preview, preview, preview_table, write_preview
from motet.experiment.recipes import shipped_recipe
from motet.experiment.spec import with_settings
from motet.experiment.targets import Target, find_target

SHARE = 0.2


def preview_target(
    name: str,
    settings: Sequence[str],
    seed: int | None,
    about: str | None,
    folder: Path | None,
) -> None:
    """Prints the preview of a recipe or a data set, draws it, and writes it as JSON."""
    if name in [info.name for info in list_data()]:
        found = Target(name, data_recipe(name, settings))
    else:
        found = find_target(name)
    experiment = found.changed(settings, seed).experiment()
    told = preview(experiment, about)
    where = folder or RUNS / f"{found.name}-{experiment.seed}-preview"
    out().print(preview_table(told))
    draw_preview(told, where / "preview.png")
    write_preview(told, where / "preview.json")
    result(f"picture: {where / 'preview.png'}")
    result(f"figures: {where / 'preview.json'}")


def data_recipe(name: str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """The standard setting with this data set in it, as far as the data allow.

    Populations whose modalities the data lack are left out; rows are shared out by label where
    there are labels, at random where there are none.
    """
    base = shipped_recipe(Method.setting)
    if name == base["data"]["name"]:
        return base
    own = [setting for setting in settings if setting.startswith("data.options")]
    options = with_settings({"data": {"options": {}}}, own)["data"]["options"]
    return fitted(base, name, load_data(name, **options))


def fitted(base: Mapping[str, Any], name: str, rows: Dataset) -> dict[str, Any]:
    """The recipe's plain values with another data set, given its rows."""
    ids = rows.about.get("image_id")
    unit = None if ids is None else "image_id"
    units = len(rows) if ids is None else len(codes_of(ids)[1])
    most = max(1, int(units * SHARE))
    data = {
        "name": name,
        "test": min(base["data"]["test"], most),
        "public": min(base["data"]["public"], most),
        **({"unit": unit} if unit else {}),
    }
    populations = [
        _population(population, rows)
        for population in base["populations"]
        if set(population["modalities"]) <= set(rows.modalities)
    ]
    return {**base, "title": f"{name}, shared out", "data": data, "populations": populations}


def _population(population: Mapping[str, Any], rows: Dataset) -> dict[str, Any]:
    changed = {key: value for key, value in population.items() if key != "rows"}
    if rows.labels is None:
        return {**changed, "partition": "iid", "classify": False}
    alpha = population["partition"].get("alpha", 0.3)
    return {**changed, "partition": {"name": "dirichlet", "alpha": alpha}}
