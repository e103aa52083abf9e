from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import motet.experiment.build as build
import motet.experiment.casting as casting
from motet.core import ConfigError, Dataset
from motet.experiment.preview import bars_of, draw_preview, preview, preview_table, write_preview
from motet.experiment.report.pictures import preview_view
from motet.experiment.spec import Experiment, parse_experiment

CLASSES = ("zebra", "$^$", "never", "cat")


def rows(labels: bool = True) -> Dataset:
    n = 60
    return Dataset(
        {"image": torch.zeros(n, 3, 8, 8, dtype=torch.uint8), "text": ("a",) * n},
        labels=torch.tensor([0, 1, 3] * (n // 3)) if labels else None,
        classes=CLASSES if labels else (),
        about={"style": ("noto", "emo") * (n // 2), "group": torch.arange(n) // 20 * 5},
    )


def experiment(**changes: Any) -> Experiment:
    model = {"width": 8, "image": "hog-mlp", "text": "hashed-mlp"}
    values = {
        "title": "Costs $^$ and [more]",
        "method": "modal-fedmd",
        "data": {"name": "emoji", "test": 6, "public": 4},
        "populations": [
            {"name": "eye", "count": 1, "modalities": ["image"], "models": [model]},
            {
                "name": "both",
                "count": 2,
                "modalities": ["image", "text"],
                "models": [model],
                "missing": {"rows": {"text": 0.5}},
            },
        ],
        "server": model,
    }
    return parse_experiment({**values, **changes})


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load_data", lambda name, **options: rows())


@pytest.fixture
def unlabelled(monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setattr(build, "load_data", lambda name, **options: rows(labels=False))
    model = {"width": 8, "image": "hog-mlp", "text": "hashed-mlp"}
    both = {"name": "both", "count": 2, "modalities": ["image", "text"], "models": [model]}
    return experiment(populations=[both])


def test_every_party_is_counted() -> None:
    told = preview(experiment())
    assert list(told["sites"]) == ["eye-1", "both-1", "both-2"]
    assert told["about"] == "labels"
    assert told["labels"] == ["zebra", "$^$", "cat"], "classes that nobody has, or another order"
    parties = build.build_parties(experiment())
    datasets = {site.name: site.data for site in parties.sites}
    for name, counts in told["sites"].items():
        data = datasets[name]
        assert counts["rows"] == len(data)
        assert counts["modalities"] == list(data.modalities)
        assert data.labels is not None
        assert counts["labels"] == [int((data.labels == label).sum()) for label in (0, 1, 3)]
        assert counts["present"] == {m: int(data.present[m].sum()) for m in data.modalities}
    both = told["sites"]["both-1"]
    assert both["present"]["text"] + both["present"]["image"] < 2 * both["rows"]
    assert told["sites"]["eye-1"]["model"] == "hog-mlp-128"
    assert (told["test"]["rows"], told["public"]["rows"]) == (6, 4)
    assert sum(told["public"]["labels"]) == 4
    private = [told["sites"]["eye-1"], *(told["sites"][f"both-{i}"] for i in (1, 2))]
    assert [sum(n["rows"] for n in group) for group in (private[:1], private[1:])] == [50, 50]


def test_no_model_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_model(*args: object) -> object:
        raise AssertionError("a model was built")

    monkeypatch.setattr(casting, "build_model", build_model)
    assert preview(experiment())["sites"]


@pytest.mark.parametrize(
    ("column", "names"), [("style", ["emo", "noto"]), ("group", ["0", "5", "10"])]
)
def test_another_column_is_counted_in_its_own_order(column: str, names: list[str]) -> None:
    told = preview(experiment(), column)
    assert (told["about"], told["labels"]) == (column, names)
    for counts in told["sites"].values():
        assert sum(counts["labels"]) == counts["rows"]


def test_an_unknown_column_is_answered_with_all() -> None:
    with pytest.raises(ConfigError, match="'colour'; write one of group, labels, row, style"):
        preview(experiment(), "colour")


def test_data_without_labels_have_a_preview_too(unlabelled: Experiment, tmp_path: Path) -> None:
    told = preview(unlabelled)
    assert (told["about"], told["labels"]) == ("", [])
    with pytest.raises(ConfigError, match="there is no column 'labels'"):
        preview(unlabelled, "labels")
    draw_preview(told, tmp_path / "a.png")
    heads = [column.header for column in preview_table(told).columns]
    assert heads == ["site", "model", "rows", "image", "text"]


def test_a_recipe_without_public_set_has_none() -> None:
    told = preview(experiment(data={"name": "emoji", "test": 6, "public": 0}))
    assert told["public"] is None
    assert "public set" not in list(preview_table(told).columns[0].cells)


def test_the_table_shows_modalities_labels_and_histogram() -> None:
    told = preview(experiment())
    table = preview_table(told)
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells["site"] == ["eye-1", "both-1", "both-2", "public set", "test set"]
    assert cells["text"][0] == "–"
    assert cells["text"][1] == str(told["sites"]["both-1"]["present"]["text"])
    assert cells["labels, of 3"][0] == "3"
    assert cells["histogram"][0] == bars_of(told["sites"]["eye-1"]["labels"])
    assert "zebra (" in " ".join(map(str, cells["most rows have"]))
    console = Console(file=io.StringIO(), width=120, markup=False)
    console.print(table)
    assert "Costs $^$ and [more]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_bars() -> None:
    assert bars_of([0, 1, 50, 100]) == " ▁▄█"
    assert bars_of([3, 3]) == "██"
    assert bars_of([0, 0]) == "  "
    assert bars_of([]) == ""


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_pictures_are_drawn_the_same_each_time(tmp_path: Path, ending: str) -> None:
    told = preview(experiment())
    for name in ("a", "b"):
        draw_preview(told, tmp_path / f"{name}.{ending}")
    first = (tmp_path / f"a.{ending}").read_bytes()
    assert first == (tmp_path / f"b.{ending}").read_bytes()
    assert first.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    other = preview(experiment(seed=1))
    draw_preview(other, tmp_path / f"b.{ending}")
    assert first != (tmp_path / f"b.{ending}").read_bytes()


def test_a_picture_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png or \.svg"):
        draw_preview(preview(experiment()), tmp_path / "a.gif")
    assert list(tmp_path.iterdir()) == []


def test_the_report_reads_what_is_written(tmp_path: Path) -> None:
    told = preview(experiment())
    write_preview(told, tmp_path / "preview.json")
    again = json.loads((tmp_path / "preview.json").read_text())
    assert again == told
    view = preview_view(again)
    assert [site["name"] for site in view["sites"]][:3] == list(told["sites"])
    assert view["sites"][0]["seen"] == "3 of 3"
