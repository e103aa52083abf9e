"""COCO's own caption files and Karpathy's split file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from motet.core import ConfigError, DataError
from motet.data.readers.coco import load_coco

OFFICIAL = {
    "info": {},
    "licenses": [],
    "images": [
        {"id": 391895, "file_name": "COCO_1.jpg", "height": 4, "width": 4},
        {"id": 522418, "file_name": "COCO_2.jpg", "height": 4, "width": 4},
        {"id": 7, "file_name": "never_captioned.jpg", "height": 4, "width": 4},
    ],
    "annotations": [
        {"image_id": 522418, "id": 1, "caption": "a woman cuts a cake"},
        {"image_id": 391895, "id": 2, "caption": "a man on a motorcycle"},
        {"image_id": 522418, "id": 3, "caption": "a cake is cut"},
    ],
}


def karpathy(name: str, folder: str, split: str, *captions: str) -> dict[str, Any]:
    return {
        "filepath": folder,
        "filename": name,
        "split": split,
        "imgid": 0,
        "cocoid": 1,
        "sentids": [],
        "sentences": [{"raw": caption, "tokens": caption.split()} for caption in captions],
    }


KARPATHY = {
    "dataset": "coco",
    "images": [
        karpathy("COCO_1.jpg", "val2014", "test", "one", "uno"),
        karpathy("COCO_2.jpg", "val2014", "restval", "two"),
        karpathy("COCO_3.jpg", "train2014", "train", "three", "tres", "drei"),
    ],
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for folder in (tmp_path, tmp_path / "val2014", tmp_path / "train2014"):
        folder.mkdir(exist_ok=True)
        for number in (1, 2, 3):
            picture = Image.new("RGB", (16, 16), (number * 60, 0, 0))
            picture.save(folder / f"COCO_{number}.jpg", quality=95)
    return tmp_path


def write(folder: Path, content: object) -> Path:
    path = folder / "captions.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def reds(column: object) -> list[int]:
    assert isinstance(column, torch.Tensor)
    return [round(float(value) / 60) for value in column[:, 0].flatten(1).float().mean(dim=1)]


def test_official_captions(images: Path) -> None:
    data = load_coco(write(images, OFFICIAL), images, size=8)
    assert data.columns["text"] == (
        "a woman cuts a cake",
        "a man on a motorcycle",
        "a cake is cut",
    )
    assert reds(data.columns["image"]) == [2, 1, 2]
    assert data.about["image_id"].tolist() == [0, 1, 0]  # type: ignore[union-attr]
    assert data.labels is None


@pytest.mark.parametrize(
    ("split", "texts", "pictures"),
    [
        ("test", ("one", "uno"), [1, 1]),
        ("train+restval", ("two", "three", "tres", "drei"), [2, 3, 3, 3]),
        (None, ("one", "uno", "two", "three", "tres", "drei"), [1, 1, 2, 3, 3, 3]),
    ],
)
def test_karpathy_splits(
    images: Path, split: str | None, texts: tuple[str, ...], pictures: list[int]
) -> None:
    data = load_coco(write(images, KARPATHY), images, split, size=8)
    assert data.columns["text"] == texts
    assert reds(data.columns["image"]) == pictures
    assert set(data.about["split"]) <= {"test", "train", "restval"}


def test_unknown_splits_are_named(images: Path) -> None:
    with pytest.raises(ConfigError, match="no 'training'; it has restval, test, train"):
        load_coco(write(images, KARPATHY), images, "training")
    with pytest.raises(ConfigError, match=r"captions.json has one split only; leave split out"):
        load_coco(write(images, OFFICIAL), images, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "not a COCO caption file: it has no list of images"),
        ({"images": {}}, "not a COCO caption file: it has no list of images"),
        ({"images": [{"id": 1}], "annotations": []}, r"images need id and .*KeyError: 'file_name'"),
        ({"images": [], "annotations": [3]}, "annotations need"),
        ({"images": [], "annotations": []}, "gives no rows"),
        (
            {"images": [], "annotations": [{"id": 5, "image_id": 9, "caption": "x"}]},
            "annotation 5: there is no image with the id 9",
        ),
        (
            {
                "images": [{"id": 1, "file_name": "COCO_1.jpg"}],
                "annotations": [{"id": 5, "image_id": 1, "caption": ""}],
            },
            "annotation 5: the caption of COCO_1.jpg is empty",
        ),
        ({"images": [{"filename": "COCO_1.jpg"}]}, "not a Karpathy split file: .*'split'"),
        ({"images": [{"filename": "COCO_1.jpg", "split": "a"}]}, "not a Karpathy .*'sentences'"),
        ({"images": [3]}, "not a Karpathy split file"),
        (
            {"images": [karpathy("COCO_9.jpg", "val2014", "test", "x")]},
            "captions.json, COCO_9.jpg names val2014/COCO_9.jpg, which is not in",
        ),
    ],
)
def test_bad_content_is_named(images: Path, content: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_coco(write(images, content), images)


def test_bad_files_are_named(images: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*gone.json; it should be a COCO caption file"):
        load_coco(images / "gone.json", images)
    with pytest.raises(DataError, match="is a folder; write the path of a COCO caption file"):
        load_coco(images, images)
    (images / "cut.json").write_text('{"images": [\n{"id": 1}', encoding="utf-8")
    with pytest.raises(DataError, match=r"cut.json, line 2, column 10 is not JSON"):
        load_coco(images / "cut.json", images)
    with pytest.raises(DataError, match=r"gone does not exist; .* the pictures that captions.json"):
        load_coco(write(images, OFFICIAL), images / "gone")
