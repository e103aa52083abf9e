"""Memory: what the C library keeps to itself, and when Python searches for garbage."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Inside, Python does not search for garbage in cycles.

    For a time in which there are many young objects, none of them garbage.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def settled() -> Iterator[None]:
    """Inside, searches for garbage leave out all that is there when it begins.

    To go through all of PyTorch, of which nothing will ever be garbage, takes a fifth of a second.
    """
    # Somebody else's may be under way, and then it is not ours to end.
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()
