"""A user's folder: pictures with captions.csv or captions.jsonl, and what can be wrong with it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from motet.core import ConfigError, DataError
from motet.data import load_data
from motet.data.readers.folder import load_folder

CSV = """file,caption,label,place
a.png,"a red square, small",red,north
sub/b.jpg,a green square,green,south
a.png,it is red,red,north
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (20, 10), (255, 0, 0)).save(tmp_path / "a.png")
    Image.new("RGB", (10, 10), (0, 255, 0)).save(tmp_path / "sub/b.jpg", quality=95)
    (tmp_path / "captions.csv").write_text(CSV, encoding="utf-8")
    return tmp_path


def write(folder: Path, text: str, name: str = "captions.csv") -> None:
    (folder / name).write_text(text, encoding="utf-8")


def test_a_row_per_caption(folder: Path) -> None:
    data = load_folder(folder, size=8)
    assert data.columns["text"] == ("a red square, small", "a green square", "it is red")
    images = data.columns["image"]
    assert isinstance(images, torch.Tensor)
    assert images.dtype == torch.uint8
    assert images.shape == (3, 3, 8, 8)
    assert images[0].equal(images[2])
    assert images[0].flatten(1).float().mean(dim=1).tolist() == [255, 0, 0]
    assert images[1].flatten(1).float().mean(dim=1)[1] > 250
    assert data.labels is not None
    assert [data.classes[code] for code in data.labels.tolist()] == ["red", "green", "red"]
    assert data.about["place"] == ("north", "south", "north")
    assert data.about["file"] == ("a.png", "sub/b.jpg", "a.png")
    ids = data.about["image_id"]
    assert isinstance(ids, torch.Tensor)
    assert ids.tolist() == [0, 1, 0]
    assert set(data.about) == {"place", "file", "image_id"}
    assert data.rows.tolist() == [0, 1, 2]


def test_the_default_size_is_64(folder: Path) -> None:
    assert load_folder(folder).columns["image"].shape == (3, 3, 64, 64)  # type: ignore[union-attr]


def test_json_lines_hold_one_caption_or_several(folder: Path) -> None:
    (folder / "captions.csv").unlink()
    lines = [
        {"file": "a.png", "caption": ["red", "a line\u2028break"], "year": 2001},
        {"year": 2002, "file": "sub/b.jpg", "caption": "grün"},
    ]
    write(
        folder,
        "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n",
        "captions.jsonl",
    )
    data = load_folder(folder, size=4)
    assert data.columns["text"] == ("red", "a line\u2028break", "grün")
    assert data.about["year"] == ("2001", "2001", "2002")
    assert data.labels is None
    assert data.classes == ()


def test_columns_may_have_other_names(folder: Path) -> None:
    write(folder, "\ufeffpicture;x,text,colour\na.png,red,r\nsub/b.jpg,green,g\n".replace(";x", ""))
    data = load_folder(
        folder, size=4, file_column="picture", caption_column="text", label_column="colour"
    )
    assert data.classes == ("g", "r")
    assert data.columns["text"] == ("red", "green")


