"""The token file of Flickr30k and Karpathy's split file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from motet.core import ConfigError, DataError
from motet.data.readers.flickr30k import load_flickr30k


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("10.jpg", "20.jpg"):
        Image.new("RGB", (16, 12), (0, 0, 90)).save(tmp_path / name)
    return tmp_path


def write(folder: Path, text: str, name: str = "results_20130124.token") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_token_file(images: Path) -> None:
    text = "10.jpg#0\tTwo men .\n10.jpg#1\tMen , #2 of them .\n20.jpg#0\tA dog .\n"
    data = load_flickr30k(write(images, text), images, size=8)
    assert data.columns["text"] == ("Two men .", "Men , #2 of them .", "A dog .")
    assert data.about["file"] == ("10.jpg", "10.jpg", "20.jpg")
    assert data.about["image_id"].tolist() == [0, 0, 1]  # type: ignore[union-attr]


def test_signs_that_also_separate_may_be_part_of_name_and_caption(images: Path) -> None:
    (images / "10.jpg").rename(images / "a#1.jpg")
    data = load_flickr30k(write(images, "a#1.jpg#0\tA\tdog\n"), images, size=8)
    assert data.about["file"] == ("a#1.jpg",)
    assert data.columns["text"] == ("A\tdog",)


def test_karpathy_split(images: Path) -> None:
    record = {"filename": "10.jpg", "split": "test", "sentences": [{"raw": "a"}, {"raw": "b"}]}
    other = {**record, "filename": "20.jpg", "split": "train"}
    path = write(images, json.dumps({"images": [record, other]}), "dataset_flickr30k.json")
    assert load_flickr30k(path, images, "test", size=8).about["file"] == ("10.jpg", "10.jpg")
    assert len(load_flickr30k(path, images, "test+train", size=8)) == 4
    with pytest.raises(ConfigError, match="no 'val'; it has test, train"):
        load_flickr30k(path, images, "val")


@pytest.mark.parametrize(
    "line", ["10.jpg#0 spaces only", "10.jpg\tno number", "10.jpg#x\tno number", "10.jpg#0"]
)
def test_malformed_lines_are_named(images: Path, line: str) -> None:
    path = write(images, f"10.jpg#0\tgood\n{line}\n")
    with pytest.raises(DataError, match=r"token, line 2: write a line as picture.jpg#0, a tab"):
        load_flickr30k(path, images)


def test_bad_input_is_named(images: Path) -> None:
    path = write(images, "10.jpg#0\tgood\n\n30.jpg#0\tgone\n20.jpg#0\t \n")
    with pytest.raises(DataError, match=r"results_20130124.token, line 3 names 30.jpg"):
        load_flickr30k(path, images)
    assert len(load_flickr30k(path, images, size=8, on_error="skip")) == 1
    with pytest.raises(ConfigError, match="has no splits; leave split out"):
        load_flickr30k(path, images, "train")
    with pytest.raises(DataError, match=r"no file .*gone.token"):
        load_flickr30k(images / "gone.token", images)
    with pytest.raises(DataError, match="not a Karpathy split file: it has no list of images"):
        load_flickr30k(write(images, "[]", "x.json"), images)
