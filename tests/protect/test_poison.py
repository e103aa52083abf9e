"""Attacks on data: turned labels, and a square whose every pixel is where it should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from motet.core import ConfigError, DataError, Dataset
from motet.protect.attacks import AttackSpec
from motet.protect.poison import flipped, poisoned, triggered_test, with_trigger

CLASSES = ("a", "b", "c")
LABELS = [0, 1, 2, 0, 1, 2, -100, 2]


def data(side: int = 6, channels: int = 1) -> Dataset:
    count = len(LABELS)
    pictures = torch.arange(count * channels * side * side).remainder(200).to(torch.uint8)
    return Dataset(
        {
            "image": pictures.view(count, channels, side, side),
            "text": tuple(f"row {i}" for i in range(count)),
        },
        labels=torch.tensor(LABELS),
        classes=CLASSES,
    )


def pictures(found: Dataset) -> Tensor:
    column = found.columns["image"]
    assert isinstance(column, Tensor)
    return column


def labels(found: Dataset) -> list[int]:
    assert found.labels is not None
    return found.labels.tolist()


def attack(name: str, **fields: Any) -> AttackSpec:
    return AttackSpec.model_validate({"name": name, "sites": ["x", "y", "z"], **fields})


def test_labels_are_turned_in_three_ways() -> None:
    assert labels(flipped(data())) == [1, 2, 0, 1, 2, 0, -100, 0]
    assert labels(flipped(data(), mirror=True)) == [2, 1, 0, 2, 1, 0, -100, 0]
    assert labels(flipped(data(), source=2, target=0)) == [0, 1, 0, 0, 1, 0, -100, 0]
    assert labels(data()) == LABELS


def test_only_labels_are_turned() -> None:
    before, after = data(), flipped(data())
    assert torch.equal(pictures(after), pictures(before))
    assert torch.equal(after.rows, before.rows)
    assert after.columns["text"] == before.columns["text"]


@pytest.mark.parametrize(("side", "channels"), [(4, 1), (2, 3)])
def test_the_trigger_is_a_white_square_at_the_lower_right(side: int, channels: int) -> None:
    before = data(channels=channels)
    found = with_trigger(before, target=1, side=side)
    expected = pictures(before).clone()
    expected[:, :, 6 - side :, 6 - side :] = 255
    assert torch.equal(pictures(found), expected)
    assert int((pictures(found)[0] == 255).sum()) == channels * side * side
    assert labels(found) == [1] * len(LABELS)
    # Nothing was changed in place.
    assert torch.equal(pictures(before), pictures(data(channels=channels)))
    assert labels(before) == LABELS


@pytest.mark.parametrize(("share", "count"), [(0.5, 4), (0.3, 3), (0.01, 1), (1.0, 8), (0.375, 3)])
def test_a_share_of_the_rows_gets_it(share: float, count: int) -> None:
    rng = torch.Generator().manual_seed(3)
    before, found = data(), with_trigger(data(), target=1, share=share, rng=rng)
    changed = (pictures(found) != pictures(before)).flatten(1).any(dim=1)
    assert int(changed.sum()) == count
    for row, (old, new) in enumerate(zip(LABELS, labels(found), strict=True)):
        assert new == (1 if changed[row] else old)


def test_which_rows_get_it_is_up_to_the_generator() -> None:
    def changed(seed: int) -> list[int]:
        rng = torch.Generator().manual_seed(seed)
        found = with_trigger(data(), target=None, share=0.5, rng=rng)
        assert labels(found) == LABELS
        return (pictures(found)[:, 0, -1, -1] == 255).nonzero().flatten().tolist()

    assert changed(1) == changed(1)
    assert len({tuple(changed(seed)) for seed in range(6)}) > 3


def test_the_parts_of_a_square_make_it_up() -> None:
    whole = pictures(with_trigger(data(), target=0)) == 255
    seen = torch.zeros_like(whole)
    for piece in range(3):
        part = pictures(with_trigger(data(), target=0, piece=piece, pieces=3)) == 255
        assert not bool((part & seen).any())
        assert int(part[0].sum()) in (5, 6)
        seen |= part
    assert torch.equal(seen, whole)


def test_the_test_set_of_a_backdoor_is_other_classes_with_the_whole_square() -> None:
    spec = attack("backdoor", target=2, side=3, distributed=True)
    found = triggered_test(spec, data())
    assert found is not None
    assert found.rows.tolist() == [0, 1, 3, 4]
    assert labels(found) == [2] * 4
    assert bool((pictures(found)[:, :, 3:, 3:] == 255).all())
    assert triggered_test(attack("label-flip"), data()) is None
    assert triggered_test(spec, data().take([2, 5, 6])) is None


def test_only_attackers_rows_are_poisoned() -> None:
    attackers = frozenset({"x", "y", "z"})
    spec = attack("backdoor", target=2, rows=0.25)
    for other in (attack("sign-flip"), None):
        assert poisoned(other, before := data(), "x", attackers, 0) is before
    assert poisoned(spec, before := data(), "honest", attackers, 0) is before

    def hit(site: str, seed: int) -> list[int]:
        found = poisoned(spec, data(), site, attackers, seed)
        rows = (pictures(found)[:, 0, -1, -1] == 255).nonzero().flatten().tolist()
        assert [labels(found)[row] for row in rows] == [2, 2]
        return rows

    assert hit("x", 0) == hit("x", 0)
    assert len({tuple(hit(site, seed)) for site in attackers for seed in range(4)}) > 3


def test_a_distributed_trigger_is_shared_out_by_name() -> None:
    attackers = frozenset({"x", "y", "z"})
    spec = attack("backdoor", distributed=True, rows=1.0)
    for number, site in enumerate(("x", "y", "z")):
        found = poisoned(spec, data(), site, attackers, 0)
        wanted = with_trigger(data(), target=0, piece=number, pieces=3)
        assert torch.equal(pictures(found), pictures(wanted))
    # One pixel has only one part.
    tiny = attack("backdoor", distributed=True, rows=1.0, side=1)
    assert int((pictures(poisoned(tiny, data(), "z", attackers, 0))[0] == 255).sum()) == 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [1, 2, 0, 1, 2, 0, -100, 0]),
        ({"labels": "mirror"}, [2, 1, 0, 2, 1, 0, -100, 0]),
        ({"source": 2, "target": 1}, [0, 1, 1, 0, 1, 1, -100, 1]),
    ],
)
def test_labels_of_attackers_are_turned(fields: dict[str, Any], expected: list[int]) -> None:
    found = poisoned(attack("label-flip", **fields), data(), "x", frozenset({"x"}), 0)
    assert labels(found) == expected


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: flipped(Dataset({"x": torch.ones(2, 3)})), "no labels"),
        (lambda: flipped(data(), source=3, target=0), "attack.source is class 3, and there are 3"),
        (lambda: flipped(data(), source=0, target=3), "attack.target is class 3"),
        (lambda: with_trigger(data(), target=7), "attack.target is class 7"),
        (lambda: with_trigger(data().only(["text"]), target=0), "needs pictures, .* have text"),
        (lambda: with_trigger(data(side=3), target=0), "side 4 does not fit pictures of 3 x 3"),
    ],
)
def test_data_that_cannot_be_poisoned(call: Callable[[], Dataset], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        call()


def test_parts_that_are_not_there() -> None:
    for piece, pieces in ((2, 2), (-1, 2), (0, 17)):
        with pytest.raises(ConfigError, match="no part"):
            with_trigger(data(), target=0, piece=piece, pieces=pieces)