def test_the_caption_file_may_lie_elsewhere(folder: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other") / "list.csv"
    write(other.parent, "file,caption\na.png,red\n", "list.csv")
    assert len(load_folder(folder, captions=other, size=4)) == 1
    write(folder, "file,caption\na.png,red\nsub/b.jpg,green\n", "inside.csv")
    assert len(load_folder(folder, captions=Path("inside.csv"), size=4)) == 2
    with pytest.raises(DataError, match=r"there is no file .*list2.csv; it should be the caption"):
        load_folder(folder, captions=other.with_name("list2.csv"))
    write(folder, "", "captions.txt")
    with pytest.raises(ConfigError, match=r"captions.txt should be a .csv or a .jsonl"):
        load_folder(folder, captions=Path("captions.txt"))


BAD_LINES = [
    ("c.png,nothing there", r"captions.csv, line 2 names c.png, which is not in .*"),
    ("a.png,  ", "captions.csv, line 2: the caption of a.png is empty"),
    ("broken.png,zig zag", r"broken.png \(captions.csv, line 2\) cannot be read as a picture: .*"),
    ("../a.png,outside", "captions.csv, line 2: '../a.png' is not a path inside .*"),
    ("/etc/a.png,outside", "captions.csv, line 2: '/etc/a.png' is not a path inside .*"),
    (",no file", "captions.csv, line 2: '' is not a path inside .*"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_bad_lines_are_named_or_skipped(
    folder: Path, line: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:40])
    write(folder, f"file,caption\n{line}\na.png,red\nsub/b.jpg,green\n")
    with pytest.raises(DataError, match=message + r" \(on_error: .skip. leaves such rows out\)"):
        load_folder(folder)
    with caplog.at_level(logging.WARNING, "motet.data"):
        data = load_folder(folder, size=4, on_error="skip")
    assert data.columns["text"] == ("red", "green")
    assert data.about["image_id"].tolist() == [0, 1]  # type: ignore[union-attr]
    assert "1 problems skipped, first: " in caplog.text


def test_a_broken_picture_is_named_with_its_first_line(folder: Path) -> None:
    (folder / "sub/b.jpg").write_bytes(b"")
    write(folder, "file,caption\na.png,red\nsub/b.jpg,green\nsub/b.jpg,it is green\n")
    with pytest.raises(DataError, match=r"b.jpg \(captions.csv, line 3\) cannot be read"):
        load_folder(folder)
    assert len(load_folder(folder, size=4, on_error="skip")) == 1


def test_an_empty_label_is_named(folder: Path) -> None:
    write(folder, "file,caption,label\na.png,red,\n")
    with pytest.raises(DataError, match=r"captions.csv, line 2: the label of a.png is empty"):
        load_folder(folder)


def test_skipping_all_rows_is_an_error(folder: Path) -> None:
    write(folder, "file,caption\nc.png,red\nd.png,\n")
    with pytest.raises(DataError, match=r"gives no rows; 2 were left out, first: .* names c.png"):
        load_folder(folder, on_error="skip")
    write(folder, "file,caption\n")
    with pytest.raises(DataError, match=r"captions.csv gives no rows$"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "captions.csv is empty; its first line should name the columns"),
        ("file;caption\n", "has no column 'file' .*; it has 'file;caption'"),
        (
            "file,text\na.png,red\n",
            r"has no column 'caption' \(caption_column\); it has 'file', 't",
        ),
        ("file,caption\na.png,a red, small one\n", "line 2 has 3 values for 2 columns; put a cap"),
        ("file,caption\na.png\n", "line 2 has 1 values for 2 columns"),
        ('file,caption\na.png,"red\n', r"captions.csv, line 2 is not CSV: unexpected end"),
        ("file,caption,image_id\na.png,red,1\n", "rename the column image_id"),
    ],
)
def test_bad_csv_files_are_named(folder: Path, text: str, message: str) -> None:
    write(folder, text)
    with pytest.raises(DataError, match=message):
        load_folder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file": "a.png", "caption": "red"}\n{"file": ', "jsonl, line 2 is not JSON: "),
        ('["a.png", "red"]', "jsonl, line 1: write an object such as"),
        ('{"file": "a.png", "text": "red"}', "no column 'caption'"),
        ('{"file": "a.png", "caption": 3}', "line 1: write the file name and its caption"),
        ('{"file": "a.png", "caption": ["x", null]}', "line 1: write the file name and its capti"),
        ('{"file": "a.png", "caption": []}', "line 1: the caption of a.png is empty"),
        (
            '{"file": "a.png", "caption": "red"}\n{"file": "a.png", "caption": "red", "day": 1}',
            "line 2 and the first line differ in day",
        ),
    ],
)
def test_bad_json_lines_are_named(folder: Path, text: str, message: str) -> None:
    (folder / "captions.csv").unlink()
    write(folder, text, "captions.jsonl")
    with pytest.raises(DataError, match=message):
        load_folder(folder)


def test_other_encodings_are_refused(folder: Path) -> None:
    (folder / "captions.csv").write_bytes("file,caption\na.png,grün\n".encode("latin1"))
    with pytest.raises(DataError, match=r"captions.csv is not UTF-8 text \(byte 21\)"):
        load_folder(folder)


def test_missing_folders_and_files_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; it should be a folder with pict"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"a.png is a file; it should be a folder"):
        load_folder(folder / "a.png")
    with pytest.raises(DataError, match=r"neither captions.csv nor captions.jsonl; write one with"):
        load_folder(folder / "sub")


def test_the_registry_reads_it_from_plain_values(folder: Path) -> None:
    data = load_data("folder", path=str(folder), size=4)
    assert len(data) == 3
