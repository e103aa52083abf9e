"""QSGD: unbiased, within its bound, as small as it says, and refused when damaged."""

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

from motet.core import Kind, Tree, WireError, wire
from motet.protect.quantise import QSGD, Quantised, qsgd, restore_qsgd

examples = settings(max_examples=60, deadline=None, derandomize=True, database=None)
WEIGHTS = {"weights": Kind.WEIGHTS}


def guard_of(levels: int = 15, bucket: int | None = None, kind: Kind = Kind.WEIGHTS) -> Quantised:
    return Quantised(kind, QSGD(levels=levels, bucket=bucket))


def rounded(values: torch.Tensor, levels: int, bucket: int, seed: int) -> torch.Tensor:
    codes, norms = qsgd(values, levels, bucket, torch.Generator().manual_seed(seed))
    return restore_qsgd(codes, norms, levels, bucket)


@pytest.mark.parametrize(("levels", "bucket"), [(1, 8), (4, 3), (15, 20), (1, 1), (200, 64)])
def test_the_mean_over_draws_is_the_value_and_the_error_within_its_bound(
    levels: int, bucket: int
) -> None:
    values, draws = normal(20) * torch.logspace(-2, 1, 20), 3000
    found = torch.stack([rounded(values, levels, bucket, seed) for seed in range(draws)])
    error = found - values
    deviation = error.square().mean(dim=0).sqrt()
    assert bool((error.mean(dim=0).abs() <= 5 * deviation / draws**0.5 + 1e-5).all())
    for start in range(0, 20, bucket):
        part = values[start : start + bucket]
        bound = min(len(part) / levels**2, len(part) ** 0.5 / levels) * part.square().sum()
        squared = error[:, start : start + bucket].square().sum(dim=1).mean()
        assert float(squared) <= float(bound) * 1.02 + 1e-9


def test_a_small_number_is_a_step_as_often_as_it_is_large() -> None:
    """Of a norm of 5, in one step: 3 of 5 times 5, and never the other sign."""
    values = torch.tensor([3.0, -4.0])
    found = torch.stack([rounded(values, 1, 2, seed) for seed in range(4000)])
    assert set(found[:, 0].tolist()) == {0, 5}
    assert set(found[:, 1].tolist()) == {0, -5}
    shares = (found != 0).float().mean(dim=0)
    assert shares.tolist() == [pytest.approx(0.6, abs=0.04), pytest.approx(0.8, abs=0.04)]


