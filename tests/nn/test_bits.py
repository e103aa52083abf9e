"""Packed numbers and orders: exact, small, and refused when damaged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from motet.core import WireError, wire
from motet.nn.bits import (
    pack_bits,
    pack_order,
    pack_set,
    unpack_bits,
    unpack_order,
    unpack_set,
    width_for,
)


@pytest.mark.parametrize(
    ("count", "width"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (65536, 16), (65537, 17)]
)
def test_the_width_is_the_logarithm_rounded_up(count: int, width: int) -> None:
    assert width_for(count) == width


def test_bits_stand_one_after_the_other_the_highest_first() -> None:
    packed = pack_bits(torch.tensor([5, 1, 7]), 3)
    assert packed.tolist() == [0b10100111, 0b10000000]
    assert packed.dtype == torch.uint8


@given(st.integers(0, 32), st.data())
def test_what_was_packed_comes_back(width: int, data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(0, 2**width - 1), max_size=40))
    values = torch.tensor(numbers, dtype=torch.int64)
    packed = pack_bits(values, width)
    assert len(packed) == -(-len(numbers) * width // 8)
    assert torch.equal(unpack_bits(packed, width, len(numbers)), values)


@pytest.mark.parametrize("values", [[-1], [8], [2**40]])
def test_a_number_that_does_not_fit_is_refused(values: list[int]) -> None:
    with pytest.raises(ValueError, match="over 3 bits"):
        pack_bits(torch.tensor(values), 3)
    with pytest.raises(ValueError, match="0 to 32"):
        pack_bits(torch.tensor(values), 33)


@pytest.mark.parametrize(
    ("packed", "count"),
    [
        (torch.zeros(1, dtype=torch.uint8), 3),
        (torch.zeros(3, dtype=torch.uint8), 3),
        (torch.zeros(2, dtype=torch.int8), 3),
        (torch.zeros(2, 1, dtype=torch.uint8), 3),
        (torch.tensor([0, 1], dtype=torch.uint8), 3),
    ],
)
def test_other_bytes_are_refused(packed: torch.Tensor, count: int) -> None:
    with pytest.raises(WireError):
        unpack_bits(packed, 3, count)


@pytest.mark.parametrize("of", [1, 2, 9, 64, 1000])
def test_an_order_takes_as_many_bits_as_it_needs(of: int) -> None:
    order = torch.randperm(of, generator=torch.Generator().manual_seed(of))
    packed = pack_order(order, of)
    assert len(packed["bits"]) == -(-of * width_for(of) // 8)
    assert torch.equal(unpack_order(packed), order)
    assert torch.equal(unpack_order(wire.decode(wire.encode(packed)), of), order)


def test_an_order_of_some_things_alone() -> None:
    order = torch.tensor([6, 0, 3])
    packed = pack_order(order, 8)
    assert (packed["count"], packed["of"], len(packed["bits"])) == (3, 8, 2)
    assert torch.equal(unpack_order(packed, 8), order)


def changed(**fields: Any) -> dict[str, Any]:
    return {**pack_order(torch.tensor([2, 0, 1]), 3), **fields}


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (changed(bits=pack_bits(torch.tensor([2, 0, 2]), 2)), "twice"),
        (changed(bits=pack_bits(torch.tensor([2, 0, 3]), 2)), "that there is not"),
        (changed(of=4), "4 things where 3"),
        (changed(count=4), "names 4 of 3"),
        (changed(count=-1), "names -1 of 3"),
        (changed(count=2), r"uint8 \(1,\)|left over"),
        (changed(bits=None), "not packed bits"),
        (changed(bits=torch.ones(1)), "not torch.float32"),
        ({"count": 3, "of": 3}, "not packed bits"),
        (torch.arange(3), "not packed bits"),
        (None, "not packed bits"),
    ],
)
def test_what_is_no_order_is_refused(packed: Any, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        unpack_order(packed, 3)


def test_an_order_that_claims_a_huge_number_of_things_takes_no_memory() -> None:
    packed = {"bits": pack_bits(torch.tensor([7, 2**31]), 32), "count": 2, "of": 2**32}
    assert unpack_order(packed).tolist() == [7, 2**31]
    packed["bits"] = pack_bits(torch.tensor([7, 7]), 32)
    with pytest.raises(WireError, match="twice"):
        unpack_order(packed)
    packed = {"bits": pack_bits(torch.tensor([7, 30]), 5), "count": 2, "of": 29}
    with pytest.raises(WireError, match="that there is not"):
        unpack_order(packed)


@given(st.integers(0, 70), st.data())
def test_a_set_comes_back_in_the_smaller_way(of: int, data: st.DataObject) -> None:
    found = data.draw(st.sets(st.integers(0, of - 1), max_size=of) if of else st.just(set()))
    members = torch.tensor(sorted(found), dtype=torch.int64)
    packed = wire.decode(wire.encode(pack_set(members, of)))
    assert torch.equal(unpack_set(packed, of, len(members)), members)
    bits = len(members) * width_for(of)
    assert list(packed) == ["indices" if bits < of else "bitmap"]
    assert len(next(iter(packed.values()))) == -(-min(bits, of) // 8)


def rising(*members: int) -> dict[str, torch.Tensor]:
    return {"indices": pack_bits(torch.tensor(members), 4)}


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (rising(1, 1, 9), "do not rise"),
        (rising(3, 1, 9), "do not rise"),
        (rising(1, 3, 10), "all below 10"),
        (rising(1, 3), "3 numbers of 4 bits"),
        (rising(1, 3, 4, 5, 6), "3 numbers of 4 bits"),
        ({"bitmap": pack_bits(torch.tensor([1, 1, 0, 0, 0, 0, 0, 0, 0, 0]), 1)}, "names 2 things"),
        ({"bitmap": pack_bits(torch.ones(11, dtype=torch.int64), 1)}, "not 0"),
        ({"bitmap": torch.ones(10)}, "10 numbers of 1 bits"),
        ({"bitmap": torch.ones(2, dtype=torch.uint8), "indices": None}, "neither"),
        ({**rising(1, 3, 5), "more": 1}, "neither"),
        ({"bitmap": 3}, "neither"),
        (torch.arange(3), "neither"),
        (None, "neither"),
    ],
)
def test_what_is_no_set_is_refused(packed: Any, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        unpack_set(packed, 10, 3)
