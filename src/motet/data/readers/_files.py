"""Files of the user: found or named in the complaint, read as UTF-8, problems raised or skipped."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from motet.core.errors import DataError

OnError: TypeAlias = Literal["raise", "skip"]

_log = logging.getLogger("motet.data")


@dataclass
class Problems:
    """What to do about a bad row: raise at once, or count it and go on."""

    on_error: OnError
    seen: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        """Raises DataError with this message, or keeps it; a hint names the way out."""
        if self.on_error == "raise":
            raise DataError(f'{message} (on_error: "skip" leaves such rows out)')
        self.seen.append(message)

    def close(self, rows: int, source: Path) -> None:
        """Logs what was left out; DataError when no row is left."""
        if not rows:
            why = f"; {len(self.seen)} were left out, first: {self.seen[0]}" if self.seen else ""
            raise DataError(f"{source} gives no rows{why}")
        if self.seen:
            left = len(self.seen)
            _log.warning("%s: %d problems skipped, first: %s", source, left, self.seen[0])


def existing_file(path: Path, what: str) -> Path:
    """The same path if there is a file; DataError says what it should have been."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; write the path of {what}")
    if not path.is_file():
        raise DataError(f"there is no file {path}; it should be {what}")
    return path


def existing_folder(path: Path, what: str) -> Path:
    """The same path if there is a folder; DataError says what should be in it."""
    if not path.is_dir():
        kind = "is a file" if path.exists() else "does not exist"
        raise DataError(f"{path} {kind}; it should be a folder with {what}")
    return path


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark; DataError for anything else."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file; DataError names file, line and column of the first mistake."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno} is not JSON: {error.msg}"
        ) from None
