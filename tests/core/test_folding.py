"""Running means have the bits of means of all, in whatever order the answers come."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from motet.core.errors import WireError
from motet.core.folding import Folding, Running
from motet.core.rng import generator
from motet.core.tree import Tree, mean
from motet.core.wire import digest


def value(number: int, dtype: torch.dtype = torch.float32) -> Tree:
    rng = generator(number, "value")
    return {
        "weights": {
            "a": torch.randn(7, 3, generator=rng).to(dtype),
            "b": {"c": torch.randn(5, generator=rng).to(dtype)},
            "seen": torch.tensor(number % 4),
            "list": [torch.randn(2, generator=rng), float(number)],
        },
        "samples": 3 * number + 1,
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [[1.0] * 6, [3, 1, 7, 2, 9, 4], [0, 0, 2, 0, 1, 0]])
def test_a_running_mean_has_the_bits_of_the_mean_of_all(
    dtype: torch.dtype, weights: list[float]
) -> None:
    trees = [value(number, dtype)["weights"] for number in range(6)]
    running = Running()
    for tree, weight in zip(trees, weights, strict=True):
        running.add(tree, weight)
    assert digest({"it": running.value()}) == digest({"it": mean(trees, weights)})
    assert list(running.value()) == list(trees[0])


def test_a_leaf_is_averaged_over_those_that_have_it() -> None:
    trees: list[Any] = [{"a": torch.ones(2)}, {"a": 3 * torch.ones(2), "b": torch.ones(1)}, {}]
    running = Running()
    for tree in trees:
        running.add(tree, 1.0)
    assert digest(running.value()) == digest(mean(trees, [1.0] * 3))


@pytest.mark.parametrize("weights", [[0, 0], [-1, 2], [-1, 1], [1, float("inf")]])
def test_weights_must_make_sense(weights: list[float]) -> None:
    running = Running()
    for weight in weights:
        running.add(torch.ones(2), weight)
    with pytest.raises(WireError, match="positive and finite"):
        running.value()


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (torch.ones(2), torch.ones(3), "shapes"),
        (torch.ones(2), 1.0, "Tensor and float"),
        ({"a": 1.0}, [1.0], "dict and list"),
    ],
)
def test_trees_must_be_alike(one: Any, other: Any, told: str) -> None:
    running = Running()
    running.add(one, 1.0)
    with pytest.raises(WireError, match=told):
        running.add(other, 1.0)


def folded(order: tuple[str, ...], doubtful: str = "", failing: str = "") -> tuple[str, int]:
    """The mean's hash, and the most whole answers that were held at a time."""
    folding = Folding(["a", "b", "c", "d"], {"weights": "samples"})
    values: dict[str, Tree] = {}
    failed: dict[str, str] = {}
    held = 0
    for site in order:
        if site == failing:
            failed[site] = "gone"
        else:
            values[site] = value(ord(site))
            folding.fit[site] = site != doubtful
        folding.go_on(values, failed)
        held = max(held, sum("weights" in left for left in values.values()))
    folding.finish(values)
    assert all(set(left) == {"samples"} for left in values.values())
    return digest({"it": folding.means["weights"].value()}), held


@pytest.mark.parametrize("failing", ["", "a", "c"])
@pytest.mark.parametrize("doubtful", ["", "a", "b", "d"])
def test_the_order_in_which_answers_come_does_not_matter(doubtful: str, failing: str) -> None:
    names = [name for name in "abcd" if name != failing]
    trees = [value(ord(name)) for name in names]
    wanted = mean([tree["weights"] for tree in trees], [tree["samples"] for tree in trees])
    for order in itertools.permutations("abcd"):
        assert folded(order, doubtful, failing)[0] == digest({"it": wanted})


def test_answers_in_order_are_not_held() -> None:
    assert folded(("a", "b", "c", "d"))[1] == 0
    assert folded(("b", "a", "c", "d"))[1] == 1
    assert folded(("a", "b", "c", "d"), doubtful="b")[1] == 3
