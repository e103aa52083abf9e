"""Frames: what goes in comes out, and nothing else comes out of anything."""

from __future__ import annotations

import json
import math
import random
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from motet.core import WireError, wire
from motet.core.tree import DTYPES, MAX_DEPTH, map_tensors

examples = settings(max_examples=200, deadline=None, derandomize=True, database=None)
DTYPE_LIST = sorted(DTYPES, key=str)


def same(left: Any, right: Any) -> bool:
    """Equal in type, order and every bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and bits(left) == bits(right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return (math.isnan(left) and math.isnan(right)) or repr(left) == repr(right)
    return bool(left == right)


def bits(tensor: Tensor) -> bytes:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().flatten())
    return flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(DTYPE_LIST))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    count = math.prod(shape)
    data = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if not count:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool:
        data = bytes(byte & 1 for byte in data)
    tensor = torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
    form = draw(st.sampled_from(["as it is", "transposed", "expanded", "strided", "trained"]))
    if form == "transposed":
        return tensor.permute(tuple(reversed(range(tensor.dim()))))
    if form == "expanded":
        return tensor.unsqueeze(0).expand(2, *tensor.shape)
    if form == "strided" and tensor.dim():
        return tensor[::2]
    if form == "trained" and dtype in (torch.float32, torch.bfloat16):
        return tensor.clone().requires_grad_() * 1
    return tensor


plain = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=5)
)
names = st.text(min_size=1, max_size=4)
values = st.recursive(
    tensors() | plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
trees = st.dictionaries(names, values, max_size=4)


@examples
@given(trees)
def test_what_goes_in_comes_out(tree: dict[str, Any]) -> None:
    frame = wire.encode(tree)
    found = wire.decode(frame)
    bare = map_tensors(lambda tensor: tensor.detach(), tree)
    assert same(found, bare)
    assert wire.frame_size(tree) == len(frame)
    assert wire.encode(found) == frame


@pytest.mark.parametrize("dtype", DTYPE_LIST, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (5,), (2, 3)], ids=str)
def test_every_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.arange(math.prod(shape)) % 2).reshape(shape).to(dtype)
    found = wire.decode(wire.encode({"x": tensor}))["x"]
    assert same(found, tensor)
    assert wire.frame_size({"x": tensor}) == len(wire.encode({"x": tensor}))


def test_whole_numbers_keep_their_last_bit() -> None:
    top = torch.tensor([2**64 - 1, 2**63], dtype=torch.uint64)
    found = wire.decode(wire.encode({"u": top, "i": -(2**63), "j": 2**63 - 1}))
    assert found["u"].tolist() == [2**64 - 1, 2**63]
    assert (found["i"], found["j"]) == (-(2**63), 2**63 - 1)


def test_values_that_are_not_finite_survive() -> None:
    strange = [math.nan, math.inf, -math.inf, -0.0]
    found = wire.decode(wire.encode({"numbers": strange, "tensor": torch.tensor(strange)}))
    assert same(found["numbers"], strange)
    assert same(found["tensor"], torch.tensor(strange))


def test_tensors_that_share_memory_travel_one_by_one() -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tree = {"all": base, "again": base, "row": base[1], "column": base[:, 1], "turned": base.T}
    found = wire.decode(wire.encode(tree))
    assert same(found, tree)
    found["all"].zero_()
    assert same(found["again"], base)
    assert wire.frame_size(tree) == len(wire.encode(tree))


def test_what_comes_out_is_free() -> None:
    frame = wire.encode({"x": torch.ones(3, requires_grad=True) * 2})
    found = wire.decode(frame)["x"]
    assert not found.requires_grad
    found.add_(1)
    assert wire.decode(frame)["x"].tolist() == [2, 2, 2]
    # Where memory begins decides over the last bits of some products: it begins as it always does.
    assert found.data_ptr() % 64 == torch.ones(3).data_ptr() % 64 == 0


def test_the_negative_bit_of_a_view_is_no_trap() -> None:
    view = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert view.is_neg()
    assert wire.decode(wire.encode({"x": view}))["x"].tolist() == [-2, 4]


def test_the_size_is_known_without_a_copy_of_the_tensors() -> None:
    """The second payload of a kind is measured by its shapes alone."""
    tree = {"x": torch.ones(7, 3), "word": "abc"}
    assert wire.frame_size(tree) == len(wire.encode(tree))
    before = wire._overhead.cache_info().misses
    assert wire.frame_size({"x": torch.zeros(7, 3), "word": "xyz"}) == len(wire.encode(tree))
    assert wire._overhead.cache_info().misses == before
    assert wire.frame_size({"x": torch.zeros(7, 3), "word": "xyzä"}) == wire.frame_size(tree) + 2


def test_nothing_but_a_wire_error_comes_of_damage() -> None:
    tree = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": [torch.ones((), dtype=torch.bfloat16), torch.zeros(0, 3, dtype=torch.uint16)],
        "word": "hé",
        "nothing": None,
        "number": math.nan,
    }
    frame = wire.encode(tree)
    rng = random.Random(5)
    refused = 0
    for _ in range(6000):
        try:
            # What is still a frame must also be fit to be sent on.
            wire.encode(wire.decode(damaged(frame, rng)))
        except WireError:
            refused += 1
    assert refused > 5000


def damaged(frame: bytes, rng: random.Random) -> bytes:
    how = rng.randrange(4)
    if how == 0:
        return frame[: rng.randrange(len(frame))]
    if how == 1:
        return rng.randbytes(rng.randrange(300))
    draft = bytearray(frame)
    if how == 2:
        at = rng.randrange(len(draft))
        draft[at:at] = rng.randbytes(rng.randrange(1, 9))
    else:
        # Most of a frame's meaning is in its first bytes.
        for _ in range(rng.randrange(1, 5)):
            draft[rng.randrange(len(draft) if rng.random() < 0.3 else 200)] ^= 1 << rng.randrange(8)
    return bytes(draft)


def with_skeleton(skeleton: Any, **parts: Tensor) -> bytes:
    text = bytearray(json.dumps(skeleton).encode())
    return save({"skeleton": torch.frombuffer(text, dtype=torch.uint8), **parts})


def with_header(data: bytes, **parts: tuple[str, list[int], list[int]]) -> bytes:
    """A file whose header says what we want of it."""
    entries = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        for name, (dtype, shape, offsets) in parts.items()
    }
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


MARK = b'{"a":{"":0}}'
PLACE = ("U8", [len(MARK)], [0, len(MARK)])
LIES = {
    "nothing": b"",
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header that is not JSON": struct.pack("<Q", 3) + b"{a}",
    "no skeleton": save({"x": torch.ones(2)}),
    "a skeleton of numbers": save({"skeleton": torch.ones(3)}),
    "a skeleton of halves": save({"skeleton": torch.ones(3, dtype=torch.bfloat16)}),
    "an empty skeleton": save({"skeleton": torch.empty(0, dtype=torch.uint8)}),
    "a list at the top": with_skeleton([1]),
    "a tensor at the top": with_skeleton({"": 0}, **{"0": torch.ones(2)}),
    "a tensor that is not there": with_skeleton({"a": {"": 0}}),
    "a tensor that is not named": with_skeleton({"a": 1}, **{"0": torch.ones(2)}),
    "a tensor that is named twice": with_skeleton(
        {"a": {"": 0}, "b": {"": 0}}, **{"0": torch.ones(2)}
    ),
    "an empty name": with_skeleton({"": 0, "a": 1}),
    "an integer without end": with_skeleton({"a": 10**400}),
    "complex numbers": with_skeleton({"a": {"": 0}}, **{"0": torch.ones(2, dtype=torch.cfloat)}),
    "an unknown dtype": with_header(MARK + b"x", skeleton=PLACE, **{"0": ("F4", [2], [12, 13])}),
    "a negative shape": with_header(b"{}", skeleton=("U8", [-2], [0, 2])),
    "a shape without end": with_header(
        MARK, skeleton=PLACE, **{"0": ("F32", [0, 2**62, 2**62], [12, 12])}
    ),
    "a shape beyond 64 bits": with_header(
        MARK, skeleton=PLACE, **{"0": ("F32", [0, 2**63], [12, 12])}
    ),
    "more data than there are": with_header(
        MARK, skeleton=PLACE, **{"0": ("F32", [2**40], [12, 12 + 2**42])}
    ),
    "a deep nest": with_skeleton(json.loads('{"a":' * 60 + "1" + "}" * 60)),
}
LIES["a bottomless nest"] = save(
    {"skeleton": torch.frombuffer(bytearray(b'{"a":' * 10**5), dtype=torch.uint8)}
)
LIES["an integer of 5,000 digits"] = save(
    {"skeleton": torch.frombuffer(bytearray(b'{"a":' + b"9" * 5000 + b"}"), dtype=torch.uint8)}
)


@pytest.mark.parametrize("lie", LIES)
def test_a_frame_that_lies_is_refused(lie: str) -> None:
    with pytest.raises(WireError):
        wire.decode(LIES[lie])


def nested(depth: int) -> dict[str, Any]:
    tree: dict[str, Any] = {"x": torch.ones(1)}
    for _ in range(depth - 1):
        tree = {"x": tree}
    return tree


def test_the_depth_has_a_limit() -> None:
    deepest = nested(MAX_DEPTH)
    assert same(wire.decode(wire.encode(deepest)), deepest)
    with pytest.raises(WireError, match=r"x\.x\.x \.\.\. is nested deeper than 32"):
        wire.encode(nested(MAX_DEPTH + 1))
    circle: dict[str, Any] = {}
    circle["again"] = circle
    with pytest.raises(WireError, match="nested deeper"):
        wire.frame_size(circle)


def test_the_size_has_a_limit() -> None:
    frame = wire.encode({"x": torch.ones(100)})
    assert wire.decode(frame, max_bytes=len(frame))
    with pytest.raises(
        WireError, match=f"{len(frame)} bytes is over the limit of {len(frame) - 1}"
    ):
        wire.decode(frame, max_bytes=len(frame) - 1)


def test_the_number_of_parts_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = wire.encode({"x": [torch.ones(1) for _ in range(4)]})
    monkeypatch.setattr(wire, "MAX_LEAVES", 5)
    assert wire.decode(frame)
    monkeypatch.setattr(wire, "MAX_LEAVES", 4)
    with pytest.raises(WireError, match="too many parts"):
        wire.decode(frame)


STRANGERS = {
    "an object": object(),
    "a tuple": (1, 2),
    "a set": {1},
    "bytes": b"abc",
    "an array": np.ones(2),
    "a number of numpy": np.float32(1),
    "a complex number": 1j,
    "a function": len,
    "an integer of 64 bits and one": 2**63,
    "another": -(2**63) - 1,
    "complex numbers": torch.ones(2, dtype=torch.cfloat),
    "a sparse tensor": torch.eye(2).to_sparse(),
    "a tensor without data": torch.ones(2, device="meta"),
    "an exotic dtype": torch.ones(2, dtype=torch.uint8).view(torch.float8_e8m0fnu),
}


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("measure", [wire.encode, wire.frame_size])
def test_a_stranger_is_refused_by_its_path(stranger: str, measure: Any) -> None:
    with pytest.raises(WireError, match=r"payload at deep\.0\.here is "):
        measure({"fine": 1, "deep": [{"here": STRANGERS[stranger]}]})


@pytest.mark.parametrize("key", [1, "", None, ("a",), b"a"])
def test_a_key_is_a_name(key: Any) -> None:
    with pytest.raises(WireError, match=r"payload at a has the key .*; use a name"):
        wire.encode({"a": {key: 1}})


def test_half_a_character_is_refused() -> None:
    with pytest.raises(WireError, match="not valid Unicode"):
        wire.encode({"a": "\ud800"})


def test_a_digest_is_of_the_values_whatever_their_order() -> None:
    one = {"a": torch.ones(2), "b": torch.zeros(2)}
    assert wire.digest(one) == wire.digest({"b": torch.zeros(2), "a": torch.ones(2)})
    assert len(wire.digest(one)) == 16
    others = [{**one, "b": torch.ones(2)}, {"a": one["a"]}, {"a": one["b"], "b": one["a"]}]
    assert wire.digest(one) not in [wire.digest(other) for other in others]
