"""CIFAR's pickles are read, and whatever else a pickle can do is not."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from motet.core import DataError
from motet.data.readers.cifar import load_cifar10, load_cifar100

NAMES = [b"airplane", b"automobile", b"bird"]


def pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def dumped(value: Any, protocol: int = 2) -> bytes:
    """As CIFAR has it: protocol 2, with the names that numpy had when it was written."""
    if protocol > 2:
        return pickle.dumps(value, protocol=protocol)
    return pickle.dumps(value, protocol=2).replace(b"numpy._core.", b"numpy.core.")


def write(path: Path, value: Any, protocol: int = 2) -> None:
    path.write_bytes(dumped(value, protocol))


@pytest.fixture(params=[2, 3, 4], ids=lambda protocol: f"protocol {protocol}")
def cifar10(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(files):
        labels = [(number + i) % 3 for i in range(2)]
        content = {b"data": pixels(2, number), b"labels": labels, b"filenames": [b"a", b"b"]}
        write(folder / name, content, request.param)
    write(folder / "batches.meta", {b"label_names": NAMES, b"num_vis": 3072}, request.param)
    return tmp_path


def test_cifar10(cifar10: Path) -> None:
    train = load_cifar10(cifar10)
    images = train.columns["image"]
    assert isinstance(images, torch.Tensor)
    assert images.shape == (10, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert images[2].flatten().tolist() == pixels(2, 1)[0].tolist()
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, 1, 2, 2, 0, 0, 1, 1, 2]
    assert train.classes == ("airplane", "automobile", "bird")
    test = load_cifar10(cifar10 / "cifar-10-batches-py", "test")
    assert test.columns["image"].flatten(1).equal(torch.from_numpy(pixels(2, 5)))  # type: ignore[union-attr]
    assert len(load_cifar10(cifar10, "all")) == 12


@pytest.fixture
def cifar100(tmp_path: Path) -> Path:
    for name, seed in (("train", 0), ("test", 1)):
        content = {
            b"data": pixels(3, seed),
            b"fine_labels": [2, 0, 1],
            b"coarse_labels": [1, 0, 0],
        }
        write(tmp_path / name, content)
    meta = {b"fine_label_names": NAMES, b"coarse_label_names": [b"vehicle", b"animal"]}
    write(tmp_path / "meta", meta)
    return tmp_path


def test_cifar100(cifar100: Path) -> None:
    fine = load_cifar100(cifar100)
    assert fine.labels is not None
    assert fine.labels.tolist() == [2, 0, 1]
    assert fine.classes == ("airplane", "automobile", "bird")
    assert fine.about == {"coarse": ("animal", "vehicle", "vehicle")}
    coarse = load_cifar100(cifar100, "all", labels="coarse")
    assert coarse.labels is not None
    assert coarse.labels.tolist() == [1, 0, 0, 1, 0, 0]
    assert coarse.classes == ("vehicle", "animal")
    assert coarse.about["fine"] == ("bird", "airplane", "automobile") * 2


class Calls:
    """A pickle that calls a function while it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("position", ["whole file", "inside"])
def test_a_malicious_pickle_is_refused_and_not_run(
    cifar100: Path, protocol: int, position: str
) -> None:
    trace = cifar100 / "was here"
    attack = Calls(os.mkdir, str(trace))
    content = attack if position == "whole file" else {b"data": attack}
    (cifar100 / "train").write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(DataError, match=r"asks for (posix|nt).mkdir.* may be malicious"):
        load_cifar100(cifar100)
    assert not trace.exists()


@pytest.mark.parametrize(
    "function", [eval, getattr, np.load, np.frombuffer, pickle.loads, __import__, open, type]
)
def test_other_functions_are_refused_too(cifar100: Path, function: Callable[..., Any]) -> None:
    write(cifar100 / "train", {b"data": Calls(function, "1")})
    with pytest.raises(DataError, match="which CIFAR does not need"):
        load_cifar100(cifar100)


