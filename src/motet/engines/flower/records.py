"""Questions and replies as Flower's records, without torch: frames travel as they are.

A question is a small text, a frame that all sites of one ``ask`` share, and a frame of a site's
own. Flower names objects by their content, so that the shared one is uploaded once. Frames are
passed on as bytes, never as numbers: every dtype of Motet's wire goes through to the bit.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

# The kind of message, and how Flower's ClientApp calls what answers it.
ACTION = "ask"
MESSAGE_TYPE = f"query.{ACTION}"
# What an Array of ours says in place of numpy's name: its bytes are one frame.
FRAME = "motet.frame"

_SKELETON = "skeleton"
_SIZE = struct.Struct("<Q")
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32}
_BITS |= {"F16": 16, "BF16": 16, "I16": 16, "U16": 16}


class RecordError(ValueError):
    """Records or frames that are none of ours."""


@dataclass(frozen=True)
class _Part:
    """One tensor of a frame: what its header says of it, and its bytes."""

    dtype: str
    shape: list[int]
    data: memoryview


def framed(frame: bytes) -> Array:
    """A frame as one object of Flower's; the same one may stand in several messages."""
    return Array(dtype="uint8", shape=(len(frame),), stype=FRAME, data=frame)


def question(head: Mapping[str, Any], frames: Mapping[str, Array]) -> RecordDict:
    """A question's records; ``head`` is its part without tensors, ``frames`` what comes with it."""
    records = RecordDict({"question": ConfigRecord({"head": json.dumps(head)})})
    if frames:
        records["frames"] = ArrayRecord(dict(frames))
    return records


def question_frame(records: RecordDict) -> bytes:
    """The frame that an agent reads, from a question's records."""
    try:
        head = json.loads(str(records.config_records["question"]["head"]))
    except (KeyError, ValueError):
        raise RecordError("the message holds no question of Motet") from None
    names = list(records.array_records.get("frames", {}))
    return splice(head, {name: _frame(records, "frames", name) for name in names})


def reply(frame: bytes) -> RecordDict:
    """An agent's reply as records."""
    return RecordDict({"reply": ArrayRecord({"frame": framed(frame)})})


def undelivered(reason: str) -> RecordDict:
    """Records that say why there is no reply: nobody answered, and the question may be repeated."""
    return RecordDict({"undelivered": ConfigRecord({"reason": reason})})


def reply_frame(records: RecordDict) -> bytes:
    """The agent's frame from a reply's records; raises RecordError with the reason for none."""
    if "undelivered" in records.config_records:
        raise RecordError(str(records.config_records["undelivered"].get("reason", "no reason")))
    return _frame(records, "reply", "frame")


def _frame(records: RecordDict, record: str, name: str) -> bytes:
    try:
        array = records.array_records[record][name]
    except KeyError:
        raise RecordError(f"the message has no {record} {name!r}") from None
    if array.stype != FRAME:
        raise RecordError(f"{record} {name} is {array.stype!r:.40}, and no frame of Motet")
    return array.data


def splice(head: Mapping[str, Any], frames: Mapping[str, bytes]) -> bytes:
    """One frame whose tree is ``head`` and, under further keys, the trees of these frames.

    Works on the bytes, so that whoever passes frames on needs no torch. Raises RecordError for
    what is no frame.
    """
    tree: dict[str, Any] = dict(head)
    parts: list[_Part] = []
    for name, frame in frames.items():
        skeleton, found = _open(frame, name)
        tree[name] = _renumbered(skeleton, len(parts), len(found), name)
        parts += found
    text = json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()
    named = [(str(number), part) for number, part in enumerate(parts)]
    named.append((_SKELETON, _Part("U8", [len(text)], memoryview(text))))
    # Wide ones first, so that every tensor begins at a multiple of its own width.
    named.sort(key=lambda item: -_BITS.get(item[1].dtype, 8))
    return b"".join(_file(named))


def _file(named: list[tuple[str, _Part]]) -> Iterator[bytes | memoryview]:
    header: dict[str, Any] = {}
    at = 0
    for name, part in named:
        end = at + len(part.data)
        header[name] = {"dtype": part.dtype, "shape": part.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield _SIZE.pack(len(text))
    yield text
    for _, part in named:
        yield part.data


def _open(frame: bytes, name: str) -> tuple[Any, list[_Part]]:
    """Skeleton and numbered tensors of a frame."""
    try:
        (size,) = _SIZE.unpack_from(frame)
        header = json.loads(frame[8 : 8 + size])
        data = memoryview(frame)[8 + size :]
        if sum(end - start for start, end in _spans(header)) != len(data):
            raise ValueError
        found = {
            key: _Part(about["dtype"], about["shape"], data[slice(*about["data_offsets"])])
            for key, about in header.items()
        }
        skeleton = json.loads(bytes(found.pop(_SKELETON).data))
        return skeleton, [found[str(number)] for number in range(len(found))]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise RecordError(f"{name} holds {len(frame):,} bytes that are no frame") from None


def _spans(header: Any) -> list[list[int]]:
    return [about["data_offsets"] for about in header.values()]


def _renumbered(node: Any, first: int, count: int, name: str) -> Any:
    """The skeleton with its marks counted from ``first``."""
    if isinstance(node, dict):
        if set(node) == {""}:
            number = node[""]
            if type(number) is not int or not 0 <= number < count:
                raise RecordError(f"{name} names a tensor that it does not hold")
            return {"": first + number}
        return {key: _renumbered(value, first, count, name) for key, value in node.items()}
    if isinstance(node, list):
        return [_renumbered(value, first, count, name) for value in node]
    return node
