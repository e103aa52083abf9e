"""Freed memory is asked back once there is enough of it."""

from __future__ import annotations

import pytest

from motet.core import memory
from motet.core.memory import ENOUGH, Freed


def test_the_library_is_asked_once_there_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(memory, "_trim", lambda: asked.append)
    freed = Freed()
    freed.add(ENOUGH - 1)
    assert asked == []
    freed.add(1)
    assert asked == [0]
    freed.add(ENOUGH - 1)
    assert asked == [0]


def test_a_library_without_the_function_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._trim.cache_clear()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert memory._trim()(0) is None
    memory._trim.cache_clear()
