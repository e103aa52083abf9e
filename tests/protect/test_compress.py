"""Codecs: how far off, how many bytes, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tests.core.toys import Averaging, federation
from tests.protect.passing import passage
from torch import Tensor

from motet.core import Kind, WireError, wire
from motet.protect.compress import (
    Codec,
    CodecName,
    Compression,
    codec_of,
    guards_of,
    quantise_channels,
    quantise_rows,
    restore_rows,
)
from motet.protect.quantise import QSGD
from motet.protect.sparse import RandomK, TopK

examples = settings(max_examples=100, deadline=None, derandomize=True, database=None)
KINDS = {"z": Kind.REPRESENTATIONS, "w": Kind.WEIGHTS}
CODECS: list[CodecName] = ["fp16", "int8"]


def codec(name: CodecName) -> Codec:
    return Codec({Kind.REPRESENTATIONS: name})


def there_and_back(name: CodecName, value: Any) -> Any:
    """Through the codec and the wire."""
    frame = wire.encode(codec(name).pack({"z": value}, KINDS))
    return codec(name).unpack(wire.decode(frame))["z"]


rows = st.integers(0, 2**32).map(lambda seed: torch.Generator().manual_seed(seed))


@examples
@given(rows, st.integers(-30, 30), st.sampled_from([(4, 7), (9,), (), (2, 3, 5), (0, 3), (3, 0)]))
def test_an_int8_is_off_by_half_a_scale(
    rng: torch.Generator, power: int, shape: tuple[int, ...]
) -> None:
    values = torch.randn(shape, generator=rng) * 2.0**power
    codes, scale = quantise_rows(values)
    assert codes.dtype == torch.int8
    assert codes.shape == values.shape
    assert scale.shape == values.shape[:-1]
    off = (restore_rows(codes, scale) - values).abs()
    bound = (scale if not shape else scale.unsqueeze(-1)) * 0.5001
    assert bool((off <= bound).all())


def test_the_largest_of_a_row_is_kept() -> None:
    values = torch.tensor([[0.5, -2.0], [100.0, 3.0], [0.0, 0.0]])
    codes, scale = quantise_rows(values)
    assert codes.abs().amax(dim=1).tolist() == [127, 127, 0]
    found = restore_rows(codes, scale)
    assert found[:, 0].tolist() == pytest.approx([0.5, 100, 0], abs=0.01)
    assert found[2].tolist() == [0, 0]


@examples
@given(rows)
def test_a_half_is_off_by_a_two_thousandth(rng: torch.Generator) -> None:
    values = torch.randn(5, 8, generator=rng)
    torch.testing.assert_close(there_and_back("fp16", values), values, rtol=2**-11, atol=1e-7)


@pytest.mark.parametrize("name", CODECS)
def test_unit_rows_keep_their_directions(name: CodecName) -> None:
    values = torch.nn.functional.normalize(torch.randn(50, 64, generator=torch.Generator()), dim=1)
    cosine = torch.cosine_similarity(there_and_back(name, values), values)
    assert float(cosine.min()) > 0.9995


@pytest.mark.parametrize(("name", "size"), [("fp16", 2 * 64), ("int8", 64 + 4)])
def test_fewer_bytes_travel(name: CodecName, size: int) -> None:
    tree = {"z": torch.randn(300, 64, generator=torch.Generator())}
    plain = wire.frame_size(tree)
    packed = wire.frame_size(codec(name).pack(tree, KINDS))
    assert abs(plain - 300 * 64 * 4) < 250
    assert abs(packed - 300 * size) < 300


@examples
@given(
    rows,
    st.integers(-30, 30),
    st.sampled_from([(4, 7), (9,), (), (2, 3, 5), (6, 1), (6, 1, 1, 1), (0, 3), (3, 0), (2, 1, 3)]),
)
def test_an_output_channel_has_one_scale(
    rng: torch.Generator, power: int, shape: tuple[int, ...]
) -> None:
    values = torch.randn(shape, generator=rng) * 2.0**power
    codes, scale = quantise_channels(values)
    assert codes.dtype == torch.int8
    assert codes.shape == values.shape
    lone = len(shape) < 2 or math.prod(shape[1:]) == 1
    assert scale.shape == (() if lone else shape[:1])
    if values.numel():
        largest = values.abs().amax() if lone else values.abs().flatten(1).amax(dim=1)
        torch.testing.assert_close(scale * 127, largest)
    wide = scale.reshape([*scale.shape, *[1] * (len(shape) - scale.dim())])
    assert bool(((restore_rows(codes, scale) - values).abs() <= wide * 0.5001).all())


@pytest.mark.parametrize("kind", [Kind.WEIGHTS, Kind.GRADIENTS, Kind.CONTROL])
@pytest.mark.parametrize(
    ("shape", "scales"), [((64, 32, 3, 3), 64), ((512, 8), 512), ((4096,), 1), ((512, 1), 1)]
)
def test_int8_weights_take_a_byte_and_few_scales(
    kind: Kind, shape: tuple[int, ...], scales: int
) -> None:
    value = {"w": {"conv": torch.randn(shape, generator=torch.Generator())}}
    packed = Codec({kind: "int8"}).pack(value, {"w": kind})
    saved = wire.frame_size(value) - wire.frame_size(packed)
    assert abs(saved - (3 * math.prod(shape) - 4 * scales)) < 200
    found = Codec({kind: "int8"}).unpack(wire.decode(wire.encode(packed)))["w"]["conv"]
    off = float((found - value["w"]["conv"]).abs().max())
    assert 0 < off <= float(value["w"]["conv"].abs().max()) / 254 * 1.001


def test_rows_of_pictures_have_a_scale_each() -> None:
    packed = codec("int8").pack({"z": torch.ones(2, 3, 4)}, KINDS)
    assert packed["z"]["scale"].shape == (2, 3)


@pytest.mark.parametrize("name", CODECS)
def test_other_kinds_and_other_values_travel_as_they_are(name: CodecName) -> None:
    tree = {
        "w": torch.tensor([1 / 3]),
        "loose": torch.tensor([1 / 3]),
        "z": {"ids": torch.tensor([7]), "n": 3, "word": "x", "none": None, "list": [torch.ones(1)]},
    }
    packed = codec(name).pack(tree, KINDS)
    assert packed["w"] is tree["w"]
    assert packed["loose"] is tree["loose"]
    assert packed["z"]["ids"] is tree["z"]["ids"]  # type: ignore[index]
    found = codec(name).unpack(wire.decode(wire.encode(packed)))
    assert found == tree


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floats_come_back_as_float32(name: CodecName, dtype: torch.dtype) -> None:
    found = there_and_back(name, torch.tensor([[1.0, -0.5]], dtype=dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[1.0, -0.5]]), rtol=0.01, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", CODECS)
def test_what_is_not_finite_is_refused_by_its_path(name: CodecName, bad: float) -> None:
    with pytest.raises(WireError, match=r"z\.deep\.1.* not finite"):
        codec(name).pack({"z": {"deep": [1, torch.tensor([1.0, bad])]}}, KINDS)


def test_what_a_format_cannot_hold_is_refused() -> None:
    with pytest.raises(WireError, match=r"z has values beyond the range of fp16 \(65,504\)"):
        codec("fp16").pack({"z": torch.tensor([70_000.0])}, KINDS)
    with pytest.raises(WireError, match="z: .* not finite"):
        codec("int8").pack({"z": torch.tensor([1e300], dtype=torch.float64)}, KINDS)


@pytest.mark.parametrize("name", CODECS)
def test_the_payload_is_not_changed(name: CodecName) -> None:
    tree = {"z": [torch.ones(2, requires_grad=True)]}
    codec(name).pack(tree, KINDS)
    assert tree["z"][0].dtype == torch.float32


def half(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float16)


def code(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int8)


@pytest.mark.parametrize(
    "packed",
    [
        {"@codec": "fp16"},
        {"@codec": "fp16", "values": torch.ones(2)},
        {"@codec": "fp16", "values": 3},
        {"@codec": "int8", "values": code(2, 3)},
        {"@codec": "int8", "values": code(2, 3), "scale": torch.ones(3)},
        {"@codec": "int8", "values": half(2, 3), "scale": torch.ones(2)},
        {"@codec": "int8", "values": code(2, 3), "scale": 0.5},
        {"@codec": "zip", "values": code(2, 3), "scale": torch.ones(2)},
        {"@codec": None},
        {"@codec": "fp16", "values": half(2), "scale": None},
        {"@codec": "fp16", "values": torch.tensor([math.inf]).half()},
        {"@codec": "fp16", "values": torch.tensor([math.nan]).half()},
        {"@codec": "int8", "values": code(2, 3), "scale": torch.ones(2), "more": 1},
        {"@codec": "int8", "values": code(2, 3), "scale": torch.ones(2, 3)},
        {"@codec": "int8", "values": code(2, 3), "scale": torch.ones(2, 1)},
        {"@codec": "int8", "values": code(), "scale": torch.ones(1)},
        {"@codec": "int8", "values": code(2, 3), "scale": torch.ones(2).double()},
        {"@codec": "int8", "values": code(2, 3), "scale": torch.tensor([1, math.nan])},
        {"@codec": "int8", "values": code(2, 3), "scale": torch.tensor([1, math.inf])},
        {"@codec": "int8", "values": code(2, 3), "scale": torch.tensor([1.0, -1.0])},
        {"@codec": "int8", "values": code(2, 3) - 128, "scale": torch.ones(2)},
    ],
)
def test_what_was_not_packed_so_is_refused(packed: Any) -> None:
    with pytest.raises(WireError, match=r"z\.0 is not a tensor that was packed as"):
        codec("int8").unpack({"z": [packed]})


def test_the_codec_s_own_word_cannot_be_a_name() -> None:
    with pytest.raises(WireError, match="z has the key '@codec', which the codec uses"):
        codec("int8").pack({"z": {"@codec": 1}}, KINDS)


@pytest.mark.parametrize("name", CODECS)
def test_a_run_sends_less_and_arrives_nearby(name: CodecName) -> None:
    ends = []
    for middleware in ((), (Codec({Kind.WEIGHTS: name}),)):
        fed = federation(Averaging(rounds=1), middleware=middleware, strict=True)
        fed.start()
        first = next(event for event in fed.events.memory if event["event"] == "replied")
        ends.append((first["up"]["weights"], fed.state["weights"]["layer.weight"]))
    assert ends[1][0] < 0.6 * ends[0][0]
    torch.testing.assert_close(ends[1][1], ends[0][1], rtol=0, atol=0.02)
    assert not torch.equal(ends[1][1], ends[0][1])


def test_a_hub_that_cannot_pack_says_what() -> None:
    fed = federation(Averaging(), middleware=[Codec({Kind.WEIGHTS: "int8"})])
    with torch.no_grad():
        next(fed.model.parameters()).fill_(math.nan)
    with pytest.raises(WireError, match=r"weights\.layer\.weight: .* not finite"):
        fed.start()


adapter: TypeAdapter[Any] = TypeAdapter(Compression)
EVERY = {
    "weights": "fp16",
    "representations": "int8",
    "logits": {"name": "int8"},
    "gradients": {"name": "top-k", "share": 0.05, "feedback": False},
    "control": {"name": "qsgd", "levels": 7, "bucket": 128},
    "activations": "qsgd",
    "sketch": "random-k",
}


def test_a_recipe_s_names_become_codecs_both_ways_and_guards_up_alone() -> None:
    found = adapter.validate_python(EVERY)
    made = codec_of(found)
    assert made is not None
    assert made.names == {"weights": "fp16", "representations": "int8", "logits": "int8"}
    guards = guards_of(found)
    names = ["top-k gradients", "qsgd control", "qsgd activations", "random-k sketch"]
    assert [guard.name for guard in guards] == names
    assert found[Kind.GRADIENTS] == TopK(share=0.05, feedback=False)
    assert found[Kind.CONTROL] == QSGD(levels=7, bucket=128)
    assert found[Kind.SKETCH] == RandomK(share=0.01, feedback=True)
    again = adapter.validate_python(adapter.dump_python(found, mode="json"))
    assert again == found


def test_nothing_to_compress_is_no_codec_and_no_guard() -> None:
    assert codec_of({}) is None
    assert guards_of({}) == []
    assert codec_of(adapter.validate_python({"weights": "top-k"})) is None
    assert guards_of(adapter.validate_python({"weights": "fp16"})) == []


@pytest.mark.parametrize("kind", ["labels", "metric", "votes", "raw"])
@pytest.mark.parametrize("name", ["fp16", "top-k", "qsgd"])
def test_a_kind_that_no_codec_is_for_is_refused_with_a_reason(kind: str, name: str) -> None:
    with pytest.raises(ValidationError, match=f"; leave {kind} out") as caught:
        adapter.validate_python({kind: name})
    assert caught.value.errors()[0]["loc"] == (kind, "[key]")


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"weights": {"name": "top-k", "share": 0}}, ("weights", "top-k", "share")),
        ({"weights": {"name": "random-k", "share": 1.5}}, ("weights", "random-k", "share")),
        ({"weights": {"name": "qsgd", "levels": 0}}, ("weights", "qsgd", "levels")),
        ({"weights": {"name": "qsgd", "levels": 1024}}, ("weights", "qsgd", "levels")),
        ({"weights": {"name": "qsgd", "bucket": 0}}, ("weights", "qsgd", "bucket")),
        ({"weights": {"name": "fp16", "share": 1}}, ("weights", "fp16", "share")),
        ({"weights": "fp17"}, ("weights",)),
        ({"weight": "fp16"}, ("weight", "[key]")),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(given: Any, place: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python(given)
    assert caught.value.errors()[0]["loc"] == place


def test_rows_are_buckets_of_their_own() -> None:
    with pytest.raises(ValidationError, match="logits has the bucket 64, .* leave bucket out"):
        adapter.validate_python({"logits": {"name": "qsgd", "bucket": 64}})


def test_a_guard_and_a_codec_do_not_meet() -> None:
    found = adapter.validate_python({"representations": "int8", "weights": "top-k"})
    guard, made = guards_of(found)[0], codec_of(found)
    assert made is not None
    value = {"z": torch.ones(3, 4), "w": {"a": torch.ones(200)}}
    at = passage({"w": {"a": torch.zeros(200)}}, **KINDS)
    frame = wire.encode(made.pack(guard.leave(value, at), KINDS))
    found = guard.arrive(made.unpack(wire.decode(frame)), at)
    torch.testing.assert_close(found["z"], value["z"])
    assert int(found["w"]["a"].sum()) == 2
