"""Tries every protection under every method, and writes which go together.

    python -m tests.conformance.protections [docs/works-with.md]

Each pair is a small run that ended, or was refused with a reason. The page is made from these runs.
"""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

from tests.conformance.test_methods import CASES, kinds_of, protections, tried

PAGE = Path("docs/works-with.md")
HEADS = {
    "robust": "robust rule",
    "secure sum": "secure sum",
    "central": "privacy: central",
    "local": "privacy: local",
    "rows": "privacy: rows",
    "qsgd": "QSGD",
    "poisoned": "sign-flip attack",
}
# Variants send what their method sends; some methods send nothing.
NAMES = [name for name, case in CASES.items() if " " not in name and kinds_of(case)]


def main() -> None:
    """Runs all pairs and writes the page."""
    lines = ["| method | " + " | ".join(HEADS.values()) + " |", "|---" * (len(HEADS) + 1) + "|"]
    reasons: dict[str, list[str]] = {}
    for name in NAMES:
        cells = []
        for part in protections(CASES[name]):
            result, refusal = tried(CASES[name], part)
            cells.append("yes" if result is not None else "–")
            if result is None:
                reasons.setdefault(_short(refusal), []).append(f"{name} ({HEADS[part]})")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
        sys.stdout.write(f"{lines[-1]}\n")
    why = [f"- {reason}: {', '.join(names)}" for reason, names in sorted(reasons.items())]
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    page.write_text("\n".join([*HEADING, *lines, "", "## Why not", "", *why, ""]), encoding="utf-8")


HEADING = [
    "# What protects which method",
    "",
    "No method has a line of its own for protection. Each cell is a small run under that part of "
    "`protect:` for the kinds that the method sends: it ended, or was refused with the reason "
    f"below. Made by `python -m tests.conformance.protections` on {date.today()}.",
    "",
]


def _short(refusal: str) -> str:
    """The reason without whom it was told of."""
    for mark in ("operation ", "its reply is refused: "):
        if mark in refusal:
            refusal = refusal.split(mark, 1)[1]
            if mark == "operation ":
                refusal = refusal.split(": ", 1)[1]
    words = refusal.split()
    if words and words[0][0].isupper() and not refusal.startswith("protect"):
        words[0] = "the method"
    return " ".join(words)


if __name__ == "__main__":
    main()
