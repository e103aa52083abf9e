"""Environments of the other contenders, with every version pinned: pins/NAME.txt."""

from __future__ import annotations

import subprocess
import sys
import venv
from hashlib import blake2b
from pathlib import Path

HERE = Path(__file__).parent
FOLDER = HERE.parent / ".venv-bench"


def python_of(name: str) -> Path:
    """The interpreter of this environment, which is made when it is not there as pinned.

    Raises RuntimeError with the installer's last line where that fails.
    """
    pins = HERE / "pins" / f"{name}.txt"
    wanted = blake2b(pins.read_bytes() + sys.version.encode(), digest_size=8).hexdigest()
    where = FOLDER / name
    stamp, python = where / "pinned", where / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"Installing {name} into {where.relative_to(HERE.parent)} (some minutes) ...", flush=True)
    venv.create(where, clear=True, with_pip=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-input", "-r", str(pins)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no word of why"])[-1]
        raise RuntimeError(f"{name} cannot be installed: {last}")
    stamp.write_text(wanted)
    return python
