"""AG_NEWS: titles and descriptions of news in four classes."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Literal

import torch

from motet.core.batch import Dataset
from motet.core.errors import DataError
from motet.data.readers._files import OnError, Problems, existing_file, read_text

CLASSES = ("World", "Sports", "Business", "Sci/Tech")


def load_agnews(
    path: Path, split: Literal["train", "test"] = "train", on_error: OnError = "raise"
) -> Dataset:
    """AG_NEWS (Zhang, Zhao and LeCun, NeurIPS 2015): texts "title. description", 4 classes.

    path: train.csv or test.csv with the columns class (1 to 4), title, description, with or
    without a header; or the folder that holds ``split``.csv.
    """
    source = path / f"{split}.csv" if path.is_dir() else path
    existing_file(source, "a csv with the columns class, title, description")
    problems = Problems(on_error)
    texts: list[str] = []
    labels: list[int] = []
    rows = csv.reader(io.StringIO(read_text(source), newline=""), strict=True)
    try:
        for cells in rows:
            where = f"{source.name}, line {rows.line_num}"
            if not cells or (rows.line_num == 1 and cells[0].lower().startswith("class")):
                continue
            complaint = _complaint(cells)
            if complaint:
                problems.add(f"{where}: {complaint}")
                continue
            labels.append(int(cells[0]) - 1)
            texts.append(". ".join(cell.strip() for cell in cells[1:] if cell.strip()))
    except csv.Error as error:
        raise DataError(f"{source}, line {rows.line_num} is not CSV: {error}") from None
    problems.close(len(texts), source)
    return Dataset(columns={"text": tuple(texts)}, labels=torch.tensor(labels), classes=CLASSES)


def _complaint(cells: list[str]) -> str | None:
    if len(cells) != 3:
        return f"{len(cells)} values instead of class, title and description"
    if cells[0] not in ("1", "2", "3", "4"):
        return f"the class {cells[0]!r} should be 1, 2, 3 or 4"
    if not any(cell.strip() for cell in cells[1:]):
        return "title and description are empty"
    return None
