"""Raw columns as the encoders want them, or an error that says what is wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from motet.core.batch import Column
from motet.core.errors import DataError


def pictures_of(column: Column) -> Tensor:
    """The column as uint8 [n, 3, H, W]; raises DataError for anything else."""
    if not isinstance(column, Tensor):
        raise DataError("a picture encoder got texts; pictures are uint8 of shape [n, 3, H, W]")
    if column.dtype != torch.uint8 or column.ndim != 4 or column.shape[1] != 3:
        found = f"{str(column.dtype).removeprefix('torch.')} of shape {list(column.shape)}"
        raise DataError(f"pictures must be uint8 of shape [n, 3, H, W], not {found}")
    return column


def texts_of(column: Column) -> tuple[str, ...]:
    """The column as n strings; raises DataError for a tensor."""
    if isinstance(column, Tensor):
        raise DataError("a text encoder got a tensor; texts are strings, one per row")
    return column
