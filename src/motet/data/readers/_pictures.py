"""Pictures of any kind as uint8 tensors of one size."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from motet.core.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Source: TypeAlias = Path | bytes

_THREADS = 4
_SLICE = 512


def decode(source: Source, size: int) -> NDArray[np.uint8]:
    """One picture as RGB [3, size, size]: turned upright, on white, stretched to a square.

    Raises ValueError with Pillow's complaint for anything that is not a whole picture.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            # Lets a JPEG be decoded at a fraction of its size; other formats ignore it.
            opened.draft("RGB", (size, size))
            upright = ImageOps.exif_transpose(opened)
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                white = Image.new("RGBA", rgba.size, "white")
                upright = Image.alpha_composite(white, rgba)
            small = upright.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    except Exception as error:
        # Pillow's decoders raise whatever their format makes them: OSError, SyntaxError, ...
        raise ValueError(str(error) or type(error).__name__) from error
    return np.asarray(small).transpose(2, 0, 1)


def decode_all(sources: Sequence[Source], size: int) -> tuple[Tensor, dict[int, str]]:
    """All pictures, uint8 [n, 3, size, size], and position -> complaint for the broken ones."""
    if not 1 <= size <= 4096:
        raise ConfigError(f"size={size}: write a number of pixels from 1 to 4096")
    pictures = np.zeros((len(sources), 3, size, size), dtype=np.uint8)
    broken: dict[int, str] = {}
    # Pillow decodes without the interpreter's lock, so threads help.
    with ThreadPoolExecutor(_THREADS) as pool:
        # Slice by slice, because map takes in all of its sources at once.
        for start in range(0, len(sources), _SLICE):
            decoded = pool.map(partial(_decoded, size=size), sources[start : start + _SLICE])
            for at, picture in enumerate(decoded, start):
                if isinstance(picture, str):
                    broken[at] = picture
                else:
                    pictures[at] = picture
    return torch.from_numpy(pictures), broken


def _decoded(source: Source, size: int) -> NDArray[np.uint8] | str:
    try:
        return decode(source, size)
    except ValueError as error:
        return str(error)
