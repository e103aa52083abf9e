"""Prepared columns are kept within a budget, the least recently used go first."""

from __future__ import annotations

import pytest
import torch

from motet.core import Dataset
from motet.core import prepared as module
from motet.core.prepared import Prepared, _Room


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> _Room:
    made = _Room(100)
    monkeypatch.setattr(module, "ROOM", made)
    return made


def entry(size: int) -> tuple[str, torch.Tensor]:
    return "column", torch.zeros(size, dtype=torch.uint8)


def test_the_least_recently_used_goes_first(room: _Room) -> None:
    one, two = Prepared(), Prepared()
    one[1, "a"], two[1, "a"], one[2, "a"] = entry(40), entry(30), entry(30)
    assert one[1, "a"][1].nbytes == 40
    two[3, "a"] = entry(20)
    assert (1, "a") not in two
    assert set(one) == {(1, "a"), (2, "a")}
    assert room.used == 90


def test_what_a_data_set_held_goes_with_it(room: _Room) -> None:
    one = Prepared()
    one[1, "a"], one[2, "a"] = entry(40), entry(30)
    del one[1, "a"]
    assert room.used == 30
    del one
    assert room.used == 0


def test_an_entry_that_is_too_large_stays_until_the_next(room: _Room) -> None:
    one = Prepared()
    one[1, "a"] = entry(400)
    assert (1, "a") in one
    one[1, "a"] = entry(300)
    assert room.used == 300
    one[2, "a"] = entry(10)
    assert list(one) == [(2, "a")]
    assert len(one) == 1


def test_columns_that_are_prepared_already_never_go(room: _Room) -> None:
    one = Prepared()
    values = torch.zeros(1000)
    one[1, "a"] = (values, values)
    one[2, "a"], one[3, "a"] = entry(90), entry(90)
    assert set(one) == {(1, "a"), (3, "a")}
    assert room.used == 90


def test_a_selection_takes_its_rows_along(room: _Room) -> None:
    data = Dataset({"x": torch.arange(10)})
    column = data.columns["x"]
    data.cache[id(column), "twice"] = (column, 2 * torch.arange(10))
    some = data.take([3, 1])
    ((key, (own, made)),) = some.cache.items()
    assert key == (id(some.columns["x"]), "twice")
    assert own is some.columns["x"]
    assert made.tolist() == [6, 2]
    assert room.used == 96


def test_what_outlives_the_modules_globals_goes_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = Prepared()
    one[1, "a"] = entry(40)
    # As at the end of the interpreter; pytest makes a failing test of what __del__ raises.
    monkeypatch.setattr(module, "ROOM", None)
    del one
