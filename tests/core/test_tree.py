"""Trees: leaves by path, copies, means, weights of a model."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from motet.core import WireError, wire
from motet.core.tree import clone, leaves, load, map_tensors, mean, separate, weights_of


def test_leaves_come_in_order_with_their_paths() -> None:
    tree = {"b": {"x": 1}, "a": ["word", None, {"y": 2.5}], "empty": {}}
    found = list(leaves(tree))
    assert found == [
        (("b", "x"), 1),
        (("a", "0"), "word"),
        (("a", "1"), None),
        (("a", "2", "y"), 2.5),
    ]


def test_a_copy_stands_alone() -> None:
    weight = torch.ones(2, 3, requires_grad=True)
    tree: dict[str, Any] = {"w": weight, "turned": weight.T, "list": [1, "a"]}
    copied = clone(tree)
    with torch.no_grad():
        weight.zero_()
    assert copied["w"].tolist() == [[1] * 3] * 2
    assert not copied["w"].requires_grad
    assert copied["turned"].is_contiguous()
    assert copied["list"] == [1, "a"]
    assert copied["list"] is not tree["list"]


def test_every_tensor_is_mapped_and_nothing_else() -> None:
    mapped = map_tensors(lambda x: x + 1, {"a": [torch.zeros(1), 5], "b": None})
    assert mapped == {"a": [torch.ones(1), 5], "b": None}


def test_a_mean_weighs_its_trees() -> None:
    trees: list[Any] = [
        {"w": torch.tensor([0.0, 4.0]), "n": 1},
        {"w": torch.tensor([4.0, 0.0]), "n": 5},
    ]
    found = mean(trees, [3, 1])
    assert found["w"].tolist() == [1, 3]
    assert found["n"] == 2
    assert trees[0]["w"].tolist() == [0, 4]


def test_a_leaf_is_averaged_over_those_that_have_it() -> None:
    trees: list[Any] = [
        {"image": {"w": torch.tensor(1.0)}, "text": {"w": torch.tensor(5.0)}},
        {"image": {"w": torch.tensor(4.0)}},
        {"audio": {"w": torch.tensor(7.0)}},
    ]
    found = mean(trees, [2, 1, 1])
    assert list(found) == ["image", "text", "audio"]
    assert [float(group["w"]) for group in found.values()] == [2, 5, 7]


def test_lists_are_averaged_place_by_place() -> None:
    found = mean([[torch.tensor(1.0), 2], [torch.tensor(3.0), 4]], [1, 1])
    assert [float(item) for item in found] == [2, 3]


def test_counters_take_the_largest() -> None:
    assert mean([torch.tensor([1, 9]), torch.tensor([3, 2])], [1, 1]).tolist() == [3, 9]
    assert mean([torch.tensor(False), torch.tensor(True)], [1, 1]).item() is True


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_small_floats_are_averaged_in_large_ones(dtype: torch.dtype) -> None:
    values = [torch.tensor([1.0], dtype=dtype)] * 100
    found = mean(values, [1] * 100)
    assert found.dtype == dtype
    assert float(found) == 1


def test_doubles_stay_doubles() -> None:
    third = torch.tensor([1 / 3], dtype=torch.float64)
    assert float(mean([third, third], [1, 1])) == 1 / 3


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [2, -1], [1, math.nan], [1, math.inf]])
def test_weights_of_a_mean_are_shares(weights: list[float]) -> None:
    with pytest.raises(WireError, match="weights of a mean must be positive and finite"):
        mean([torch.ones(1), torch.ones(1)], weights)


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (torch.ones(2), torch.ones(3), r"different shapes \[\(2,\), \(3,\)\]"),
        (torch.ones(1), 1.0, "cannot average Tensor and float"),
        ("a", "b", "cannot average str"),
        ([1], [1, 2], "cannot average list"),
        ({"a": 1}, 1, "cannot average dict and int"),
    ],
)
def test_what_has_no_mean_is_refused(left: Any, right: Any, message: str) -> None:
    with pytest.raises(WireError, match=message):
        mean([{"x": left}, {"x": right}], [1, 1])


def test_weights_go_out_and_in() -> None:
    source = nn.BatchNorm1d(3)
    source.running_mean = torch.tensor([1.0, 2.0, 3.0])
    weights = weights_of(source)
    assert list(weights) == [
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "num_batches_tracked",
    ]
    assert not any(value.requires_grad for value in weights.values())
    target = nn.BatchNorm1d(3)
    kept = target.weight
    load(target, weights)
    assert target.weight is kept
    assert target.running_mean is not None
    assert target.running_mean.tolist() == [1, 2, 3]
    weights["weight"].zero_()
    assert source.weight.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "change", [{"weight": None}, {"stranger": torch.ones(1)}, {"bias": torch.ones(4)}]
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    weights = {**weights_of(nn.Linear(3, 2)), **change}
    given = {name: value for name, value in weights.items() if value is not None}
    with pytest.raises(WireError, match=f"weights do not fit.*{next(iter(change))}"):
        load(nn.Linear(3, 2), given)


def large(shape: tuple[int, ...] = (200, 100)) -> Tensor:
    return torch.arange(float(math.prod(shape))).view(shape)


@pytest.mark.parametrize("writes", ["copy", "original", "view of the original", "parameter"])
def test_neither_side_of_a_separate_copy_sees_what_the_other_writes(writes: str) -> None:
    original, wanted = nn.Parameter(large()), large()
    view = original.detach()[1:]
    copied = separate({"x": original, "few": wanted[:2, :2], "name": ["a"]})
    assert torch._C._is_cow_tensor(copied["x"])  # type: ignore[attr-defined]
    assert not copied["x"].requires_grad
    {
        "copy": copied["x"],
        "original": original.detach(),
        "view of the original": view,
        "parameter": original.data,
    }[writes].mul_(2)
    told = copied["x"], original.detach()
    changed, kept = told if writes == "copy" else told[::-1]
    assert torch.equal(kept, wanted)
    assert not torch.equal(changed, wanted)
    copied["few"].zero_()
    assert torch.equal(wanted, large())


def strange() -> dict[str, Tensor]:
    """Tensors whose memory is shared with something else, or in another order."""
    return {
        "a part": large()[1:],
        "turned": large().T,
        "repeated": torch.ones(1).expand(9000),
        "numpy's": torch.from_numpy(np.ones(9000)),
        "read from a frame": wire.decode(wire.encode({"x": large()}))["x"],
        "small": torch.ones(3),
        "none": torch.empty(0, 5),
        "numbers": torch.arange(9000),
    }


@pytest.mark.parametrize("name", strange())
def test_every_tensor_can_be_copied_separately(name: str) -> None:
    original = strange()[name]
    copied = separate(original)
    assert copied.is_contiguous()
    assert copied.dtype == original.dtype
    copied.add_(1)
    assert torch.equal(original, strange()[name])
    assert torch.equal(copied, strange()[name] + 1)
    # No more of the original's memory is held than its own part.
    assert copied.untyped_storage().nbytes() == copied.nbytes


def test_separate_copies_of_copies_stand_alone() -> None:
    first = large()
    second = separate(first)
    third = separate(second)
    second.zero_()
    first.neg_()
    assert torch.equal(third, large())


def test_loading_copies_in_place_and_keeps_ties() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3).double())
    tied = nn.Linear(3, 3)
    tied.weight = model[0].weight
    model.append(tied)
    twin = copy.deepcopy(model)
    before = {name: value.data_ptr() for name, value in model.state_dict().items()}
    given = weights_of(model)
    given = {n: v + 1 if v.is_floating_point() else v for n, v in given.items()}
    load(model, {name: value.double() for name, value in given.items()})
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before
    assert all(torch.equal(value, given[name]) for name, value in model.state_dict().items())
    assert torch.equal(twin[3].weight, twin[0].weight)
    assert not torch.equal(twin[0].weight, model[0].weight)
    # A parameter that was put in another's place is the one that is read and written.
    model[2].weight = nn.Parameter(torch.zeros(3, 3))
    load(model, {"2.weight": torch.ones(3, 3)}, partial=True)
    assert model[2].weight.tolist() == [[1] * 3] * 3
    assert weights_of(model)["2.weight"].dtype == torch.float32