@examples
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), max_size=40),
    st.integers(1, 1023),
    st.integers(1, 50),
    st.integers(0, 2**32),
)
def test_a_number_moves_by_less_than_a_step(
    numbers: list[float], levels: int, bucket: int, seed: int
) -> None:
    values = torch.tensor(numbers)
    codes, norms = qsgd(values, levels, bucket, torch.Generator().manual_seed(seed))
    assert codes.shape == values.shape
    assert norms.shape == (-(-len(values) // bucket),)
    assert norms.tolist() == [
        pytest.approx(math.sqrt(sum(x * x for x in numbers[i : i + bucket])), rel=1e-6)
        for i in range(0, len(numbers), bucket)
    ]
    if len(values):
        assert 0 <= int(codes.min()) <= int(codes.max()) <= 2 * levels
    step = norms.repeat_interleave(bucket)[: len(values)] / levels
    error = (restore_qsgd(codes, norms, levels, bucket) - values).abs()
    # Float32 has nothing between 0 and 1.4e-45, where a step may well be.
    assert bool((error <= step * 1.001 + 2e-45).all())
    assert bool((codes[values == 0] == levels).all())


def test_a_lone_number_and_whole_steps_are_exact() -> None:
    values = torch.tensor([0.3, -7.0, 0.0, 1e-30])
    assert torch.equal(rounded(values, 3, 1, 0), values)
    # 3 and 4 of a norm of 5 are 3 and 4 steps of 5.
    for seed in range(20):
        found = rounded(torch.tensor([3.0, -4.0]), 5, 2, seed)
        torch.testing.assert_close(found, torch.tensor([3.0, -4.0]), rtol=0.34, atol=0)
    assert rounded(torch.zeros(5), 3, 2, 0).tolist() == [0] * 5
    assert rounded(torch.tensor([1e-60, 1.0]).double(), 3, 1, 0).tolist() == [0, 1]


def test_what_arrives_is_what_was_sent_plus_the_rounded_update() -> None:
    old, new = {"a": normal(7, 3)}, {"a": normal(7, 3, seed=1)}
    at = passage({"weights": old}, **WEIGHTS)
    found = there_and_back(guard_of(1023), {"weights": new}, at)["weights"]["a"]
    assert float((found - new["a"]).abs().max()) <= float((new["a"] - old["a"]).norm()) / 1023
    assert not torch.equal(found, new["a"])
    same = there_and_back(guard_of(1), {"weights": old}, at)
    assert torch.equal(same["weights"]["a"], old["a"])


def test_other_draws_for_other_questions_and_keys() -> None:
    kinds = {"weights": Kind.WEIGHTS, "head": Kind.WEIGHTS}
    value = {"weights": normal(64), "head": normal(64)}

    def codes(seed: int) -> Tree:
        packed = guard_of(1).leave(value, passage({}, seed=seed, **kinds))
        return {key: packed[key]["codes"].tolist() for key in kinds}

    assert codes(0) == codes(0)
    assert codes(0) != codes(1)
    assert codes(0)["weights"] != codes(0)["head"]


@pytest.mark.parametrize("kind", [Kind.REPRESENTATIONS, Kind.LOGITS, Kind.ACTIVATIONS])
def test_rows_have_a_norm_each(kind: Kind) -> None:
    value = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [600.0, 0.0, 800.0]])
    at = passage({}, z=kind)
    packed = guard_of(kind=kind).leave({"z": {"a": value, "b": torch.ones(4)}}, at)
    assert packed["z"]["norms"].tolist() == [5, 0, 1000, 2]
    found = arriving(guard_of(kind=kind), packed, at)["z"]["a"]
    assert float((found[0] - value[0]).abs().max()) <= 5 / 15
    assert found[1].tolist() == [0, 0, 0]


def test_buckets_go_through_all_weights_of_a_key() -> None:
    value = {"a": torch.ones(3, 3), "b": torch.ones(2)}
    packed = guard_of(bucket=4).leave({"weights": value}, passage({}, **WEIGHTS))
    torch.testing.assert_close(packed["weights"]["norms"], torch.tensor([2.0, 2.0, 3**0.5]))
    packed = guard_of().leave({"weights": {"a": torch.ones(1030)}}, passage({}, **WEIGHTS))
    assert packed["weights"]["norms"].shape == (3,)


@pytest.mark.parametrize(
    ("levels", "bits"), [(1, 2), (3, 3), (7, 4), (15, 5), (127, 8), (1023, 11)]
)
def test_as_few_bytes_travel_as_promised(levels: int, bits: int) -> None:
    value = {"weights": {"a": normal(200, 200)}}
    at = passage({"weights": {"a": torch.zeros(200, 200)}}, **WEIGHTS)
    size = wire.frame_size(guard_of(levels).leave(value, at))
    promised = 40_000 * bits / 8 + 4 * math.ceil(40_000 / 512)
    assert promised < size < promised + 600
    assert wire.frame_size(value) > 4 * 40_000


def test_rows_take_their_bits_and_a_norm_each() -> None:
    value = {"z": normal(100, 64)}
    size = wire.frame_size(guard_of(7, kind=Kind.LOGITS).leave(value, passage({}, z=Kind.LOGITS)))
    assert 100 * (32 + 4) < size < 100 * (32 + 4) + 600