def hand_made(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


NAMED = b"cnumpy\n%s\n"
SETS_ATTRIBUTES = b"N}X\x01\x00\x00\x00xK\x01s\x86b"


@pytest.mark.parametrize(
    "content",
    [
        # Calls numpy.ndarray, which could build an array over any memory it is given.
        hand_made(NAMED % b"ndarray", b"K\x01\x85R"),
        hand_made(NAMED % b"ndarray", b")\x81"),
        # Other element types, object arrays first.
        hand_made(NAMED % b"dtype", b"X\x01\x00\x00\x00OK\x00K\x01\x87R"),
        hand_made(NAMED % b"dtype", b"X\x02\x00\x00\x00f8K\x00K\x01\x87R"),
        # Codecs other than latin1 can unpack bombs.
        hand_made(b"c_codecs\nencode\n", b"X\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R"),
        # Writes attributes into the classes that stand in.
        hand_made(NAMED % b"ndarray", SETS_ATTRIBUTES),
        hand_made(NAMED % b"dtype", SETS_ATTRIBUTES),
        hand_made(b"c_codecs\nencode\n", SETS_ATTRIBUTES),
        hand_made(b"cnumpy.core.multiarray\n_reconstruct\n", SETS_ATTRIBUTES),
    ],
)
def test_what_is_allowed_cannot_be_misused(cifar100: Path, content: bytes) -> None:
    (cifar100 / "train").write_bytes(content)
    with pytest.raises(DataError, match="train cannot be read as a file of CIFAR"):
        load_cifar100(cifar100)


def array_with(state: tuple[Any, ...]) -> bytes:
    """A table whose array has been given this state in place of its own."""

    class Array:
        def __reduce__(self) -> tuple[Any, ...]:
            made = np.zeros(3, dtype=np.uint8).__reduce__()
            return (*made[:2], state)

    content = {b"data": Array(), b"fine_labels": [0], b"coarse_labels": [0]}
    return dumped(content)


U1 = np.dtype("u1")


@pytest.mark.parametrize(
    "state",
    [
        (1, (1, 3072), U1, False, b"short"),
        (1, (1, 3072), U1, True, bytes(3072)),
        (1, (-1, -3072), U1, False, bytes(3072)),
        (1, (1, 3072), None, False, bytes(3072)),
        (1, (1, 3072), U1, False, [0] * 3072),
        (1, (1, 3072)),
        (1, (10**12, 3072), U1, False, b""),
    ],
)
def test_malformed_arrays_are_refused(cifar100: Path, state: tuple[Any, ...]) -> None:
    (cifar100 / "train").write_bytes(array_with(state))
    with pytest.raises(DataError, match="train cannot be read as a file of CIFAR"):
        load_cifar100(cifar100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": pixels(3, 0)[:, :100]}, "train has no data of 3072 bytes per picture"),
        ({b"data": [1, 2, 3]}, "train has no data of 3072 bytes per picture"),
        ({b"data": pixels(2, 0)}, "train: fine_labels should be 2 numbers from 0 to 2"),
        ({b"fine_labels": [0, 1, 3]}, "fine_labels should be 3 numbers from 0 to 2"),
        ({b"coarse_labels": [0, 1, -1]}, "coarse_labels should be 3 numbers from 0 to 1"),
        ({b"fine_labels": ["0", 1, 2]}, "fine_labels should be 3 numbers from 0 to 2"),
        ({b"fine_labels": None}, "fine_labels should be 3 numbers from 0 to 2"),
    ],
)
def test_tables_that_are_not_cifar(cifar100: Path, change: dict[bytes, Any], message: str) -> None:
    content = {b"data": pixels(3, 0), b"fine_labels": [0, 1, 2], b"coarse_labels": [0, 0, 1]}
    write(cifar100 / "train", {**content, **change})
    with pytest.raises(DataError, match=message):
        load_cifar100(cifar100)


def test_damaged_and_missing_files_are_named(cifar100: Path, tmp_path: Path) -> None:
    whole = (cifar100 / "train").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no pickle", b"\x80\x02K\x01."):
        (cifar100 / "train").write_bytes(damaged)
        with pytest.raises(DataError, match=r"train (cannot be read as|holds no table)"):
            load_cifar100(cifar100)
    (cifar100 / "train").unlink()
    with pytest.raises(DataError, match=r"no file .*train; it should be a file of CIFAR's python"):
        load_cifar100(cifar100)
    write(cifar100 / "meta", {b"fine_label_names": NAMES})
    with pytest.raises(DataError, match="meta has no list coarse_label_names"):
        load_cifar100(cifar100, "test")
    with pytest.raises(DataError, match=r"gone does not exist; .* cifar-10-python.tar.gz"):
        load_cifar10(tmp_path / "gone")
