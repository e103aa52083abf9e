"""CIFAR-10 and CIFAR-100 in their python form, read without trusting the pickles."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

from motet.core.batch import Dataset
from motet.core.errors import DataError
from motet.data.readers._files import existing_file, existing_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

Split: TypeAlias = Literal["train", "test", "all"]

_PIXELS = 3 * 32 * 32


def load_cifar10(path: Path, split: Split = "train") -> Dataset:
    """CIFAR-10: pictures [n, 3, 32, 32] and 10 classes (Krizhevsky, 2009).

    path: the folder cifar-10-batches-py, or the one that holds it.
    """
    folder = _inner(path, "cifar-10-batches-py", "cifar-10-python.tar.gz")
    classes = _names(folder / "batches.meta", "label_names")
    batches = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    pictures, codes = _rows(_files(folder, batches, split), {"labels": len(classes)})
    return Dataset(columns={"image": pictures}, labels=codes["labels"], classes=classes)


def load_cifar100(
    path: Path, split: Split = "train", labels: Literal["fine", "coarse"] = "fine"
) -> Dataset:
    """CIFAR-100: pictures [n, 3, 32, 32], 100 fine or 20 coarse classes (Krizhevsky, 2009).

    path: the folder cifar-100-python, or the one that holds it. The names of the other kind of
    classes are in ``about`` as ``coarse`` or ``fine``.
    """
    folder = _inner(path, "cifar-100-python", "cifar-100-python.tar.gz")
    fine, coarse = (_names(folder / "meta", f"{kind}_label_names") for kind in ("fine", "coarse"))
    files = _files(folder, {"train": ["train"], "test": ["test"]}, split)
    pictures, codes = _rows(files, {"fine_labels": len(fine), "coarse_labels": len(coarse)})
    by_fine = tuple(fine[code] for code in codes["fine_labels"].tolist())
    by_coarse = tuple(coarse[code] for code in codes["coarse_labels"].tolist())
    return Dataset(
        columns={"image": pictures},
        labels=codes[f"{labels}_labels"],
        classes=fine if labels == "fine" else coarse,
        about={"coarse": by_coarse} if labels == "fine" else {"fine": by_fine},
    )


def _inner(path: Path, name: str, archive: str) -> Path:
    existing_folder(path, f"{name}, unpacked from {archive}")
    return path / name if (path / name).is_dir() else path


def _files(folder: Path, names: dict[str, list[str]], split: Split) -> list[Path]:
    wanted = names["train"] + names["test"] if split == "all" else names[split]
    return [folder / name for name in wanted]


def _names(path: Path, key: str) -> tuple[str, ...]:
    names = _load(path).get(key.encode())
    if not (isinstance(names, list) and names and all(isinstance(n, bytes) for n in names)):
        raise DataError(f"{path} has no list {key}; it is not a meta file of CIFAR")
    return tuple(name.decode("utf-8", "replace") for name in names)


def _rows(files: list[Path], classes: dict[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures uint8 [n, 3, 32, 32] of all files, and the labels of each kind, int64 [n]."""
    pictures: list[NDArray[np.uint8]] = []
    codes: dict[str, list[int]] = {key: [] for key in classes}
    for path in files:
        content = _load(path)
        data = content.get(b"data")
        if not isinstance(data, _Array) or data.shape[1:] != (_PIXELS,):
            raise DataError(f"{path} has no data of {_PIXELS} bytes per picture")
        pictures.append(data.values())
        for key, count in classes.items():
            labels = content.get(key.encode())
            if not _are_labels(labels, data.shape[0], count):
                raise DataError(
                    f"{path}: {key} should be {data.shape[0]} numbers from 0 to {count - 1}"
                )
            codes[key] += labels
    stacked = torch.from_numpy(np.concatenate(pictures)).view(-1, 3, 32, 32)
    return stacked, {key: torch.tensor(values) for key, values in codes.items()}


def _are_labels(labels: object, rows: int, classes: int) -> TypeGuard[list[int]]:
    return (
        isinstance(labels, list)
        and len(labels) == rows
        and all(type(label) is int and 0 <= label < classes for label in labels)
    )


def _load(path: Path) -> dict[bytes, Any]:
    existing_file(path, "a file of CIFAR's python version")
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
    except Exception as error:
        # A damaged pickle makes the unpickler raise nearly anything.
        raise DataError(f"{path} cannot be read as a file of CIFAR: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no table; it is not a file of CIFAR")
    return content


class _Closed:
    """Base of all that a pickle may name: nothing can be written into it from there."""

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"{type(self).__name__} takes no state")


class _Ndarray(_Closed):
    """Stands for the class numpy.ndarray, which the pickle names but never calls."""

    def __new__(cls, *_: object) -> _Ndarray:
        raise pickle.UnpicklingError("it builds an array in an unknown way")


class _Dtype(_Closed):
    """Stands for numpy.dtype; CIFAR has bytes only."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"it holds an array of {code!r} instead of bytes")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment mean nothing for single bytes."""


class _Array(_Closed):
    """Stands for an array that numpy would reconstruct: a shape and the bytes."""

    shape: tuple[int, ...] = ()
    raw: bytes = b""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        whole = all(type(side) is int and side >= 0 for side in shape)
        if not (whole and isinstance(dtype, _Dtype) and isinstance(raw, bytes)):
            raise pickle.UnpicklingError("it holds a malformed array")
        if fortran or len(raw) != math.prod(shape):
            raise pickle.UnpicklingError(f"{len(raw)} bytes do not make an array of shape {shape}")
        self.shape, self.raw = tuple(shape), raw

    def values(self) -> NDArray[np.uint8]:
        return np.frombuffer(self.raw, dtype=np.uint8).reshape(self.shape)


class _Latin1(_Closed):
    """Stands for _codecs.encode, by which Python 3 writes bytes into old pickles."""

    def __new__(cls, text: str, encoding: str | bytes) -> bytes:  # type: ignore[misc]
        if encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
        return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], type[_Closed]] = {
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("_codecs", "encode"): _Latin1,
}


class _Unpickler(pickle.Unpickler):
    """Reads plain values and byte arrays, and refuses whatever else a pickle may name.

    A pickle can call any function of any module while it is read, so a downloaded file would run
    code with the rights of whoever reads it. CIFAR needs four names; each gets a stand-in of this
    file, so that not even numpy is called from inside a pickle.
    """

    def find_class(self, module: str, name: str) -> type[_Closed]:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which CIFAR does not need; the file may be malicious"
            )
        return _ALLOWED[module, name]
