"""COCO captions: the official annotation files and Karpathy's split of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from motet.core.batch import Dataset
from motet.core.errors import ConfigError, DataError
from motet.data.readers._captions import Line, caption_dataset, caption_lines, karpathy_lines
from motet.data.readers._files import OnError, existing_file, read_json


def load_coco(
    path: Path,
    images: Path,
    split: str | None = None,
    size: int = 64,
    on_error: OnError = "raise",
) -> Dataset:
    """COCO pictures and captions, one row per caption.

    path: captions_train2014.json or the like, or dataset_coco.json of Karpathy and Fei-Fei (CVPR
    2015). images: folder of the pictures; for dataset_coco.json the folder that holds train2014
    and val2014. split: with dataset_coco.json "train", "restval", "val", "test", or several
    joined by "+". size: pixels of the square that pictures are stretched to.
    """
    existing_file(path, "a COCO caption file or dataset_coco.json")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{path} is not a COCO caption file: it has no list of images")
    if "annotations" not in content:
        lines = karpathy_lines(content, path, split)
    elif split is None:
        lines = _official_lines(content, path)
    else:
        raise ConfigError(
            f"split: {path.name} has one split only; leave split out, or read dataset_coco.json"
        )
    return caption_dataset(lines, images, path, size, on_error)


def _official_lines(content: dict[str, Any], source: Path) -> list[Line]:
    lines = []
    try:
        files = {image["id"]: image["file_name"] for image in content["images"]}
        for note in content["annotations"]:
            where = f"{source.name}, annotation {note['id']}"
            if note["image_id"] not in files:
                raise DataError(f"{where}: there is no image with the id {note['image_id']}")
            lines += caption_lines(files[note["image_id"]], note["caption"], where)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{source} is not a COCO caption file: images need id and file_name, annotations need "
            f"id, image_id and caption ({type(error).__name__}: {error})"
        ) from None
    return lines
