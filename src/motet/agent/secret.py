"""A site's secret on its disk: made once, read by its owner, and sent to nobody."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from motet.core.errors import ConfigError, StoreError
from motet.core.secret import BYTES, Secret

SECRET = "secret"


def own_secret(folder: Path) -> Secret:
    """The secret of the site whose state is in this folder; a new one where there is none.

    Raises ConfigError when others may read it, StoreError when it cannot be read or written.
    """
    path = folder / SECRET
    try:
        if not path.exists():
            _write(path, secrets.token_bytes(BYTES))
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} can be read by others, who could take noise off: chmod 600")
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot keep a secret in {path}: {error.strerror or error}") from error
    if len(data) != BYTES:
        raise StoreError(
            f"{path} has {len(data)} bytes in place of {BYTES}; bring it back from a copy, or "
            "remove it, and the noise of the rest of the run is another"
        )
    return Secret(data)


def _write(path: Path, data: bytes) -> None:
    """In one piece and on the disk, or not at all; never readable for others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with suppress(FileNotFoundError):
        part.unlink()
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(file, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    part.rename(path)
    place = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(place)
    finally:
        os.close(place)
