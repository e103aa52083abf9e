"""Trees of many sites as stacks of updates, and back: names, shapes, counters, missing parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from motet.core import ConfigError, WireError
from motet.protect.stacked import Stack, joined


def mean(stack: Stack) -> Tensor:
    return stack.updates.mean(dim=0)


def test_floats_are_one_row_and_come_back_in_shape_and_type() -> None:
    seen: list[Stack] = []

    def rule(stack: Stack) -> Tensor:
        seen.append(stack)
        return stack.updates[1]

    def tree(start: float) -> dict[str, Any]:
        half = torch.full((2,), start, dtype=torch.float16)
        return {"a": {"w": torch.full((2, 2), start)}, "n": torch.tensor(3), "h": half}

    found = joined({"x": tree(1.0), "y": tree(5.0)}, tree(0.5), rule)
    (stack,) = seen
    assert (stack.sites, stack.paths) == (("x", "y"), (("a", "w"), ("h",)))
    assert stack.updates.tolist() == [[0.5] * 6, [4.5] * 6]
    assert stack.updates.dtype == torch.float32
    assert found["a"]["w"].tolist() == [[5, 5], [5, 5]]
    assert found["h"].dtype == torch.float16
    assert list(found) == ["a", "n", "h"]


def test_double_precision_stays() -> None:
    values = {"x": {"w": torch.tensor([1e-12], dtype=torch.float64) + 1}}
    assert float(joined(values, None, mean)["w"] - 1) == pytest.approx(1e-12, rel=1e-3)


@pytest.mark.parametrize(
    ("values", "sent", "expected"),
    [
        ([3, 9, 4, 100], 7, 7),
        ([3, 9, 4, 100], None, 4),
        ([1.0, 5.0, 2.0], 9.0, 2.0),
        ([True, False, True], None, True),
    ],
)
def test_whole_numbers_are_the_hub_s_and_else_no_single_site_s(
    values: list[Any], sent: Any, expected: Any
) -> None:
    plain = {f"s{i}": {"n": value} for i, value in enumerate(values)}
    assert joined(plain, None if sent is None else {"n": sent}, mean)["n"] == expected
    if isinstance(expected, float):
        return
    tensors = {f"s{i}": {"n": torch.tensor([value])} for i, value in enumerate(values)}
    given = None if sent is None else {"n": torch.tensor([sent])}
    found = joined(tensors, given, mean)["n"]
    assert found.tolist() == [expected]
    assert given is None or found is not given["n"]


def test_parts_that_only_some_sites_have_are_put_together_by_those() -> None:
    values = {
        "x": {"image": torch.ones(2), "head": torch.tensor([1.0])},
        "y": {"text": torch.full((3,), 4.0), "head": torch.tensor([2.0])},
        "z": {"image": torch.full((2,), 3.0), "head": torch.tensor([6.0])},
    }
    sites: list[tuple[str, ...]] = []

    def rule(stack: Stack) -> Tensor:
        sites.append(stack.sites)
        return stack.updates.mean(dim=0)

    found = joined(values, {"image": torch.ones(2)}, rule)
    assert {name: value.tolist() for name, value in found.items()} == {
        "image": [2, 2],
        "head": [3],
        "text": [4, 4, 4],
    }
    assert sorted(sites) == [("x", "y", "z"), ("x", "z"), ("y",)]


def test_a_bare_tensor_and_lists_do_too() -> None:
    assert joined({"x": torch.zeros(2), "y": torch.ones(2)}, None, mean).tolist() == [0.5, 0.5]
    lists = {"x": {"l": [torch.zeros(1), 3]}, "y": {"l": [torch.ones(1), 3]}}
    assert joined(lists, None, mean) == {"l": [torch.tensor([0.5]), 3]}


def test_what_the_hub_sent_in_another_shape_is_no_reference() -> None:
    values = {"x": {"w": torch.ones(2)}, "y": {"w": torch.ones(2)}}
    seen: list[list[float]] = []

    def rule(stack: Stack) -> Tensor:
        seen.append(stack.updates[0].tolist())
        return stack.updates[0]

    for sent in ({"w": torch.ones(3)}, {"v": torch.ones(2)}, {"w": torch.tensor([0.5, 0])}):
        assert joined(values, sent, rule)["w"].tolist() == [1, 1]
    assert seen == [[1, 1], [1, 1], [0.5, 1]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"w": torch.ones(2)}, {"w": torch.ones(3)}),
        ({"w": torch.ones(2)}, {"w": torch.ones(2, dtype=torch.float64)}),
        ({"w": torch.ones(2)}, {"w": 3.0}),
        ({"w": torch.ones(2)}, {"w": {"v": torch.ones(2)}}),
        ({"w": [torch.ones(2)]}, {"w": [torch.ones(2), torch.ones(2)]}),
        ({"n": torch.tensor(1)}, {"n": 1}),
        ({"n": torch.tensor(1)}, {"n": torch.tensor([1])}),
        ({"n": 1}, {"n": 1.0}),
    ],
)
def test_values_that_differ_in_form_are_refused(one: Any, other: Any) -> None:
    with pytest.raises(WireError, match="same names, shapes and types"):
        joined({"x": one, "y": other}, None, mean)
    with pytest.raises(WireError, match="same names, shapes and types"):
        joined({"x": other, "y": one}, None, mean)


def test_texts_are_refused() -> None:
    with pytest.raises(WireError, match="texts"):
        joined({"x": {"w": "a"}, "y": {"w": "a"}}, None, mean)


def test_another_tree_as_a_row_and_the_last_layer() -> None:
    like = (torch.zeros(2, 3), torch.zeros(2), torch.zeros(4, 2), torch.zeros(4))
    paths = (("a",), ("b",), ("c", "w"), ("c", "b"))
    stack = Stack(("x",), paths, like, torch.zeros(1, 20))
    assert stack.last_layer == 8
    assert Stack(("x",), paths[1:2], like[1:2], torch.zeros(1, 2)).last_layer == 0
    tree: dict[tuple[str, ...], Any] = {
        path: torch.full_like(leaf, number)
        for number, (path, leaf) in enumerate(zip(paths, like, strict=True))
    }
    # The order is that of the stack, not of the other tree.
    row = stack.row(dict(reversed(tree.items())))
    assert row.tolist() == [0.0] * 6 + [1.0] * 2 + [2.0] * 8 + [3.0] * 4
    del tree["c", "w"]
    with pytest.raises(ConfigError, match=r"no c\.w of shape \(4, 2\)"):
        stack.row(tree)
