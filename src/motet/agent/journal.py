"""A site's own record of everything that left it: what, when, how much; never the values."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor

from motet.core.errors import StoreError
from motet.core.guard import OWN
from motet.core.kinds import Kind
from motet.core.messages import Request, bytes_by_kind
from motet.core.tree import Tree, leaves

MAX_SHAPES = 256


class Journal:
    """One line of JSON for every reply, on disk before the reply is on the wire.

    Raises StoreError where it cannot be written: then nothing leaves.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_torn_line(path)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise _unwritten(path, error) from error

    def left(
        self,
        request: Request,
        value: Tree,
        sends: Mapping[str, Kind],
        frame: bytes,
        *,
        again: bool = False,
    ) -> None:
        """Notes a reply that is about to leave; ``again`` for one that was asked for anew."""
        found = {
            ".".join(path): [str(leaf.dtype).removeprefix("torch."), *leaf.shape]
            for path, leaf in leaves(value)
            if isinstance(leaf, Tensor)
        }
        shapes: dict[str, Any] = dict(list(found.items())[:MAX_SHAPES])
        if len(found) > MAX_SHAPES:
            shapes["..."] = len(found) - MAX_SHAPES
        # What guards say to the hub are keys and shares of masks.
        control = {key: Kind.CONTROL for key in value if request.op.startswith(OWN)}
        self._append(
            {
                **_about("left", request),
                "kinds": bytes_by_kind(value, {**control, **sends}),
                "keys": sorted(value),
                "shapes": shapes,
                "bytes": len(frame),
                "hash": hashlib.blake2b(frame, digest_size=16).hexdigest(),
                **({"again": True} if again else {}),
            }
        )

    def kept_back(self, request: Request, reason: str) -> None:
        """Notes a question that the site's policy refuses."""
        self._append({**_about("refused", request), "reason": reason})

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _append(self, line: Mapping[str, Any]) -> None:
        """Writes the whole line or nothing, and waits until it is on the disk."""
        data = (json.dumps(line) + "\n").encode()
        with self._lock:
            size = os.fstat(self._file).st_size
            try:
                if os.write(self._file, data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._file)
            except OSError as error:
                with suppress(OSError):
                    os.truncate(self._file, size)
                raise _unwritten(self.path, error) from error


def _unwritten(path: Path, error: OSError) -> StoreError:
    reason = error.strerror or error
    return StoreError(f"cannot write the journal {path}, so that nothing may leave: {reason}")


def _about(what: str, request: Request) -> dict[str, Any]:
    return {
        "what": what,
        "time": round(time.time(), 3),
        "site": request.site,
        "round": request.round,
        "op": request.op,
        "tag": request.tag,
    }


def _drop_torn_line(path: Path) -> None:
    """A killed agent may leave half a line at the end: cut it, so that the next one stands."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        at = end
        # Backwards in parts, since a journal grows for as long as the site takes part.
        while at > 0:
            start = max(at - 4096, 0)
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            if found >= 0:
                at = start + found + 1
                break
            at = start
        if at < end:
            file.truncate(at)
            os.fsync(file.fileno())


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All lines of a journal in order; none where there is no journal yet."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
