"""Run folders that survive a kill at any moment: every file is whole, or it is not there."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from motet.core import wire
from motet.core.errors import StoreError, WireError
from motet.core.tree import Tree


def write_atomic(path: Path, data: bytes, *, lasting: bool = True) -> None:
    """Writes the whole file or nothing; raises StoreError naming the file and the reason.

    lasting: wait until it would outlive a power cut, and not a killed process alone.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            if lasting:
                os.fsync(file.fileno())
        draft.replace(path)
        if lasting:
            _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another folder"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Makes a rename last: files written later must not outlive it when the power goes."""
    # Not every file system lets a folder be opened or synced; the file is whole all the same.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Shelf:
    """Numbered versions of one party's state in a folder; the two newest are kept, and the pinned.

    Two, because a run may be killed after a site wrote a version and before the hub did: the
    hub's last version is then the one before.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, version: int, tree: Tree, pinned: Sequence[int] = ()) -> None:
        """Writes this version; keeps the newest older one and what ``load`` finds for a pinned."""
        write_atomic(self._path(version), wire.encode(tree))
        versions = self.versions()
        kept = {*versions[-2:], *(self._newest(number) for number in pinned)}
        for old in versions:
            if old not in kept:
                self._path(old).unlink(missing_ok=True)

    def load(self, version: int) -> Tree | None:
        """The newest state that is not newer than ``version``, or None when there is none."""
        newest = self._newest(version)
        if newest is None:
            return None
        path = self._path(newest)
        try:
            return wire.decode(path.read_bytes())
        except (OSError, WireError) as error:
            raise StoreError(f"cannot read the checkpoint {path}: {error}") from error

    def forget_after(self, version: int) -> None:
        """Removes versions newer than ``version``, and drafts: the run goes on from there."""
        for number in self.versions():
            if number > version:
                self._path(number).unlink(missing_ok=True)
        for draft in self.folder.glob(".*.part"):
            draft.unlink(missing_ok=True)

    def versions(self) -> list[int]:
        """Numbers of the versions that are there, oldest first."""
        if not self.folder.is_dir():
            return []
        names = (re.fullmatch(r"state-(\d+)\.safetensors", p.name) for p in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def _newest(self, version: int) -> int | None:
        return max((number for number in self.versions() if number <= version), default=None)

    def _path(self, version: int) -> Path:
        return self.folder / f"state-{version:06d}.safetensors"


@dataclass(frozen=True)
class Position:
    """Where a run stands: in which rounds loop, before which round, with which version of states.

    ends: version and round of the last checkpoint in each loop before this one.
    """

    version: int
    loop: int
    round: int
    ends: tuple[tuple[int, int], ...] = ()


class HubStore:
    """The hub's checkpoints: a shelf, and a small file that says which version counts."""

    def __init__(self, folder: Path) -> None:
        self.shelf = Shelf(folder / "hub")
        self.marker = folder / "checkpoint.json"

    def save(self, position: Position, tree: Tree) -> None:
        """Saves the state, then moves the marker: the run goes on from there."""
        self.shelf.save(position.version, tree, [version for version, _ in position.ends])
        write_atomic(self.marker, json.dumps(asdict(position)).encode())

    def position(self) -> Position | None:
        """Where the run stands, or None for a new one."""
        if not self.marker.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(self.marker.read_text())
            ends = tuple((int(version), int(number)) for version, number in found["ends"])
            return Position(int(found["version"]), int(found["loop"]), int(found["round"]), ends)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"cannot read {self.marker}: {error}") from error

    def load(self, version: int) -> Tree:
        """The state of exactly this version; raises StoreError when it is not there."""
        tree = self.shelf.load(version) if version in self.shelf.versions() else None
        if tree is None:
            raise StoreError(f"{self.shelf.folder} has no checkpoint of version {version}")
        return tree
