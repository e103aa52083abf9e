"""What encoders made of columns, kept for as long as there is room."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from typing import Any, TypeAlias

from torch import Tensor

# (id of a column, encoder's key).
Key: TypeAlias = tuple[int, str]
# 2 GiB for all data sets of a process.
BUDGET = 2**31


class _Room:
    """All entries of all caches, the least recently used first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self._entries: OrderedDict[tuple[int, Key], tuple[weakref.ref[Prepared], int]] = (
            OrderedDict()
        )

    def use(self, cache: Prepared, key: Key) -> None:
        """Notes that an entry was used."""
        if (id(cache), key) in self._entries:
            self._entries.move_to_end((id(cache), key))

    def add(self, cache: Prepared, key: Key, size: int) -> None:
        """Makes room for an entry, which stays however large it is."""
        self.forget(id(cache), key)
        self._entries[id(cache), key] = (weakref.ref(cache), size)
        self.used += size
        while self.used > self.budget and len(self._entries) > 1:
            (number, oldest), (found, _) = next(iter(self._entries.items()))
            self.forget(number, oldest)
            owner = found()
            if owner is not None:
                owner.drop(oldest)

    def forget(self, number: int, key: Key) -> None:
        """An entry of the cache of this id is gone."""
        _, size = self._entries.pop((number, key), (None, 0))
        self.used -= size


ROOM = _Room(BUDGET)


class Prepared(MutableMapping[Key, tuple[Any, Tensor]]):
    """(id of a column, encoder's key) -> (column, what the encoder made of it).

    The column is kept so that no other one can take over its id.
    """

    def __init__(self) -> None:
        self._entries: dict[Key, tuple[Any, Tensor]] = {}

    def __getitem__(self, key: Key) -> tuple[Any, Tensor]:
        found = self._entries[key]
        ROOM.use(self, key)
        return found

    def __setitem__(self, key: Key, entry: tuple[Any, Tensor]) -> None:
        self._entries[key] = entry
        if entry[0] is not entry[1]:
            ROOM.add(self, key, entry[1].nbytes)

    def __delitem__(self, key: Key) -> None:
        self.drop(key)
        ROOM.forget(id(self), key)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Key]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __del__(self) -> None:
        # When the interpreter ends, globals may be gone before this.
        if ROOM is not None:
            for key in self._entries:
                ROOM.forget(id(self), key)

    def drop(self, key: Key) -> None:
        """Lets an entry go."""
        del self._entries[key]
