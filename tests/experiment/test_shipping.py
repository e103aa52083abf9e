"""Data sets as payloads: every row and name comes through, and what is shared stays shared."""

from __future__ import annotations

import torch
from tests.conformance.tiny import Case, experiment, parties

from motet.core import Dataset, wire
from motet.experiment.shipping import pack, unpack


def through(*sets: Dataset) -> list[Dataset]:
    return unpack(wire.decode(wire.encode(pack(sets))))


def equal(one: Dataset, other: Dataset) -> bool:
    groups = [
        (one.columns, other.columns),
        (one.present, other.present),
        (one.about, other.about),
        ({"rows": one.rows, "labels": one.labels}, {"rows": other.rows, "labels": other.labels}),
    ]
    return one.classes == other.classes and all(
        list(left) == list(right) and all(same(left[name], right[name]) for name in left)
        for left, right in groups
    )


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def test_all_of_a_data_set_comes_through() -> None:
    rows = Dataset(
        {"image": torch.arange(6, dtype=torch.uint8).view(3, 1, 1, 2), "text": ("ü", "", "c")},
        labels=torch.tensor([1, -100, 0]),
        rows=torch.tensor([7, 5, 9]),
        present={"image": torch.tensor([True, False, True])},
        classes=("cat", "dog"),
        about={"": ("a", "b", "c"), "task": torch.tensor([3, 4, 5])},
    )
    bare = Dataset({"text": ("a",)})
    empty = rows.take([])
    for given, found in zip((rows, bare, empty), through(rows, bare, empty), strict=True):
        assert equal(given, found)


def test_what_is_shared_travels_once_and_stays_shared() -> None:
    rows = Dataset({"image": torch.zeros(50, 3, 8, 8), "text": ("a",) * 50})
    one, other = rows.only(["image"]), rows.only(["image", "text"])
    packed = pack([one, other])
    assert sum(part is rows.columns["image"] for part in packed["parts"]) == 1
    first, second = through(one, other)
    assert first.columns["image"] is second.columns["image"]
    assert first.cache is second.cache
    apart = through(one, Dataset({"text": ("a",)}))
    assert apart[0].cache is not apart[1].cache


def test_a_recipes_parties_come_through() -> None:
    for name in ("creamfl", "fedavg", "fedpub"):
        made = parties(experiment(Case(name)))
        sets = [site.data for site in made.sites] + [site.test for site in made.sites if site.test]
        assert all(map(equal, sets, through(*sets)))
