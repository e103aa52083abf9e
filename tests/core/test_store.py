"""Run folders: whole files or none, the versions that a resume may need, and nothing else."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from motet.core import StoreError
from motet.core.store import HubStore, Position, Shelf, write_atomic


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert files(path.parent) == ["file"]


class FullDisk:
    """A file that takes the first bytes and then has no room."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "wb")  # noqa: SIM115

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace", "mkdir"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "state"
    write_atomic(path, b"old and whole")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(Path, "open", lambda self, mode: FullDisk(self))
        elif step == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(Path, step, full)
        with pytest.raises(StoreError) as caught:
            write_atomic(path, b"new and much longer")
    message = str(caught.value)
    assert (
        message
        == f"cannot write {path}: No space left on device; make room or choose another folder"
    )
    assert path.read_bytes() == b"old and whole"
    assert files(tmp_path) == ["state"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB, where the tests may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tiny_disk: Path) -> None:
    shelf = Shelf(tiny_disk)
    shelf.save(1, {"x": torch.ones(1000)})
    with pytest.raises(StoreError, match="No space left on device; make room"):
        shelf.save(2, {"x": torch.ones(40_000)})
    assert files(tiny_disk) == ["state-000001.safetensors"]
    found = shelf.load(2)
    assert found is not None
    assert found["x"].sum() == 1000


def save_all(shelf: Shelf, *versions: int, **options: Any) -> None:
    for version in versions:
        shelf.save(version, {"version": version}, **options)


def test_the_two_newest_versions_are_kept(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    assert shelf.versions() == []
    save_all(shelf, 1, 2, 5, 9)
    assert shelf.versions() == [5, 9]


def test_pinned_versions_are_kept_too(tmp_path: Path) -> None:
    """A site that was not asked has an older file for the pinned version."""
    shelf = Shelf(tmp_path)
    save_all(shelf, 1, 3)
    save_all(shelf, 6, 7, 8, 9, pinned=[4, 7])
    assert shelf.versions() == [3, 7, 8, 9]
    assert shelf.load(4) == {"version": 3}


@pytest.mark.parametrize(("asked", "found"), [(9, 9), (20, 9), (8, 5), (5, 5)])
def test_the_newest_that_is_not_newer_is_loaded(tmp_path: Path, asked: int, found: int) -> None:
    shelf = Shelf(tmp_path)
    save_all(shelf, 5, 9)
    assert shelf.load(asked) == {"version": found}
    assert shelf.load(4) is None
    assert Shelf(tmp_path / "nowhere").load(4) is None


def test_a_thousand_versions_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    save_all(shelf, 999_999, 1_000_000)
    assert shelf.versions() == [999_999, 1_000_000]


def test_what_came_after_is_forgotten(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    save_all(shelf, 5, 9)
    (tmp_path / ".state-000010.safetensors.77.part").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    shelf.forget_after(5)
    assert files(tmp_path) == ["notes.txt", "state-000005.safetensors"]
    Shelf(tmp_path / "nowhere").forget_after(1)


def test_a_damaged_version_is_named(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    save_all(shelf, 3)
    path = tmp_path / "state-000003.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StoreError, match=f"cannot read the checkpoint {path}"):
        shelf.load(3)


def test_the_hub_says_where_the_run_stands(tmp_path: Path) -> None:
    store = HubStore(tmp_path)
    assert store.position() is None
    for version in range(1, 5):
        store.save(Position(version, 1, version - 1, ((0, 3),)), {"version": version})
    assert HubStore(tmp_path).position() == Position(4, 1, 3, ((0, 3),))
    assert store.load(4) == {"version": 4}
    assert store.load(3) == {"version": 3}


def test_the_hub_keeps_the_last_checkpoint_of_every_loop(tmp_path: Path) -> None:
    store = HubStore(tmp_path)
    for version in range(1, 9):
        ends = ((2, 1),) if version > 2 else ()
        store.save(Position(version, len(ends), version, ends), {"version": version})
    assert store.shelf.versions() == [2, 7, 8]


def test_another_version_than_the_wanted_is_no_substitute_at_the_hub(tmp_path: Path) -> None:
    store = HubStore(tmp_path)
    store.save(Position(3, 0, 2), {"version": 3})
    with pytest.raises(StoreError, match="has no checkpoint of version 4"):
        store.load(4)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"version": 1}', json.dumps({"version": "x", "loop": 0, "round": 0})],
)
def test_a_damaged_marker_is_named(tmp_path: Path, text: str) -> None:
    store = HubStore(tmp_path)
    store.marker.write_text(text)
    with pytest.raises(StoreError, match=r"cannot read .*checkpoint.json"):
        store.position()
