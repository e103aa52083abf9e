"""Data sets that Hugging Face ``datasets`` has saved to disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from motet.core.batch import Column, Dataset
from motet.core.errors import ConfigError, DataError
from motet.data._common import codes_of
from motet.data.readers._files import OnError, Problems, existing_folder
from motet.data.readers._pictures import Source, decode_all


def load_huggingface(
    path: Path,
    image: str | None = None,
    text: str | None = None,
    label: str | None = None,
    about: tuple[str, ...] = (),
    split: str | None = None,
    size: int = 64,
    on_error: OnError = "raise",
) -> Dataset:
    """A data set from ``save_to_disk`` (extra ``hf``); nothing is downloaded.

    path: the folder given to save_to_disk. image, text, label: names of the columns to read; a
    text column that holds lists of strings gives one row per string. about: further columns to
    keep; ``image_id``, the row of the saved data set, is always there. split: for a folder with
    several. size: pixels of the square that pictures are stretched to.
    """
    saved = _open(path, split)
    _check_columns(saved, path, {"image": image, "text": text, "label": label}, about)
    problems = Problems(on_error)
    texts: list[str] = []
    at = list(range(len(saved)))
    if text is not None:
        at, texts = _texts(saved[text], f"{path}, column {text}", problems)
    columns: dict[str, Column] = {}
    if image is not None:
        pictures, broken = decode_all(_Encoded(saved, image), size)
        for row, complaint in broken.items():
            problems.add(f"{path}, row {row}, column {image} is not a picture: {complaint}")
        kept = [position for position, row in enumerate(at) if row not in broken]
        at, texts = [at[i] for i in kept], [texts[i] for i in kept if texts]
        columns["image"] = pictures[torch.tensor(at, dtype=torch.int64)]
    problems.close(len(at), path)
    if text is not None:
        columns["text"] = tuple(texts)
    labels, classes = (None, ()) if label is None else _labels(saved, label, at)
    kept_columns = {name: list(saved[name]) for name in about}
    further = {name: _plain([kept_columns[name][row] for row in at]) for name in about}
    return Dataset(
        columns=columns,
        labels=labels,
        classes=classes,
        about={**further, "image_id": torch.tensor(at)},
    )


class _Encoded(Sequence[Source]):
    """The files of a picture column, fetched slice by slice."""

    def __init__(self, saved: Any, name: str) -> None:
        from datasets import Image

        if not isinstance(saved.features[name], Image):
            raise ConfigError(f"image: column {name} holds {saved.features[name]}, not pictures")
        self._column = saved.cast_column(name, Image(decode=False))[name]

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self._source(value) for value in self._column[at]]
        return self._source(self._column[at])

    @staticmethod
    def _source(value: Any) -> Source:
        if value is None:
            return b""
        return Path(value["path"]) if value["bytes"] is None else bytes(value["bytes"])


def _open(path: Path, split: str | None) -> Any:
    existing_folder(path, "a data set saved by save_to_disk")
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError:
        raise ConfigError(
            "huggingface needs the package datasets: pip install 'motet[hf]'"
        ) from None
    try:
        saved = load_from_disk(str(path))
    except Exception as error:
        # Missing files, damaged Arrow tables and old formats all raise errors of their own.
        raise DataError(f"{path} is not a data set saved by save_to_disk: {error}") from None
    if not isinstance(saved, DatasetDict):
        if split is not None:
            raise ConfigError(f"split: {path} has no splits; leave split out")
        return saved
    if split not in saved:
        raise ConfigError(f"split: {path} has no {split!r}; write one of {', '.join(saved)}")
    return saved[split]


def _check_columns(
    saved: Any, path: Path, wanted: dict[str, str | None], about: tuple[str, ...]
) -> None:
    there = ", ".join(saved.column_names)
    if wanted["image"] is None and wanted["text"] is None:
        raise ConfigError(f"huggingface: name an image or a text column; {path} has {there}")
    named = [*wanted.items(), *(("about", name) for name in about)]
    for option, name in named:
        if name is not None and name not in saved.column_names:
            raise ConfigError(f"{option}: {path} has no column {name!r}; it has {there}")


def _texts(column: Any, where: str, problems: Problems) -> tuple[list[int], list[str]]:
    """Row and text of every string in the column."""
    at: list[int] = []
    texts: list[str] = []
    for row, value in enumerate(column):
        strings = value if isinstance(value, list) else [value]
        for text in strings:
            if text is not None and not isinstance(text, str):
                raise ConfigError(f"text: {where} holds {type(text).__name__}, not strings")
            if not text or not text.strip():
                problems.add(f"{where}, row {row}: the text is empty")
                continue
            at.append(row)
            texts.append(text)
    return at, texts


def _labels(saved: Any, name: str, at: list[int]) -> tuple[Tensor, tuple[str, ...]]:
    column = list(saved[name])
    values = [column[row] for row in at]
    if any(not isinstance(value, int | str) for value in values):
        raise DataError(f"label: column {name} should hold numbers or strings in every row")
    names = getattr(saved.features[name], "names", None)
    if names is None:
        return codes_of(_plain(values))
    if min(values) < 0:
        raise DataError(f"label: column {name} has rows without a class (-1)")
    return torch.tensor(values), tuple(names)


def _plain(values: list[Any]) -> Column:
    """Whole numbers as int64 [n], anything else as strings."""
    if all(type(value) is int for value in values):
        return torch.tensor(values, dtype=torch.int64)
    return tuple(str(value) for value in values)
