"""Names of large populations: sorted as a list of them would be, without the list."""

from __future__ import annotations

import pytest

from motet.core.errors import ConfigError
from motet.core.roster import Drawn, Names, Roster, Without, few, number_in, sorted_names


def listed(counts: dict[str, int]) -> list[str]:
    return sorted(f"{name}-{i + 1}" for name, count in counts.items() for i in range(count))


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 19, 99, 100, 101, 110, 999, 1000, 1234, 10001])
def test_names_are_sorted_as_texts(count: int) -> None:
    names, wanted = Names({"site": count}), listed({"site": count})
    assert len(names) == count
    assert list(names) == wanted
    assert [names[place] for place in range(count)] == wanted
    assert [names.index(name) for name in wanted] == list(range(count))
    assert names[-1] == wanted[-1]
    assert names[1:3] == wanted[1:3]


def test_names_of_several_populations() -> None:
    counts = {"b": 120, "a": 13, "a-b": 3, "ab": 11, "a0": 2}
    names, wanted = Names(counts), listed(counts)
    assert list(names) == [names[place] for place in range(len(names))] == wanted
    assert [names.index(name) for name in wanted] == list(range(len(wanted)))
    assert list(names.only(["ab", "b"])) == listed({"b": 120, "ab": 11})


def test_names_that_would_mix_are_refused() -> None:
    with pytest.raises(ConfigError, match="'a' and 'a-1'"):
        Names({"a": 3, "a-1": 3})


@pytest.mark.parametrize("name", ["site-0", "site-01", "site-12", "site", "site-", "s-1", "site-x"])
def test_strangers_are_not_in_it(name: str) -> None:
    names = Names({"site": 11})
    assert name not in names
    assert number_in(names.counts, name) is None
    with pytest.raises(ValueError, match=f"no {name!r}"):
        names.index(name)
    with pytest.raises(KeyError):
        Roster(names, str)[name]


def test_a_place_that_is_not_there() -> None:
    with pytest.raises(IndexError):
        Names({"site": 11})[11]
    with pytest.raises(IndexError):
        Without(Names({"site": 11}), ["site-1"])[10]


@pytest.mark.parametrize("gone", [[], ["site-1"], ["site-9"], ["site-10", "site-1", "site-5"]])
def test_all_but_a_few(gone: list[str]) -> None:
    names = Names({"site": 12})
    rest = Without(names, gone)
    wanted = [name for name in names if name not in gone]
    assert list(rest) == [rest[place] for place in range(len(rest))] == wanted
    assert rest[2:5] == wanted[2:5]
    assert all((name in rest) == (name not in gone) for name in names)
    assert "other" not in rest


def test_what_belongs_to_a_name_is_made_when_it_is_asked_for() -> None:
    made: list[str] = []

    def make(name: str) -> int:
        made.append(name)
        return len(name)

    names = Names({"site": 10**6})
    roster, drawn = Roster(names, make), Drawn(names, make)
    assert len(roster) == len(drawn) == 10**6
    assert "site-77" in roster
    assert made == []
    assert roster["site-77"] == drawn[names.index("site-77")] == drawn.named("site-77") == 7
    assert drawn[:2] == [6, 7]
    assert made == ["site-77"] * 3 + ["site-1", "site-10"]
    assert sorted_names(roster) is names
    assert sorted_names({"b": 1, "a": 2}) == ["a", "b"]


def test_errors_list_a_few_names() -> None:
    assert few(["b", "a"]) == "'b', 'a'"
    assert few(Names({"s": 10**6})).endswith("and 999,990 more")
