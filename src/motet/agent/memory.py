"""What an agent still knows after it was killed: its site's state, and the last answer."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from motet.core import wire
from motet.core.errors import StoreError, WireError
from motet.core.store import write_atomic
from motet.core.tree import Tree

# Tags that are remembered as answered; hubs ask one question at a time.
MAX_DONE = 4096
DROP_EVERY = 10_000
NONCES = "nonces"


class Memory:
    """The last reply with the state that it left behind, in one piece.

    The state is in a file of its own, which is written when it changes; the record names it and is
    moved into place last. So a killed agent has answered a question, or it never heard of it. Every
    record has a number, and the highest counts: to move one over another can cost milliseconds.
    folder: None keeps all in memory alone. lasting: whether it must outlive a power cut too.

    tag, frame: the last question answered, and the bytes of the reply. done: tags answered since
    the last ``restored``. since: when that was, by the hub's clock. left: bytes that left so far.
    """

    def __init__(self, folder: Path | None, *, lasting: bool = True) -> None:
        self.folder = folder
        self.lasting = lasting
        self.tag = ""
        self.frame = b""
        self.done: deque[str] = deque(maxlen=MAX_DONE)
        self.since = 0.0
        self.left = 0
        self.state: Tree | None = None
        self._records = self._states = 0
        self._held = 0
        if folder is not None:
            self._load(folder)

    def _load(self, folder: Path) -> None:
        records = sorted(folder.glob("answered-*.safetensors"))
        if not records:
            return
        record = records[-1]
        try:
            found = wire.decode(record.read_bytes())
            about: dict[str, Any] = found["about"]
            self.tag, self.since, self.left = about["tag"], about["since"], about["left"]
            self.done.extend(about["done"].splitlines())
            self.frame = found["frame"].numpy().tobytes()
            self._records, self._states = about["record"], about["state"]
            self._held = self._states
            kept = wire.decode(self._path("kept", self._held).read_bytes())
            self.state = {"kept": kept, "changed": about["changed"]}
        except (OSError, WireError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"cannot read {record}: {error}") from error
        ours = {record, self._path("kept", self._held)}
        for pattern in ("answered-*.safetensors", "kept-*.safetensors", ".*.part"):
            for path in set(folder.glob(pattern)) - ours:
                path.unlink()

    def answer(self, tag: str) -> bytes | None:
        """The reply to a question that is asked again; None for another one."""
        return self.frame if self.tag and tag == self.tag else None

    def answered(self, tag: str, frame: bytes, state: Tree, *, changed: bool) -> None:
        """A question was answered, which left this state behind.

        changed: whether the state is another than before.
        """
        before = (self.tag, self.frame, self.left)
        self.tag, self.frame = tag, frame
        self.left += len(frame)
        self.done.append(tag)
        try:
            self._save(state, changed)
        except BaseException:
            self.tag, self.frame, self.left = before
            self.done.pop()
            raise

    def saved(self, state: Tree) -> None:
        """The state went into a checkpoint."""
        if self.state is not None:
            self._save(state, False)

    def restored(self, state: Tree, since: float) -> None:
        """The run begins anew, or goes on from a checkpoint; what came after it is forgotten."""
        before = (self.tag, self.frame, self.since, self.done.copy())
        self.tag, self.frame, self.since = "", b"", since
        self.done.clear()
        try:
            self._save(state, True)
        except BaseException:
            self.tag, self.frame, self.since, self.done = before
            raise

    def again(self, tag: str, frame: bytes) -> None:
        """Remembers a reply that left no state behind until this process ends, and no longer."""
        self.tag, self.frame = tag, frame
        self.left += len(frame)
        self.done.append(tag)

    def _save(self, state: Tree, changed: bool) -> None:
        if self.folder is None:
            self.state = state
            return
        held = self._held
        if changed or not held:
            self._states += 1
            held = self._states
            path = self._path("kept", held)
            write_atomic(path, wire.encode(state["kept"]), lasting=self.lasting)
        about = {
            "record": self._records + 1,
            "tag": self.tag,
            "since": self.since,
            "left": self.left,
            # One text: as a list of thousands it would take longer than all the rest.
            "done": "\n".join(self.done),
            "state": held,
            "changed": bool(state["changed"]),
        }
        frame = torch.frombuffer(bytearray(self.frame or b"\0"), dtype=torch.uint8)
        record = wire.encode({"about": about, "frame": frame[: len(self.frame)]})
        write_atomic(self._path("answered", self._records + 1), record, lasting=self.lasting)
        self._records += 1
        self._path("answered", self._records - 1).unlink(missing_ok=True)
        self.state = state
        old, self._held = self._held, held
        if old != held:
            self._path("kept", old).unlink(missing_ok=True)

    def _path(self, what: str, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{what}-{number:08d}.safetensors"


class Nonces:
    """Sendings that were seen, so that no message counts twice; those too old to count are dropped.

    age: seconds for which a message may count; None takes all, and remembers none.
    """

    def __init__(self, folder: Path | None, age: float | None) -> None:
        self.age = age
        self._path = None if folder is None else folder / NONCES
        self._seen: dict[str, float] = {}
        self._added = 0
        if age is not None and self._path is not None and self._path.exists():
            for line in self._path.read_text("utf-8").splitlines():
                nonce, _, sent = line.partition(" ")
                # A killed agent may leave half a line.
                with suppress(ValueError):
                    self._seen[nonce] = float(sent)
            self._drop_old(age)

    def complaint(self, nonce: str, sent: float) -> str | None:
        """Why a message does not count; None for one that does, which is remembered."""
        if self.age is None:
            return None
        late = time.time() - sent
        if abs(late) > self.age:
            when = f"{late:,.0f} s ago" if late > 0 else f"{-late:,.0f} s from now"
            return (
                f"it was sent {when} by the hub's clock, and {self.age:,.0f} s are allowed; set "
                "the clocks, or raise limits.age"
            )
        if nonce in self._seen:
            return "this very message came before, and its turn is over"
        self._seen[nonce] = sent
        self._added += 1
        if self._added % DROP_EVERY == 0:
            self._drop_old(self.age)
        elif self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"{nonce} {sent!r}\n")
        return None

    def _drop_old(self, age: float) -> None:
        oldest = time.time() - age
        self._seen = {nonce: sent for nonce, sent in self._seen.items() if sent >= oldest}
        if self._path is not None:
            text = "".join(f"{nonce} {sent!r}\n" for nonce, sent in self._seen.items())
            write_atomic(self._path, text.encode())
