"""The doors of all sites in this process: made when they are asked for, put away when many."""

from __future__ import annotations

import shutil
import tempfile
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from motet.core import wire
from motet.core.errors import StoreError
from motet.core.roster import Drawn, Roster
from motet.core.site import Door, SiteSpec

LIVE = 1000


class Doors(Mapping[str, Door]):
    """Site -> its door. At most ``live`` of them, the last used, are in memory.

    What the others must know to go on waits in files of a temporary folder; a site that holds
    nothing leaves nothing behind. folder: the sites' checkpoints.
    """

    def __init__(
        self,
        specs: Sequence[SiteSpec],
        make: Callable[[SiteSpec], Door],
        *,
        live: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.specs: Mapping[str, SiteSpec] = (
            Roster(specs.names, specs.named)
            if isinstance(specs, Drawn)
            else {spec.name: spec for spec in specs}
        )
        self._make = make
        self.live = LIVE if live is None else live
        self._folder = folder
        self._doors: OrderedDict[str, Door] = OrderedDict()
        self._away: set[str] = set()
        self._scratch: Path | None = None

    def __getitem__(self, name: str) -> Door:
        door = self._doors.get(name)
        if door is None:
            door = self._make(self.specs[name])
            if name in self._away:
                door.take_up(self._read(name))
                self._away.discard(name)
            self._doors[name] = door
            while len(self._doors) > self.live:
                self._put_away(*self._doors.popitem(last=False))
        else:
            self._doors.move_to_end(name)
        return door

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def holding(self) -> set[str]:
        """Sites that may hold something: in memory, put away, or in the folder of checkpoints."""
        there = self._folder is not None and self._folder.is_dir()
        saved = {path.name for path in self._folder.iterdir()} if there and self._folder else set()
        return {*self._doors, *self._away, *(name for name in saved if name in self.specs)}

    def close(self) -> None:
        """Removes what was put away."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _put_away(self, name: str, door: Door) -> None:
        tree = door.put_away()
        door.site.release()
        if tree is None:
            return
        path = self._path(name)
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(wire.encode(tree))
        except OSError as error:
            raise StoreError(
                f"cannot put site {name} away in {path.parent}: {error.strerror or error}; make "
                "room there, point TMPDIR to another disk, or raise engine.live"
            ) from error
        self._away.add(name)

    def _read(self, name: str) -> dict[str, object]:
        path = self._path(name)
        try:
            tree = wire.decode(path.read_bytes())
            path.unlink()
        except OSError as error:
            raise StoreError(f"cannot take site {name} up from {path}: {error}") from error
        return tree

    def _path(self, name: str) -> Path:
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="motet-sites-"))
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        # Folders of a million files are slow on some systems.
        group = zlib.crc32(name.encode()) % 256
        return self._scratch / f"{group:02x}" / f"{name}.safetensors"
