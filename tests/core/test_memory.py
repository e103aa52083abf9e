"""Freed memory is asked back once there is enough of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from motet.core import memory
from motet.core.memory import ENOUGH, Freed, nothing_collected, settled


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


@pytest.fixture
def melted() -> Iterator[None]:
    """Nothing is left out of the searches for garbage, before or after."""
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("melted")
def test_what_is_there_is_left_out_of_searches_for_a_time() -> None:
    with settled():
        frozen = gc.get_freeze_count()
        assert frozen > 0
        with settled():
            pass
        assert gc.get_freeze_count() > frozen / 2
    assert gc.get_freeze_count() == 0
    with pytest.raises(ValueError, match="ill"), settled():
        raise ValueError("ill")
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("melted")
def test_what_somebody_else_left_out_stays_out() -> None:
    gc.freeze()
    with settled():
        pass
    assert gc.get_freeze_count() > 0


def test_searches_go_on_afterwards_if_they_did_before() -> None:
    with nothing_collected():
        assert not gc.isenabled()
        with nothing_collected():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="ill"), nothing_collected():
        raise ValueError("ill")
    assert gc.isenabled()
