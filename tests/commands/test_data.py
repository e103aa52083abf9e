from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from motet.commands.data import data_recipe, fitted
from motet.core import Dataset
from motet.core.batch import Column
from motet.experiment.recipes import shipped_recipe
from motet.experiment.spec import parse_experiment

Motet = Callable[..., Result]


def dataset(modalities: Sequence[str], labels: bool = True, repeat: int = 1) -> Dataset:
    n = 60
    columns: dict[str, Column] = {
        "image": torch.zeros(n, 3, 8, 8, dtype=torch.uint8),
        "text": ("a",) * n,
    }
    return Dataset(
        {name: columns[name] for name in modalities},
        labels=torch.arange(n) % 3 if labels else None,
        classes=("x", "y", "z") if labels else (),
        about={"image_id": torch.arange(n) // repeat} if repeat > 1 else {},
    )


def test_a_recipe_is_previewed_as_table_picture_and_figures(motet: Motet, tiny: str) -> None:
    result = motet("data", tiny, "--seed", 3)
    assert result.exit_code == 0
    for word in ("image-1", "pair-2", "public set", "test set", "hog-mlp-8", "cat", "histogram"):
        assert word in result.stdout
    figures = json.loads(Path("runs/tiny-3-preview/preview.json").read_text())
    assert figures["test"]["rows"] == 10
    assert Path("runs/tiny-3-preview/preview.png").read_bytes().startswith(b"\x89PNG")


def test_folder_settings_and_column_are_chosen(motet: Motet, tiny: str) -> None:
    change = "populations.pair.count=3"
    result = motet("data", tiny, "--out", "look", "--set", change, "--about", "file")
    assert result.exit_code == 0
    figures = json.loads(Path("look/preview.json").read_text())
    assert figures["about"] == "file"
    assert "pair-3" in figures["sites"]
    assert sorted(os.listdir()) == ["look", tiny]


def test_a_data_set_is_shared_out_in_the_standard_setting(motet: Motet, photos: Path) -> None:
    options = ["--set", f"data.options.path={photos}", "--set", "data.options.label_column=kind"]
    result = motet("data", "folder", *options, "--out", "look")
    assert result.exit_code == 0, result.stderr
    figures = json.loads(Path("look/preview.json").read_text())
    assert len(figures["sites"]) == 8
    assert sorted(figures["labels"]) == ["cat", "dog", "sun"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["emojo"], "there is no recipe or method 'emojo'"),
        (["folder"], "folder.path: is missing"),
        (["folder", "--set", "data.options.path=nowhere"], "nowhere does not exist"),
        (["tiny.yaml", "--about", "colour"], "there is no column 'colour'; write one of"),
        (["tiny.yaml", "--set", "data.tset=3"], "data.tset: there is no such field"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    motet: Motet, tiny: str, words: list[str], told: str
) -> None:
    result = motet("data", *words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert os.listdir() == [tiny]


def test_the_standard_data_set_has_the_standard_recipe() -> None:
    assert data_recipe("emoji") == shipped_recipe("creamfl-emoji")


def test_a_recipe_fits_itself_to_the_data() -> None:
    base = shipped_recipe("creamfl-emoji")
    pictures = fitted(base, "pictures", dataset(["image"]))
    assert [population["name"] for population in pictures["populations"]] == ["image"]
    assert pictures["data"] == {"name": "pictures", "test": 12, "public": 12}
    assert pictures["populations"][0]["partition"] == {"name": "dirichlet", "alpha": 0.3}
    bare = fitted(base, "bare", dataset(["image", "text"], labels=False, repeat=2))
    assert bare["data"] == {"name": "bare", "test": 6, "public": 6, "unit": "image_id"}
    assert {population["classify"] for population in bare["populations"]} == {False}
    for values in (pictures, bare):
        parse_experiment(values)
