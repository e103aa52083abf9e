"""The pages that are written by hand keep up with the code."""

from __future__ import annotations

import re
from pathlib import Path

from motet.methods.registry import METHODS

DOCS = Path(__file__).parents[1] / "docs"


def test_every_method_is_on_the_map_and_no_other() -> None:
    page = (DOCS / "which-method.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"methods/([a-z-]+)\.md", page))
    assert linked == set(METHODS)
