"""AG_NEWS as csv, with and without a header."""

from __future__ import annotations

from pathlib import Path

import pytest

from motet.core import DataError
from motet.data.readers.agnews import load_agnews

ROWS = (
    '"3","Wall St. Bears","Short-sellers, Wall Street\'s dwindling band\\, are ""green"""\n'
    '"1","Iraq","Oil"\n'
    '"4","Only a title",""\n'
)


@pytest.mark.parametrize("header", ["", "Class Index,Title,Description\n"])
def test_rows_in_order(tmp_path: Path, header: str) -> None:
    (tmp_path / "test.csv").write_text(header + ROWS, encoding="utf-8")
    for data in (load_agnews(tmp_path / "test.csv"), load_agnews(tmp_path, "test")):
        assert data.columns["text"] == (
            'Wall St. Bears. Short-sellers, Wall Street\'s dwindling band\\, are "green"',
            "Iraq. Oil",
            "Only a title",
        )
        assert data.labels is not None
        assert data.labels.tolist() == [2, 0, 3]
        assert data.classes == ("World", "Sports", "Business", "Sci/Tech")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("5,a,b", "train.csv, line 2: the class '5' should be 1, 2, 3 or 4"),
        ("1,a", "train.csv, line 2: 2 values instead of class, title and description"),
        ("1, ,", "train.csv, line 2: title and description are empty"),
    ],
)
def test_bad_rows_are_named_or_skipped(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "train.csv").write_text(f"1,a,b\n{row}\n2,c,d\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_agnews(tmp_path)
    assert load_agnews(tmp_path, on_error="skip").columns["text"] == ("a. b", "c. d")


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*test.csv; it should be a csv with the columns"):
        load_agnews(tmp_path, "test")
    (tmp_path / "test.csv").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"test.csv gives no rows"):
        load_agnews(tmp_path, "test")
    (tmp_path / "test.csv").write_text('1,"a,b', encoding="utf-8")
    with pytest.raises(DataError, match=r"test.csv, line 1 is not CSV"):
        load_agnews(tmp_path, "test")
