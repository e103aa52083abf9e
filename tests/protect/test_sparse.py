"""Sparse updates: which numbers travel, how many bytes, what is kept, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protect.passing import (
    arriving,
    averaging,
    normal,
    passage,
    read_or_reason,
    there_and_back,
)
from torch import Tensor

from motet.core import ConfigError, Kind, Tree, WireError, wire
from motet.protect.sparse import RandomK, Sparse, TopK, count_of, drawn, largest

examples = settings(max_examples=60, deadline=None, derandomize=True, database=None)
WEIGHTS = {"weights": Kind.WEIGHTS}
GRADIENTS = {"gradients": Kind.GRADIENTS}


def top(share: float = 0.25, feedback: bool = False, kind: Kind = Kind.WEIGHTS) -> Sparse:
    return Sparse(kind, TopK(share=share, feedback=feedback))


def some(share: float = 0.25, feedback: bool = False, kind: Kind = Kind.WEIGHTS) -> Sparse:
    return Sparse(kind, RandomK(share=share, feedback=feedback))


@pytest.mark.parametrize(
    ("size", "share", "count"),
    [
        (30, 0.1, 3),
        (31, 0.1, 4),
        (10, 1.0, 10),
        (10, 1e-9, 1),
        (0, 0.5, 0),
        (1_000_000, 0.01, 10_000),
    ],
)
def test_a_share_is_rounded_up(size: int, share: float, count: int) -> None:
    assert count_of(size, share) == count


@examples
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.data())
def test_the_largest_are_kept_and_of_equal_ones_the_first(
    numbers: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(numbers)))
    ranked = sorted(range(len(numbers)), key=lambda i: (-abs(numbers[i]), i))
    found = largest(torch.tensor(numbers, dtype=torch.float32), count)
    assert found.tolist() == sorted(ranked[:count])
    assert found.dtype == torch.int64


def test_places_are_drawn_without_replacement_and_alike() -> None:
    counts = torch.zeros(10)
    for seed in range(2000):
        places = drawn(10, 3, seed)
        assert len(places.unique()) == 3
        counts[places] += 1
    # A count is 600 in the mean, with a standard deviation of 20.
    assert 500 < float(counts.min()) <= float(counts.max()) < 700
    assert torch.equal(drawn(10, 3, 7), drawn(10, 3, 7))


def test_what_arrives_is_what_was_sent_plus_the_largest_of_the_update() -> None:
    old = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([5.0, 6.0])}
    new = {"a": torch.tensor([[1.5, 2.0], [3.0, 0.0]]), "b": torch.tensor([5.25, 3.0])}
    found = there_and_back(top(1 / 3), {"weights": new}, passage({"weights": old}, **WEIGHTS))
    assert found["weights"]["a"].tolist() == [[1, 2], [3, 0]]
    assert found["weights"]["b"].tolist() == [5, 3]


def test_a_whole_share_arrives_whole() -> None:
    old, new = {"a": normal(5, 3)}, {"a": normal(5, 3, seed=1)}
    for guard in (top(1.0), some(1.0), top(1.0, True), some(1.0, True)):
        found = there_and_back(guard, {"weights": new}, passage({"weights": old}, **WEIGHTS))
        torch.testing.assert_close(found["weights"], new)


def test_random_places_arrive_times_the_inverse_share_or_plainly_with_feedback() -> None:
    new = {"weights": {"a": torch.ones(8)}}
    at = passage({"weights": {"a": torch.zeros(8)}}, **WEIGHTS)
    found = there_and_back(some(), new, at)["weights"]["a"]
    assert sorted(found.tolist()) == [0] * 6 + [4, 4]
    found = there_and_back(some(feedback=True), new, at)["weights"]["a"]
    assert sorted(found.tolist()) == [0] * 6 + [1, 1]


def test_the_mean_over_random_places_is_the_update() -> None:
    update = torch.arange(1.0, 9)
    found = torch.zeros(8)
    for seed in range(1000):
        at = passage({"weights": {"a": torch.zeros(8)}}, seed=seed, **WEIGHTS)
        packed = some().leave({"weights": {"a": update}}, at)
        found += some().arrive(packed, at)["weights"]["a"] / 1000
    # A mean of 1000 has a relative standard deviation of sqrt(3 / 1000), which is 0.055.
    torch.testing.assert_close(found, update, rtol=0.22, atol=0)


@pytest.mark.parametrize("make", [top, some])
def test_what_was_sent_and_what_is_left_are_the_sum_of_updates(make: Any) -> None:
    guard, memory, total, arrived = make(0.1, True), {}, torch.zeros(20, 3), torch.zeros(20, 3)
    for seed in range(12):
        old = {"a": normal(20, 3, seed=100 + seed)}
        update = normal(20, 3, seed=seed)
        at = passage({"weights": old}, memory, seed=seed, **WEIGHTS)
        found = there_and_back(guard, {"weights": {"a": old["a"] + update}}, at)
        step = found["weights"]["a"] - old["a"]
        assert int((step.abs() > 1e-6).sum()) <= 6
        arrived += step
        total += update
    left = memory["train.weights"]["left"].view(20, 3)
    torch.testing.assert_close(arrived + left, total, rtol=0, atol=1e-5)
    assert float(left.abs().max()) > 1


@examples
@given(st.integers(0, 2**32), st.floats(0.01, 1), st.sampled_from([TopK, RandomK]))
def test_feedback_loses_nothing_whatever_the_share(seed: int, share: float, spec: Any) -> None:
    """In float64, in which sums of a few float32 numbers are exact to the last places."""
    guard, memory = Sparse(Kind.GRADIENTS, spec(share=share)), {}
    total, arrived = torch.zeros(17, dtype=torch.float64), torch.zeros(17, dtype=torch.float64)
    for step in range(4):
        gradients = {"a": normal(17, seed=seed + step).double()}
        at = passage({"weights": torch.zeros(17)}, memory, seed=seed + step, **GRADIENTS)
        arrived += there_and_back(guard, {"gradients": gradients}, at)["gradients"]["a"]
        total += gradients["a"]
    left = memory["train.gradients"]["left"]
    torch.testing.assert_close(arrived + left, total, rtol=0, atol=1e-12)


def test_a_number_that_never_is_large_travels_in_the_end() -> None:
    guard, memory, zero = top(0.5, True), {}, {"weights": {"a": torch.zeros(2)}}
    found = [
        there_and_back(
            guard,
            {"weights": {"a": torch.tensor([1.0, 0.4])}},
            passage(zero, memory, **WEIGHTS),
        )["weights"]["a"].tolist()
        for _ in range(3)
    ]
    assert found[:2] == [[1, 0], [1, 0]]
    assert found[2] == [0, pytest.approx(1.2)]


def test_residuals_are_apart_by_operation_key_and_form() -> None:
    guard = top(0.25, True)
    memory: Tree = {}
    zero = {"a": torch.zeros(4)}
    update = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    kinds = {"weights": Kind.WEIGHTS, "head": Kind.WEIGHTS, "loose": Kind.CONTROL}
    value = {"weights": update, "head": update, "loose": update, "samples": 3}
    received = {"weights": zero, "head": zero}
    packed = guard.leave(value, passage(received, memory, **kinds))
    assert packed["loose"] is update
    assert packed["samples"] == 3
    guard.leave({"weights": update}, passage(received, memory, op="tune", **kinds))
    assert sorted(memory) == ["train.head", "train.weights", "tune.weights"]
    assert memory["tune.weights"]["left"].tolist() == [1, 2, 3, 0]
    assert memory == wire_copy(memory)
    for other in ({"a": torch.ones(2, 2)}, {"b": torch.ones(4)}):
        sent = {name: torch.zeros_like(item) for name, item in other.items()}
        guard.leave({"weights": other}, passage({"weights": sent}, memory, **kinds))
        assert memory["train.weights"]["left"].tolist() == [0, 1, 1, 1]


def wire_copy(tree: Tree) -> Any:
    """The tree through bytes, tensors equal where they are: what a checkpoint needs."""

    def same(a: Any, b: Any) -> Any:
        if isinstance(a, dict):
            return {name: same(a[name], b[name]) for name in a}
        if isinstance(a, Tensor):
            assert torch.equal(a, b)
            return a
        return b

    return same(tree, wire.decode(wire.encode(tree)))


def test_what_is_kept_is_replaced_and_not_changed() -> None:
    guard = top(0.25, True)
    memory: Tree = {}
    at = passage({"weights": {"a": torch.zeros(4)}}, memory, **WEIGHTS)
    guard.leave({"weights": {"a": torch.ones(4)}}, at)
    before = memory["train.weights"]
    kept = before["left"].clone()
    guard.leave({"weights": {"a": torch.ones(4)}}, at)
    assert memory["train.weights"] is not before
    assert torch.equal(before["left"], kept)


def test_without_feedback_nothing_is_kept() -> None:
    memory: Tree = {}
    for guard in (top(), some()):
        guard.leave(
            {"weights": {"a": torch.ones(4)}},
            passage({"weights": {"a": torch.zeros(4)}}, memory, **WEIGHTS),
        )
    assert not memory


@pytest.mark.parametrize("make", [top, some])
def test_the_value_is_not_changed(make: Any) -> None:
    value = {"weights": {"a": torch.ones(4, requires_grad=True), "n": torch.tensor(3)}}
    received = {"weights": {"a": torch.zeros(4), "n": torch.tensor(1)}}
    found = there_and_back(make(), value, passage(received, **WEIGHTS))
    assert value["weights"]["a"].tolist() == [1, 1, 1, 1]
    assert received["weights"]["a"].tolist() == [0, 0, 0, 0]
    assert not found["weights"]["a"].requires_grad


def test_only_floats_are_packed_and_running_statistics_are_not() -> None:
    value = {
        "list": [torch.ones(2, 2), {"n": 3, "word": "x", "none": None}],
        "half": torch.ones(2, dtype=torch.bfloat16),
        "wide": torch.ones((), dtype=torch.float64),
        "bn.running_var": torch.tensor([0.125, 3.0]),
        "bn.num_batches_tracked": torch.tensor(7),
        "none": torch.ones(0, 3),
    }
    sent = {
        **value,
        "list": [torch.zeros(2, 2), None],
        "half": torch.zeros(2, dtype=torch.bfloat16),
        "wide": torch.zeros((), dtype=torch.float64),
        "bn.running_var": torch.zeros(2),
        "further": torch.ones(3),
    }
    guard = top(1.0)
    at = passage({"weights": sent}, **WEIGHTS)
    assert guard.leave({"weights": value}, at)["weights"]["values"].shape == (7,)
    found = there_and_back(guard, {"weights": value}, at)["weights"]
    assert found["list"][1] == value["list"][1]  # type: ignore[index]
    for name in ("half", "wide", "bn.running_var", "bn.num_batches_tracked", "none"):
        assert found[name].dtype == value[name].dtype  # type: ignore[union-attr]
        assert torch.equal(found[name], value[name])  # type: ignore[arg-type]
    assert torch.equal(found["list"][0], torch.ones(2, 2))


@pytest.mark.parametrize("make", [top, some])
def test_nothing_at_all_is_no_trouble(make: Any) -> None:
    for value in ({}, {"n": torch.tensor(3)}, {"a": torch.ones(0)}):
        found = there_and_back(make(), {"weights": value}, passage({"weights": value}, **WEIGHTS))
        assert found["weights"].keys() == value.keys()
    assert there_and_back(make(), {"n": 3}, passage({}, **WEIGHTS)) == {"n": 3}


@pytest.mark.parametrize("kind", [Kind.WEIGHTS, Kind.REPRESENTATIONS, Kind.LOGITS])
@pytest.mark.parametrize(
    "received", [{}, {"z": torch.zeros(3, 5)}, {"z": {"a": torch.zeros(3, 4)}}]
)
def test_what_is_no_difference_is_refused(kind: Kind, received: Tree) -> None:
    told = f"top-k packs the difference .* it sent no 'z' .* write fp16, int8 or qsgd for {kind}"
    with pytest.raises(ConfigError, match=told):
        top(kind=kind).leave({"z": torch.ones(3, 4)}, passage(received, z=kind))


def test_logits_that_the_hub_sent_are_a_difference() -> None:
    at = passage({"z": torch.ones(2, 2)}, z=Kind.LOGITS)
    value = {"z": torch.tensor([[1.0, 1.5], [4.0, 1.0]])}
    found = there_and_back(top(kind=Kind.LOGITS), value, at)
    assert found["z"].tolist() == [[1, 1], [4, 1]]


@pytest.mark.parametrize("kind", [Kind.GRADIENTS, Kind.CONTROL])
def test_directions_are_sparse_as_they_are_up_to_the_size_of_the_question(kind: Kind) -> None:
    guard = top(kind=kind)
    at = passage({"weights": {"a": torch.ones(4)}}, z=kind)
    found = there_and_back(guard, {"z": {"a": torch.tensor([1.0, -5.0, 2.0, 3.0])}}, at)
    assert found["z"]["a"].tolist() == [0, -5, 0, 0]
    with pytest.raises(WireError, match="z: it is of 5 numbers, and the question only had 4"):
        guard.leave({"z": {"a": torch.ones(5)}}, at)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("make", [top, some])
def test_what_is_not_finite_does_not_leave(make: Any, bad: float) -> None:
    at = passage({"weights": torch.zeros(2)}, **WEIGHTS)
    with pytest.raises(WireError, match="weights: it has values that are infinite or NaN"):
        make().leave({"weights": torch.tensor([1.0, bad])}, at)
    with pytest.raises(WireError, match="weights: it has values that are infinite or NaN"):
        make().leave(
            {"weights": torch.tensor([3e38])},
            passage({"weights": torch.tensor([-3e38])}, **WEIGHTS),
        )
    wide = torch.tensor([1.0, 1e300], dtype=torch.float64)
    at = passage({"weights": torch.zeros_like(wide)}, **WEIGHTS)
    with pytest.raises(WireError, match="weights: it has values beyond the range of float32"):
        make(1.0).leave({"weights": wide}, at)


def test_a_number_of_another_width_and_a_key_of_ours_are_refused() -> None:
    eighth = torch.ones(2).to(torch.float8_e5m2)
    with pytest.raises(WireError, match="weights: a is float8_e5m2; send one of float32"):
        top().leave({"weights": {"a": eighth}}, passage({}, **WEIGHTS))
    with pytest.raises(WireError, match="weights: the key '@form' is used for packing"):
        top().leave({"weights": {"@form": 1}}, passage({}, **WEIGHTS))


SIZE = 40_000
FRAME = 600


@pytest.mark.parametrize(
    ("share", "where", "bits"),
    [(0.5, "bitmap", SIZE), (0.0625, "bitmap", SIZE), (0.01, "indices", 400 * 16)],
)
def test_places_travel_in_the_smaller_way(share: float, where: str, bits: int) -> None:
    value = {"weights": {"a": normal(200, 200)}}
    at = passage({"weights": {"a": torch.zeros(200, 200)}}, **WEIGHTS)
    packed = top(share).leave(value, at)
    assert packed["weights"].keys() == {"@packed", "tree", "values", where}
    assert len(packed["weights"][where]) == bits / 8
    size = wire.frame_size(packed)
    assert size - FRAME < 4 * share * SIZE + bits / 8 < size


def test_random_places_travel_as_one_number() -> None:
    value = {"weights": {"a": normal(200, 200)}}
    at = passage({"weights": {"a": torch.zeros(200, 200)}}, **WEIGHTS)
    packed = some(0.01).leave(value, at)
    assert packed["weights"].keys() == {"@packed", "tree", "values", "seed"}
    assert wire.frame_size(packed) < 4 * 400 + FRAME
    assert wire.frame_size(value) > 4 * SIZE


def form(*parts: Any) -> dict[str, Any]:
    return {"@form": list(parts)}


def half_packed(guard: Sparse, **changes: Any) -> Tree:
    """Sixteen numbers, of which four travel, with something changed; None leaves it out."""
    value = {"weights": {"a": normal(4, 4)}}
    at = passage({"weights": {"a": torch.zeros(4, 4)}}, **WEIGHTS)
    packed = {**guard.leave(value, at)["weights"], **changes}
    return {"weights": {name: item for name, item in packed.items() if item is not None}}


DAMAGE: list[dict[str, Any]] = [
    {"@packed": "qsgd"},
    {"@packed": None},
    {"tree": None},
    {"tree": {}},
    {"tree": {"a": 3}},
    {"tree": {"a": form("float32", 4, 4), "b": form("float32", 4)}},
    {"tree": {"b": form("float32", 4, 4)}},
    {"tree": [form("float32", 4, 4)]},
    {"tree": {"a": form("float32", 16)}},
    {"tree": {"a": form("float32", 2**40, 2**20)}},
    {"tree": {"a": form("float32", 0, 2**62, 2**62)}},
    {"tree": {"a": form("float32", -4, -4)}},
    {"tree": {"a": form("float32", 4.0, 4)}},
    {"tree": {"a": form("float32", True, 16)}},
    {"tree": {"a": form("int64", 4, 4)}},
    {"tree": {"a": form(4, 4)}},
    {"tree": {"a": {"@form": 3}}},
    {"tree": {"a": {**form("float32", 4, 4), "b": 1}}},
    {"tree": {"a": form("float32", *[1] * 100)}},
    {"values": None},
    {"values": 3.0},
    {"values": torch.ones(3)},
    {"values": torch.ones(4, 1)},
    {"values": torch.ones(4).double()},
    {"values": torch.tensor([1.0, 2.0, 3.0, math.nan])},
    {"values": torch.tensor([1.0, 2.0, 3.0, -math.inf])},
]
PLACES: list[dict[str, Any]] = [
    {"bitmap": None},
    {"bitmap": torch.tensor([255, 0, 0], dtype=torch.uint8)},
    {"bitmap": torch.tensor([255, 0], dtype=torch.uint8)},
    {"bitmap": torch.tensor([1, 1, 1, 1])},
    {"bitmap": torch.tensor([15, 0], dtype=torch.uint8), "more": 1},
    {"bitmap": None, "indices": torch.tensor([0, 0], dtype=torch.uint8)},
    {"bitmap": None, "indices": torch.tensor([0x32, 0x10], dtype=torch.uint8)},
    {"bitmap": None, "indices": torch.tensor([0x01, 0x23, 0], dtype=torch.uint8)},
    {"bitmap": None, "seed": 3},
]
SEEDS: list[dict[str, Any]] = [
    {"seed": None},
    {"seed": -1},
    {"seed": 2**62},
    {"seed": 1.5},
    {"seed": True},
    {"seed": torch.tensor(3)},
    {"more": 1},
]


@pytest.mark.parametrize(
    ("make", "changes"),
    [(top, changes) for changes in DAMAGE + PLACES]
    + [(some, changes) for changes in DAMAGE + SEEDS],
)
def test_damage_is_refused_by_its_key(make: Any, changes: dict[str, Any]) -> None:
    guard = make()
    at = passage({"weights": {"a": torch.zeros(4, 4)}}, **WEIGHTS)
    assert arriving(guard, half_packed(guard), at)["weights"]["a"].shape == (4, 4)
    with pytest.raises(WireError, match="^weights: "):
        arriving(guard, half_packed(guard, **changes), at)


@pytest.mark.parametrize("plain", [torch.ones(4, 4), {"a": torch.ones(4, 4)}, 3, None, []])
def test_what_is_not_packed_at_all_is_refused(plain: Any) -> None:
    at = passage({"weights": {"a": torch.zeros(4, 4)}}, **WEIGHTS)
    with pytest.raises(WireError, match="weights: it is not packed as top-k"):
        top().arrive({"weights": plain}, at)


def test_a_good_set_of_places_is_read_either_way() -> None:
    guard = top()
    at = passage({"weights": {"a": torch.zeros(4, 4)}}, **WEIGHTS)
    indices = torch.tensor([0x01, 0x3F], dtype=torch.uint8)
    damaged = half_packed(guard, bitmap=None, indices=indices, values=torch.arange(1.0, 5))
    found = arriving(guard, damaged, at)["weights"]["a"].flatten()
    assert found.nonzero().flatten().tolist() == [0, 1, 3, 15]
    assert found[[0, 1, 3, 15]].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("make", [top, some])
@pytest.mark.parametrize("shape", [(2**39,), (2**30, 2**9), (17,), (0, 2**62)])
def test_a_declared_size_cannot_outgrow_the_question(make: Any, shape: tuple[int, ...]) -> None:
    guard = make(1e-12, kind=Kind.GRADIENTS)
    at = passage({"weights": torch.zeros(16)}, **GRADIENTS)
    packed = guard.leave({"gradients": torch.ones(16)}, at)
    packed["gradients"]["tree"] = form("float32", *shape)
    with pytest.raises(WireError, match="^gradients: "):
        arriving(guard, packed, at)


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**62)
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.sampled_from(
        [torch.ones(4), torch.ones(2, dtype=torch.uint8), torch.ones(()), torch.zeros(0)]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["a", "@form", "@packed", "tree", "values", "bitmap", "seed"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@examples
@given(junk, st.sampled_from(["tree", "values", "bitmap", "indices", "seed", "@packed", ""]))
def test_junk_is_either_read_or_refused(found: Any, place: str) -> None:
    for guard in (top(), some()):
        at = passage({"weights": {"a": torch.zeros(4, 4)}}, **WEIGHTS)
        packed = half_packed(guard)
        changed = {"weights": {**packed["weights"], place: found} if place else found}
        read = read_or_reason(guard, changed, at)
        assert isinstance(read, dict) or read.startswith("weights: ")


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("make", [top, some])
def test_a_run_goes_through_and_repeats(make: Any, feedback: bool) -> None:
    runs = [averaging([make(0.5, feedback)], strict=strict) for strict in (True, False)]
    weights = [run.state["weights"] for run in runs]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name])
    whole = averaging([]).state["weights"]
    assert not torch.equal(weights[0]["layer.weight"], whole["layer.weight"])
    assert int(weights[0]["seen"]) == int(whole["seen"])
