"""From lines that name a picture and a caption to a data set with one row per caption."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import torch

from motet.core.batch import Dataset
from motet.core.errors import ConfigError, DataError
from motet.data._common import codes_of
from motet.data.readers._files import OnError, Problems, existing_folder
from motet.data.readers._pictures import decode_all


@dataclass(frozen=True)
class Line:
    """One caption: the picture's path inside its folder, the text, and where it was written."""

    picture: str
    caption: str
    where: str
    label: str | None = None
    about: Mapping[str, str] = field(default_factory=dict)


def caption_dataset(
    lines: Iterable[Line], images: Path, source: Path, size: int, on_error: OnError
) -> Dataset:
    """Pictures [n, 3, size, size] beside their captions; each picture is decoded once.

    images: the folder of the pictures. source: the caption file, for messages. The columns
    ``image_id`` (pictures numbered from 0) and ``file`` tell which rows share a picture.
    """
    existing_folder(images, f"the pictures that {source.name} names")
    problems = Problems(on_error)
    usable = [line for line in lines if _usable(line, images, problems)]
    first = {line.picture: line for line in reversed(usable)}
    names = list(dict.fromkeys(line.picture for line in usable))
    pictures, broken = decode_all([images / name for name in names], size)
    for position, complaint in broken.items():
        name = names[position]
        problems.add(
            f"{images / name} ({first[name].where}) cannot be read as a picture: {complaint}"
        )
    bad = {names[position] for position in broken}
    kept = [line for line in usable if line.picture not in bad]
    problems.close(len(kept), source)
    number = {name: position for position, name in enumerate(names)}
    at = torch.tensor([number[line.picture] for line in kept])
    labels, classes = _labels(kept)
    return Dataset(
        columns={"image": pictures[at], "text": tuple(line.caption for line in kept)},
        labels=labels,
        classes=classes,
        about={
            **{key: tuple(line.about[key] for line in kept) for key in kept[0].about},
            "image_id": torch.unique(at, return_inverse=True)[1],
            "file": tuple(line.picture for line in kept),
        },
    )


def caption_lines(picture: object, captions: object, where: str, **further: Any) -> list[Line]:
    """Lines of one picture that has one caption or a list of them; DataError for other values."""
    texts = captions if isinstance(captions, list) else [captions]
    strings = [text for text in texts or [""] if isinstance(text, str)]
    if not isinstance(picture, str) or len(strings) < len(texts):
        raise DataError(f"{where}: write the file name and its caption, or captions, as strings")
    return [Line(picture, text, where, **further) for text in strings]


def karpathy_lines(content: Any, source: Path, split: str | None) -> list[Line]:
    """Lines of a Karpathy split file (dataset_coco.json, dataset_flickr30k.json).

    split: train, restval, val or test, several joined by "+"; None for all of them.
    """
    records = content["images"]
    wanted = None if split is None else {part.strip() for part in split.split("+")}
    lines = []
    try:
        there = sorted({record["split"] for record in records})
        if wanted is not None and not wanted <= set(there):
            raise ConfigError(f"split: {source.name} has no {split!r}; it has {', '.join(there)}")
        for record in records:
            if wanted is None or record["split"] in wanted:
                picture = str(PurePath(record.get("filepath", ""), record["filename"]))
                captions = [sentence["raw"] for sentence in record["sentences"]]
                where = f"{source.name}, {record['filename']}"
                about = {"split": record["split"]}
                lines += caption_lines(picture, captions, where, about=about)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{source} is not a Karpathy split file: an entry of images needs filename, split and "
            f"sentences with raw ({type(error).__name__}: {error})"
        ) from None
    return lines


def _usable(line: Line, images: Path, problems: Problems) -> bool:
    """Whether the line has a caption and names a picture that is there; tells what is wrong."""
    path = PurePath(line.picture)
    if not line.caption.strip():
        problems.add(f"{line.where}: the caption of {line.picture or 'no file'} is empty")
    elif line.label is not None and not line.label.strip():
        problems.add(f"{line.where}: the label of {line.picture} is empty")
    elif not line.picture or path.is_absolute() or ".." in path.parts:
        problems.add(f"{line.where}: {line.picture!r} is not a path inside {images}")
    elif not (images / path).is_file():
        problems.add(f"{line.where} names {line.picture}, which is not in {images}")
    else:
        return True
    return False


def _labels(lines: list[Line]) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    names = tuple(line.label for line in lines if line.label is not None)
    return codes_of(names) if names else (None, ())