def test_other_dtypes_and_empty_ones_come_back_as_they_were() -> None:
    value = {
        "half": torch.ones(2, dtype=torch.float16),
        "wide": torch.ones((), dtype=torch.float64),
        "none": torch.ones(0, 3),
        "list": [torch.tensor(3), 4, "x"],
    }
    for kind in (Kind.WEIGHTS, Kind.SKETCH):
        found = there_and_back(guard_of(kind=kind), {"z": value}, passage({}, z=kind))["z"]
        assert [found[name].dtype for name in ("half", "wide", "none")] == [
            torch.float16,
            torch.float64,
            torch.float32,
        ]
        assert found["none"].shape == (0, 3)
        assert found["list"] == value["list"]
        assert there_and_back(guard_of(kind=kind), {"z": {}}, passage({}, z=kind)) == {"z": {}}


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_what_is_not_finite_does_not_leave(bad: float) -> None:
    with pytest.raises(WireError, match="weights: it has values that are infinite or NaN"):
        guard_of().leave({"weights": torch.tensor([bad])}, passage({}, **WEIGHTS))
    with pytest.raises(WireError, match="weights: it has values whose norm is infinite"):
        guard_of().leave({"weights": torch.tensor([3e38, 3e38])}, passage({}, **WEIGHTS))


def packed_row(**changes: Any) -> Tree:
    """Eight numbers in buckets of four and three steps, with something changed."""
    value = {"weights": {"a": normal(8)}}
    at = passage({"weights": {"a": torch.zeros(8)}}, **WEIGHTS)
    packed = {**guard_of(3, 4).leave(value, at)["weights"], **changes}
    return {"weights": {name: item for name, item in packed.items() if item is not None}}


def form(*parts: Any) -> dict[str, Any]:
    return {"a": {"@form": list(parts)}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"codes": None}, "not codes and norms"),
        ({"codes": 3}, "not codes and norms"),
        ({"more": 3}, "not codes and norms"),
        ({"codes": torch.ones(3)}, "8 numbers of 3 bits"),
        ({"codes": torch.ones(4, dtype=torch.uint8)}, "8 numbers of 3 bits"),
        ({"codes": torch.full((3,), 255, dtype=torch.uint8)}, "codes are above 6"),
        ({"norms": None}, "norms are not 2 numbers of float32"),
        ({"norms": torch.ones(3)}, "norms are not 2 numbers of float32"),
        ({"norms": torch.ones(2).half()}, "norms are not 2 numbers of float32"),
        ({"norms": torch.tensor([1.0, math.nan])}, "norms are infinite or NaN"),
        ({"norms": torch.tensor([math.inf, 1.0])}, "norms are infinite or NaN"),
        ({"norms": torch.tensor([1.0, -1.0])}, "norms are negative"),
        ({"@packed": "top-k"}, "not packed as qsgd"),
        ({"tree": None}, "not packed as qsgd"),
        ({"tree": form("float32", 2**39)}, "norms are not"),
        ({"tree": form("float32", 0, 2**62)}, "no dtype and shape"),
        ({"tree": form("float32", 9)}, "norms are not 3"),
        ({"tree": form("float31", 8)}, "a has a form that is no dtype and shape"),
    ],
)
def test_damage_is_refused_by_its_key(changes: dict[str, Any], reason: str) -> None:
    at = passage({"weights": {"a": torch.zeros(8)}}, **WEIGHTS)
    assert arriving(guard_of(3, 4), packed_row(), at)["weights"]["a"].shape == (8,)
    with pytest.raises(WireError, match=f"^weights: .*{reason}"):
        arriving(guard_of(3, 4), packed_row(**changes), at)


@examples
@given(st.binary(max_size=8), st.lists(st.floats(width=32), max_size=3), st.integers(0, 9))
def test_any_bytes_are_either_read_or_refused(octets: bytes, norms: list[float], size: int) -> None:
    changed = packed_row(
        codes=torch.tensor(list(octets), dtype=torch.uint8),
        norms=torch.tensor(norms),
        tree=form("float32", size),
    )
    at = passage({}, **WEIGHTS)
    found = read_or_reason(guard_of(3, 4), changed, at)
    if isinstance(found, str):
        assert found.startswith("weights: ")
    else:
        assert found["weights"]["a"].shape == (size,)
        assert bool(torch.isfinite(found["weights"]["a"]).all())


def test_a_run_goes_through_and_repeats() -> None:
    runs = [averaging([guard_of(15)], strict=strict) for strict in (True, False)]
    for name, value in runs[0].state["weights"].items():
        assert torch.equal(value, runs[1].state["weights"][name])
    whole = averaging([]).state["weights"]
    moved = (runs[0].state["weights"]["layer.weight"] - whole["layer.weight"]).abs().max()
    assert 0 < float(moved) < 0.5
