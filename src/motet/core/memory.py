"""Memory that was freed and that the C library keeps to itself."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

# Bytes that may be freed before the C library is asked for them.
ENOUGH = 2**27


class Freed:
    """Counts bytes that are let go, and has the C library return them now and then.

    Blocks of 4 to 32 MB, as large layers have them, it often neither uses again nor returns: 200
    models of 20 MB, one after the other, then take 7 GB.
    """

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, count: int) -> None:
        """So many bytes are free."""
        self._bytes += count
        if self._bytes >= ENOUGH:
            self._bytes = 0
            _trim()(0)


@cache
def _trim() -> Callable[[int], object]:
    try:
        found: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        # Other C libraries have no such function, and less need of it.
        return lambda _: None
    return found
