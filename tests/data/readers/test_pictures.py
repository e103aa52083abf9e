"""Pictures of all kinds come out as RGB squares, and broken ones as complaints."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from motet.core import ConfigError
from motet.data.readers._pictures import decode, decode_all


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours(picture: np.ndarray) -> list[int]:
    """The mean colour, rounded."""
    return [round(float(value)) for value in picture.mean(axis=(1, 2))]


@pytest.mark.parametrize("size", [(8, 8), (40, 20), (3, 90)])
def test_any_shape_becomes_a_square(size: tuple[int, int]) -> None:
    picture = decode(encoded(Image.new("RGB", size, (200, 100, 50))), 16)
    assert picture.shape == (3, 16, 16)
    assert picture.dtype == np.uint8
    assert colours(picture) == [200, 100, 50]


def test_rows_and_columns_stay_where_they_are() -> None:
    image = Image.new("RGB", (64, 64), (0, 0, 0))
    image.paste((255, 0, 0), (0, 0, 64, 16))
    picture = decode(encoded(image), 8)
    assert picture[0, 0].min() > 200
    assert picture[0, 4:].max() == 0
    assert picture[1:].max() == 0


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "I;16"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = Image.new("L", (8, 8), 255)
    white = Image.new("I;16", (8, 8), 65535) if mode == "I;16" else image.convert(mode)
    picture = decode(encoded(white, "TIFF" if mode == "CMYK" else "PNG"), 8)
    assert colours(picture) == [255, 255, 255]


def test_what_is_transparent_is_white() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert colours(decode(encoded(image), 8)) == [255, 255, 255]
    palette = Image.new("P", (8, 8), 0)
    assert colours(decode(encoded(palette, transparency=0), 8)) == [255, 255, 255]


def test_a_photograph_is_turned_upright() -> None:
    image = Image.new("RGB", (64, 64), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = decode(encoded(image, "JPEG", exif=exif), 8)
    assert turned[:, 0].max() < 10
    assert turned[:, 7].min() > 245


def test_a_large_jpeg_is_close_to_what_full_decoding_gives() -> None:
    ramp = np.linspace(0, 255, 640, dtype=np.uint8)
    image = Image.fromarray(np.stack([np.tile(ramp, (480, 1))] * 3, axis=-1))
    fast = decode(encoded(image, "JPEG", quality=95), 64).astype(int)
    full = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(fast - full).max() <= 4


def test_broken_pictures_are_told_apart(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise))
    gone = tmp_path / "gone.png"
    sources: list[Path | bytes] = [whole, b"no picture", whole[: len(whole) // 2], b"", gone, whole]
    pictures, broken = decode_all(sources, 8)
    assert sorted(broken) == [1, 2, 3, 4]
    assert "cannot identify image file" in broken[1]
    assert "gone.png" in broken[4]
    assert pictures[0].sum() > 0
    assert pictures[0].equal(pictures[5])
    assert int(pictures[1:5].sum()) == 0


def test_more_pictures_than_a_slice_stay_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("motet.data.readers._pictures._SLICE", 4)
    sources = [encoded(Image.new("RGB", (2, 2), (i, 0, 0))) for i in range(11)]
    sources[6] = b"no"
    pictures, broken = decode_all(sources, 2)
    assert pictures[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 0, 7, 8, 9, 10]
    assert list(broken) == [6]


@pytest.mark.parametrize("size", [0, 5000])
def test_the_size_is_bounded(size: int) -> None:
    with pytest.raises(ConfigError, match=f"size={size}: write a number of pixels from 1 to 4096"):
        decode_all([], size)
