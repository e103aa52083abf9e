"""Flickr30k: the token file of its authors and Karpathy's split of it."""

from __future__ import annotations

from pathlib import Path

from motet.core.batch import Dataset
from motet.core.errors import ConfigError, DataError
from motet.data.readers._captions import Line, caption_dataset, caption_lines, karpathy_lines
from motet.data.readers._files import OnError, existing_file, read_json, read_text


def load_flickr30k(
    path: Path,
    images: Path,
    split: str | None = None,
    size: int = 64,
    on_error: OnError = "raise",
) -> Dataset:
    """Flickr30k pictures and captions, one row per caption.

    path: results_20130124.token (Young et al., TACL 2014) or dataset_flickr30k.json (Karpathy and
    Fei-Fei, CVPR 2015). images: folder of the pictures. split: with the .json file "train",
    "val", "test", or several joined by "+". size: pixels of the square that pictures are
    stretched to.
    """
    existing_file(path, "results_20130124.token or dataset_flickr30k.json")
    if path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("images"), list):
            raise DataError(f"{path} is not a Karpathy split file: it has no list of images")
        lines = karpathy_lines(content, path, split)
    elif split is None:
        lines = _token_lines(path)
    else:
        raise ConfigError(
            f"split: {path.name} has no splits; leave split out, or read dataset_flickr30k.json"
        )
    return caption_dataset(lines, images, path, size, on_error)


def _token_lines(source: Path) -> list[Line]:
    """Lines such as ``1000092795.jpg#0<tab>Two young guys ...``."""
    lines = []
    for number, text in enumerate(read_text(source).split("\n"), start=1):
        if not text.strip():
            continue
        where = f"{source.name}, line {number}"
        name, tab, caption = text.partition("\t")
        picture, sharp, count = name.rpartition("#")
        if not (tab and sharp and count.isdigit()):
            raise DataError(f"{where}: write a line as picture.jpg#0, a tab, and the caption")
        lines += caption_lines(picture, caption.strip(), where)
    return lines
