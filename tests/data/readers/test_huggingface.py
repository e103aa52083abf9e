"""Data sets that Hugging Face ``datasets`` has saved to disk."""

from __future__ import annotations

import builtins
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from motet.core import ConfigError, DataError
from motet.data.readers.huggingface import load_huggingface


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "datasets":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'motet\[hf\]'"):
        load_huggingface(tmp_path, text="caption")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone does not exist; it should be a folder with a data"):
        load_huggingface(tmp_path / "gone", text="caption")


def png(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def hf() -> Any:
    return pytest.importorskip("datasets")


@pytest.fixture
def saved(hf: Any, tmp_path: Path) -> Path:
    rows = {
        "picture": [{"bytes": png(red), "path": None} for red in (10, 20, 30)],
        "captions": [["ten", "dix"], ["twenty"], ["thirty", "trente"]],
        "title": ["A", "B", "C"],
        "kind": [1, 0, 1],
        "year": [2001, 2002, 2003],
    }
    features = hf.Features(
        {
            "picture": hf.Image(),
            "captions": hf.List(hf.Value("string")),
            "title": hf.Value("string"),
            "kind": hf.ClassLabel(names=["cat", "dog"]),
            "year": hf.Value("int32"),
        }
    )
    path = tmp_path / "saved"
    hf.Dataset.from_dict(rows, features=features).save_to_disk(str(path))
    return path


def test_pictures_with_lists_of_captions(saved: Path) -> None:
    data = load_huggingface(
        saved, image="picture", text="captions", label="kind", about=("title", "year"), size=4
    )
    assert data.columns["text"] == ("ten", "dix", "twenty", "thirty", "trente")
    images = data.columns["image"]
    assert isinstance(images, torch.Tensor)
    assert images.shape == (5, 3, 4, 4)
    assert images[:, 0, 0, 0].tolist() == [10, 10, 20, 30, 30]
    assert data.labels is not None
    assert data.labels.tolist() == [1, 1, 0, 1, 1]
    assert data.classes == ("cat", "dog")
    assert data.about["title"] == ("A", "A", "B", "C", "C")
    assert data.about["year"].tolist() == [2001, 2001, 2002, 2003, 2003]  # type: ignore[union-attr]
    assert data.about["image_id"].tolist() == [0, 0, 1, 2, 2]  # type: ignore[union-attr]


def test_one_modality_alone(saved: Path) -> None:
    texts = load_huggingface(saved, text="title", label="year")
    assert texts.modalities == ("text",)
    assert texts.classes == ("2001", "2002", "2003")
    pictures = load_huggingface(saved, image="picture", label="title", size=4)
    assert pictures.modalities == ("image",)
    assert pictures.classes == ("A", "B", "C")
    assert len(pictures) == 3


def test_splits(hf: Any, tmp_path: Path, saved: Path) -> None:
    parts = {name: hf.Dataset.from_dict({"text": [name] * 2}) for name in ("train", "test")}
    hf.DatasetDict(parts).save_to_disk(str(tmp_path / "parts"))
    data = load_huggingface(tmp_path / "parts", text="text", split="test")
    assert data.columns["text"] == ("test", "test")
    for wrong in (None, "val"):
        with pytest.raises(ConfigError, match=f"has no {wrong!r}; write one of train, test"):
            load_huggingface(tmp_path / "parts", text="text", split=wrong)
    with pytest.raises(ConfigError, match="has no splits; leave split out"):
        load_huggingface(saved, text="title", split="train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"name an image or a text column; .* has picture, captions, title, kind, year"),
        ({"text": "words"}, r"text: .* has no column 'words'; it has picture, captions"),
        ({"text": "title", "about": ("month",)}, "about: .* has no column 'month'"),
        ({"image": "title"}, r"image: column title holds Value\(.*string.*\), not pictures"),
        ({"text": "year"}, "text: .*column year holds int, not strings"),
    ],
)
def test_wrong_columns_are_named(saved: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_huggingface(saved, **options)


def test_bad_rows_are_named_or_skipped(hf: Any, tmp_path: Path) -> None:
    rows = {
        "picture": [
            {"bytes": png(10), "path": None},
            {"bytes": b"cut", "path": None},
            None,
            {"bytes": png(40), "path": None},
        ],
        "text": ["ten", "twenty", "thirty", " "],
        "kind": ["a", "b", "c", None],
    }
    features = hf.Features(
        {"picture": hf.Image(), "text": hf.Value("string"), "kind": hf.Value("string")}
    )
    path = tmp_path / "bad"
    hf.Dataset.from_dict(rows, features=features).save_to_disk(str(path))
    with pytest.raises(DataError, match="row 1, column picture is not a picture: cannot identify"):
        load_huggingface(path, image="picture", size=4)
    with pytest.raises(DataError, match="column text, row 3: the text is empty"):
        load_huggingface(path, text="text")
    data = load_huggingface(path, image="picture", text="text", size=4, on_error="skip")
    assert data.columns["text"] == ("ten",)
    assert data.about["image_id"].tolist() == [0]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="column kind should hold numbers or strings in every row"):
        load_huggingface(path, image="picture", label="kind", size=4, on_error="skip")


def test_unlabelled_rows_are_refused(hf: Any, tmp_path: Path) -> None:
    features = hf.Features({"text": hf.Value("string"), "kind": hf.ClassLabel(names=["a"])})
    rows = {"text": ["x", "y"], "kind": [0, -1]}
    hf.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "some"))
    with pytest.raises(DataError, match=r"column kind has rows without a class \(-1\)"):
        load_huggingface(tmp_path / "some", text="text", label="kind")


def test_damaged_folders_are_named(hf: Any, tmp_path: Path, saved: Path) -> None:
    with pytest.raises(DataError, match="is not a data set saved by save_to_disk"):
        load_huggingface(tmp_path, text="title")
    for file in saved.glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="is not a data set saved by save_to_disk"):
        load_huggingface(saved, text="title")
