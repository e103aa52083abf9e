"""Run folders that survive a kill at any moment: every file is whole, or it is not there."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from motet.core import wire
from motet.core.errors import StoreError, WireError
from motet.core.tree import Tree


def write_atomic(path: Path, data: bytes) -> None:
    """Writes the whole file or nothing; raises StoreError naming the file and the reason."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise StoreError(
            f"cannot write {path}: {error.strerror}; make room or choose another folder"
        ) from error


class Shelf:
    """Numbered versions of one party's state in a folder; the two newest are kept.

    Two, because a run may be killed after a site wrote a version and before the hub did: the
    hub's last version is then the one before.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, version: int, tree: Tree) -> None:
        """Writes this version and forgets all but the newest older one."""
        write_atomic(self._path(version), wire.encode(tree))
        for old in self.versions()[:-2]:
            self._path(old).unlink(missing_ok=True)

    def load(self, version: int) -> Tree | None:
        """The newest state that is not newer than ``version``, or None when there is none."""
        older = [number for number in self.versions() if number <= version]
        if not older:
            return None
        path = self._path(older[-1])
        try:
            return wire.decode(path.read_bytes())
        except (OSError, WireError) as error:
            raise StoreError(f"cannot read the checkpoint {path}: {error}") from error

    def forget_after(self, version: int) -> None:
        """Removes versions newer than ``version``: the run goes on from there, and anew."""
        for number in self.versions():
            if number > version:
                self._path(number).unlink(missing_ok=True)

    def versions(self) -> list[int]:
        """Numbers of the versions that are there, oldest first."""
        if not self.folder.is_dir():
            return []
        names = (re.fullmatch(r"state-(\d+)\.safetensors", p.name) for p in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def _path(self, version: int) -> Path:
        return self.folder / f"state-{version:06d}.safetensors"


class HubStore:
    """The hub's checkpoints: a shelf, and a small file that says which version counts."""

    def __init__(self, folder: Path) -> None:
        self.shelf = Shelf(folder / "hub")
        self.marker = folder / "checkpoint.json"

    def save(self, version: int, position: dict[str, Any], tree: Tree) -> None:
        """Saves the state, then moves the marker: the run goes on from there."""
        self.shelf.save(version, tree)
        write_atomic(self.marker, json.dumps({"version": version, **position}).encode())

    def position(self) -> dict[str, Any] | None:
        """Where the run stands ("version", "loop", "round"), or None for a new one."""
        if not self.marker.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(self.marker.read_text())
            return {key: int(found[key]) for key in ("version", "loop", "round")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"cannot read {self.marker}: {error}") from error

    def load(self, version: int) -> Tree:
        """The state of this version; raises StoreError when it is not there."""
        tree = self.shelf.load(version)
        if tree is None:
            raise StoreError(f"{self.shelf.folder} has no checkpoint of version {version}")
        return tree
