"""Frames on a stream socket: eight bytes that say how long, then that many bytes.

What a frame holds is said in ``motet.agent.messages``. This file and ``motet.agent.client`` import
nothing but the standard library, so that a courier can pass frames on without loading torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Changes whenever messages change: two ends of different protocols do not talk.
PROTOCOL = 1
MAX_FRAME = 4 * 2**30
# Seconds in which the rest of a frame must come once it has begun.
PATIENCE = 60.0
# What the smallest of the usual systems take, without the zero at the end.
MAX_PATH = 103

_HEAD = struct.Struct(">Q")
_CHUNK = 2**20


class ProtocolError(ConnectionError):
    """The other end sent what is no frame, or went away inside one."""


class OversizeError(ProtocolError):
    """A frame announces more bytes than are taken; none of them was read."""


def send_frame(connection: socket.socket, frame: bytes) -> None:
    """Sends one frame, whole; raises OSError when the other end is gone."""
    connection.sendall(_HEAD.pack(len(frame)))
    connection.sendall(frame)


def receive_frame(
    connection: socket.socket, limit: int = MAX_FRAME, patience: float | None = PATIENCE
) -> bytes | None:
    """The next frame, or None when the other end has closed between two frames.

    Waits as long as the connection's timeout says for the first byte, and ``patience`` seconds for
    each further part. Raises OversizeError before anything of the frame is read, ProtocolError for
    one that breaks off.
    """
    first = connection.recv(_HEAD.size)
    if not first:
        return None
    waited = connection.gettimeout()
    connection.settimeout(patience)
    try:
        head = first + _exactly(connection, _HEAD.size - len(first))
        (size,) = _HEAD.unpack(head)
        if size > limit:
            raise OversizeError(f"a frame of {size:,} bytes is over the limit of {limit:,}")
        return bytes(_exactly(connection, size))
    except TimeoutError:
        raise ProtocolError(f"the rest of a frame did not come within {patience} s") from None
    finally:
        connection.settimeout(waited)


def _exactly(connection: socket.socket, size: int) -> bytearray:
    # Grows with what comes, so that a size that is claimed takes no memory.
    found = bytearray()
    while len(found) < size:
        part = connection.recv(min(size - len(found), _CHUNK))
        if not part:
            raise ProtocolError(f"a frame broke off after {len(found):,} of {size:,} bytes")
        found += part
    return found


def address(path: Path | str) -> str:
    """The path of a socket; raises ValueError for one that is too long for the system."""
    text = os.fspath(path)
    size = len(os.fsencode(text))
    if size > MAX_PATH:
        raise ValueError(
            f"the path of a socket has {size} bytes and may have {MAX_PATH}: {text}; write a "
            "shorter one"
        )
    return text


def recipe_digest(plain: Mapping[str, Any]) -> str:
    """A hash of the plain values of a recipe, equal where they ask for the same run: 16 digits.

    Title and engine are left out: hub and sites may differ in them.
    """
    asked = {key: value for key, value in plain.items() if key not in ("title", "engine")}
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
