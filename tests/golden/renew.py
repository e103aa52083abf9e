"""Writes golden.json anew: ``python -m tests.golden.renew [METHOD ...]``, from the root.

Without names, for all methods. Do this when results are meant to change, look at what
``git diff tests/golden`` shows, and say in the commit why.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import torch
from tests.golden.runs import CASES, GOLDEN, record


def renew(names: Sequence[str]) -> None:
    """Runs these cases, all when there are none, and keeps the others as they are."""
    torch.set_num_threads(1)
    old = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    kept = {name: old[name] for name in CASES if name in old}
    kept |= {name: record(CASES[name]) for name in names or CASES}
    ordered = {name: kept[name] for name in CASES if name in kept}
    lines = [f"{json.dumps(name)}: {_entry(entry)}" for name, entry in ordered.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _entry(entry: dict[str, object]) -> str:
    parts = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in entry.items()]
    return "{\n" + ",\n".join(parts) + "\n}"


if __name__ == "__main__":
    renew(sys.argv[1:])
