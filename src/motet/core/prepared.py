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

    The column is kept so that no other one can take over its id. One that is prepared already, and
    stands for itself, is known for as long as somebody else holds it.
    """

    def __init__(self) -> None:
        self._entries: dict[Key, tuple[Any, Tensor]] = {}
        self._ready: dict[Key, weakref.ref[Tensor]] = {}

    def __getitem__(self, key: Key) -> tuple[Any, Tensor]:
        if key in self._entries:
            ROOM.use(self, key)
            return self._entries[key]
        found = self._ready[key]()
        if found is None:
            raise KeyError(key)
        return found, found

    def __setitem__(self, key: Key, entry: tuple[Any, Tensor]) -> None:
        if entry[0] is entry[1]:
            self._ready[key] = weakref.ref(entry[1])
            return
        self._entries[key] = entry
        ROOM.add(self, key, entry[1].nbytes)

    def __delitem__(self, key: Key) -> None:
        if key in self._entries:
            self.drop(key)
            ROOM.forget(id(self), key)
        else:
            del self._ready[key]

    def __contains__(self, key: object) -> bool:
        if key in self._entries:
            return True
        found = self._ready.get(key)  # type: ignore[call-overload]
        return found is not None and found() is not None

    def __iter__(self) -> Iterator[Key]:
        yield from self._entries
        yield from [key for key, found in self._ready.items() if found() is not None]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __del__(self) -> None:
        for key in self._entries:
            ROOM.forget(id(self), key)

    def drop(self, key: Key) -> None:
        """Lets an entry go."""
        del self._entries[key]
