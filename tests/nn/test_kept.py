"""The largest entries of a tensor: how many, which, and how they travel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from motet.core import WireError
from motet.nn.kept import largest, pack_kept, unpack_kept

VALUES = torch.tensor([[0.5, -3.0, 1.0], [0.0, 2.0, -1.0]])


def test_the_largest_go_by_size_and_of_equal_ones_the_first() -> None:
    assert largest(VALUES, 1 / 6).tolist() == [[False, True, False], [False, False, False]]
    assert largest(VALUES, 2 / 6).tolist() == [[False, True, False], [False, True, False]]
    # 1 and -1 are equally large.
    assert largest(VALUES, 3 / 6).tolist() == [[False, True, True], [False, True, False]]
    assert largest(VALUES, 4 / 6).tolist() == [[False, True, True], [False, True, True]]
    assert largest(torch.zeros(4), 0.5).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("share", "size", "count"),
    [
        (0.0, 6, 0),
        (-0.3, 6, 0),
        (1e-3, 6, 1),
        (0.5, 6, 3),
        (0.51, 6, 4),
        (1.0, 6, 6),
        (0.7, 10, 7),
        (0.07, 100, 7),
        (0.2, 1, 1),
        (0.0, 1, 0),
        (0.5, 0, 0),
    ],
)
def test_how_many_are_kept(share: float, size: int, count: int) -> None:
    assert int(largest(torch.randn(size), share).sum()) == count


@given(
    st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0]), max_size=40),
    st.floats(0, 1),
    st.booleans(),
)
def test_what_is_kept_comes_back_and_the_rest_is_0(
    values: list[float], share: float, square: bool
) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    if square and len(values) % 2 == 0:
        tensor = tensor.view(2, -1)
    mask = largest(tensor, share)
    packed = pack_kept(tensor, mask)
    assert packed["values"].shape == (int(mask.sum()),)
    assert packed["kept"].numel() == -(-len(values) // 8)
    assert packed["kept"].dtype == torch.uint8
    found = unpack_kept(packed, torch.ones_like(tensor))
    assert torch.equal(found, tensor * mask)
    # Nothing that was left out is larger than what was kept.
    if mask.any() and not mask.all():
        assert tensor[~mask].abs().max() <= tensor[mask].abs().min()


def test_other_sizes_are_refused() -> None:
    packed = pack_kept(VALUES, largest(VALUES, 0.5))
    with pytest.raises(WireError, match=r"3 entries are kept, and values of shape \(2,\) came"):
        unpack_kept({**packed, "values": packed["values"][:2]}, VALUES)
    with pytest.raises(WireError, match="numbers of 1 bits"):
        unpack_kept(packed, torch.zeros(9))
