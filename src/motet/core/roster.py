"""Populations too large to be listed: their names in order, and what belongs to a name."""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar, overload

from motet.core.errors import ConfigError

T = TypeVar("T")
# Errors do not list more names than these.
FEW = 10


class _Counted(Sequence[str]):
    """Texts by their place, none of which is held."""

    @abstractmethod
    def _at(self, at: int) -> str:
        """The text at a place that there is."""

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...

    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        at = place + len(self) if place < 0 else int(place)
        if not 0 <= at < len(self):
            raise IndexError(f"there are {len(self):,} names, and no number {place}")
        return self._at(at)


class Names(_Counted):
    """The names PREFIX-1 to PREFIX-COUNT of several prefixes, sorted as texts, without a list.

    Sites of one prefix differ in their rows and models, and in nothing else that the hub knows.
    Raises ConfigError where the names of two prefixes would mix.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.counts = dict(sorted(counts.items(), key=lambda item: f"{item[0]}-"))
        self._prefixes = tuple(self.counts)
        for one in counts:
            for other in counts:
                if other.startswith(f"{one}-") and other[len(one) + 1].isdigit():
                    raise ConfigError(
                        f"the sites of {one!r} and {other!r} would stand in between each other; "
                        "give one of the two populations another name"
                    )
        self._starts = [0]
        for count in self.counts.values():
            self._starts.append(self._starts[-1] + count)

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[str]:
        for prefix, count in self.counts.items():
            for number in _in_order(count):
                yield f"{prefix}-{number}"

    def _at(self, at: int) -> str:
        block = bisect_right(self._starts, at) - 1
        prefix = self._prefixes[block]
        return f"{prefix}-{_nth(at - self._starts[block], self.counts[prefix])}"

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and number_in(self.counts, name) is not None

    def index(self, name: str, start: int = 0, stop: int | None = None) -> int:
        """The place of a name; raises ValueError for one that is not there."""
        found = number_in(self.counts, name)
        if found is None:
            raise ValueError(f"there is no {name!r}")
        prefix, number = found
        return self._starts[self._prefixes.index(prefix)] + _before(number, self.counts[prefix])

    def only(self, prefixes: Iterable[str]) -> Names:
        """The names of these prefixes."""
        wanted = set(prefixes)
        return Names({name: count for name, count in self.counts.items() if name in wanted})


class Without(_Counted):
    """Sorted names but for a few, without a list of the rest."""

    def __init__(self, names: Names, gone: Iterable[str]) -> None:
        self._names = names
        self._gone = sorted(names.index(name) for name in gone)
        # How many of the rest come before each that is gone.
        self._before = [place - number for number, place in enumerate(self._gone)]

    def __len__(self) -> int:
        return len(self._names) - len(self._gone)

    def _at(self, at: int) -> str:
        return self._names[at + bisect_right(self._before, at)]

    def __iter__(self) -> Iterator[str]:
        gone = {self._names[place] for place in self._gone}
        return (name for name in self._names if name not in gone)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or name not in self._names:
            return False
        place = self._names.index(name)
        at = bisect_left(self._gone, place)
        return at == len(self._gone) or self._gone[at] != place


class Roster(Mapping[str, T], Generic[T]):
    """Name -> what belongs to it, made when it is asked for; ``make`` sees to what is kept."""

    def __init__(self, names: Names, make: Callable[[str], T]) -> None:
        self.names = names
        self._make = make

    def __getitem__(self, name: str) -> T:
        if name not in self.names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Drawn(Sequence[T], Generic[T]):
    """What belongs to each of many names, by place or by name, made when it is asked for."""

    def __init__(self, names: Names, make: Callable[[str], T]) -> None:
        self.names = names
        self.named = make

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...

    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        if isinstance(place, slice):
            return [self.named(name) for name in self.names[place]]
        return self.named(self.names[place])


def sorted_names(known: Mapping[str, object]) -> Sequence[str]:
    """The names, sorted; those of a roster without a list of them."""
    return known.names if isinstance(known, Roster) else sorted(known)


def number_in(counts: Mapping[str, int], name: str) -> tuple[str, int] | None:
    """Prefix and number of a name PREFIX-NUMBER; None for one that is not among so many."""
    prefix, _, text = name.rpartition("-")
    fine = text.isascii() and text.isdigit() and text[0] != "0"
    return (prefix, int(text)) if fine and int(text) <= counts.get(prefix, 0) else None


def few(names: Iterable[str]) -> str:
    """The first names and how many more, for an error."""
    listed = list(names) if not isinstance(names, Names) else names
    more = f" and {len(listed) - FEW:,} more" if len(listed) > FEW else ""
    return ", ".join(map(repr, listed[:FEW])) + more


def _in_order(most: int) -> Iterator[int]:
    """1 to ``most``, sorted as texts: 1, 10, 100, 11 ..."""
    number = 1
    for _ in range(most):
        yield number
        if number * 10 <= most:
            number *= 10
            continue
        while number % 10 == 9 or number + 1 > most:
            number //= 10
        number += 1


def _before(number: int, most: int) -> int:
    """How many of 1 to ``most`` come before ``number`` when sorted as texts."""
    digits, found = len(str(number)), 0
    for length in range(1, len(str(most)) + 1):
        least = 10 ** (length - 1)
        if length < digits:
            # Its own beginning comes before it.
            found += number // 10 ** (digits - length) - least + 1
        else:
            found += max(min(number * 10 ** (length - digits), most + 1) - least, 0)
    return found


def _nth(place: int, most: int) -> int:
    """The number at this place among 1 to ``most``, sorted as texts."""
    number, left = 1, place
    while left:
        size, low, high = 0, number, number + 1
        while low <= most:
            size += min(high, most + 1) - low
            low, high = low * 10, high * 10
        if size <= left:
            number, left = number + 1, left - size
        else:
            number, left = number * 10, left - 1
    return number
