"""A folder of pictures with a caption file: the format for a user's own data."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from motet.core.batch import Dataset
from motet.core.errors import ConfigError, DataError
from motet.data.readers._captions import Line, caption_dataset, caption_lines
from motet.data.readers._files import OnError, existing_file, existing_folder, read_text

DEFAULT_FILES = ("captions.csv", "captions.jsonl")


def load_folder(
    path: Path,
    captions: Path | None = None,
    size: int = 64,
    file_column: str = "file",
    caption_column: str = "caption",
    label_column: str | None = None,
    on_error: OnError = "raise",
) -> Dataset:
    """Pictures and captions of a folder, one row per caption.

    path: folder of the pictures. captions: a .csv with a header, or a .jsonl with one object per
    line; by default captions.csv or captions.jsonl in the folder. It names a file inside the
    folder and its caption; several captions are several lines, or a list in a .jsonl. A column
    ``label`` (or ``label_column``) gives classes; all others become columns of ``about``.
    size: pixels of the square that pictures are stretched to. on_error: "skip" logs bad lines
    and leaves them out.
    """
    existing_folder(path, "pictures and captions.csv or captions.jsonl")
    source = _caption_file(path, captions)
    reader = _from_jsonl if source.suffix == ".jsonl" else _from_csv
    lines = reader(source, file_column, caption_column, label_column)
    return caption_dataset(lines, path, source, size, on_error)


def _caption_file(folder: Path, captions: Path | None) -> Path:
    if captions is not None:
        inside = folder / captions
        source = existing_file(inside if inside.is_file() else captions, "the caption file")
        if source.suffix not in (".csv", ".jsonl"):
            raise ConfigError(f"captions: {captions} should be a .csv or a .jsonl file")
        return source
    for name in DEFAULT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{folder} has neither {' nor '.join(DEFAULT_FILES)}; write one with the columns file and "
        "caption"
    )


def _from_csv(source: Path, file: str, caption: str, label: str | None) -> list[Line]:
    rows = csv.reader(io.StringIO(read_text(source), newline=""), strict=True)
    lines = []
    try:
        header = next(rows, [])
        label = _check_columns(header, source, file, caption, label)
        for cells in rows:
            where = f"{source.name}, line {rows.line_num}"
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{where} has {len(cells)} values for {len(header)} columns; put a caption "
                    "that holds a comma between double quotes"
                )
            lines += _line(dict(zip(header, cells, strict=True)), where, file, caption, label)
    except csv.Error as error:
        raise DataError(f"{source}, line {rows.line_num} is not CSV: {error}") from None
    return lines


def _from_jsonl(source: Path, file: str, caption: str, label: str | None) -> list[Line]:
    lines: list[Line] = []
    header: list[str] = []
    for number, text in enumerate(read_text(source).split("\n"), start=1):
        if not text.strip():
            continue
        where = f"{source.name}, line {number}"
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{source}, line {number} is not JSON: {error.msg}") from None
        if not isinstance(record, dict):
            raise DataError(f'{where}: write an object such as {{"file": ..., "caption": ...}}')
        if not header:
            header = list(record)
            label = _check_columns(header, source, file, caption, label)
        if set(record) != set(header):
            odd = ", ".join(sorted(set(record) ^ set(header)))
            raise DataError(f"{where} and the first line differ in {odd}; give all the same keys")
        lines += _line(record, where, file, caption, label)
    return lines


def _check_columns(
    header: list[str], source: Path, file: str, caption: str, label: str | None
) -> str | None:
    """The label column, if there is one; complains about columns that are not there."""
    if not header:
        raise DataError(f"{source} is empty; its first line should name the columns")
    for option, name in (
        ("file_column", file),
        ("caption_column", caption),
        ("label_column", label),
    ):
        if name is not None and name not in header:
            there = ", ".join(repr(column) for column in header)
            raise DataError(f"{source} has no column {name!r} ({option}); it has {there}")
    taken = [name for name in ("image_id", "file") if name in header and name != file]
    if taken:
        raise DataError(
            f"{source}: rename the column {taken[0]}; the reader gives that name itself"
        )
    return "label" if label is None and "label" in header else label


def _line(
    record: dict[str, object], where: str, file: str, caption: str, label: str | None
) -> list[Line]:
    further = {key: str(record[key]) for key in record if key not in (file, caption, label)}
    own = None if label is None else str(record[label])
    return caption_lines(record[file], record[caption], where, label=own, about=further)
