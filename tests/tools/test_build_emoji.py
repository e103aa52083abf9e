"""The tool that makes the bundled emoji set, and that what is bundled is what it makes."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from motet.data.emoji import FOLDER

TOOL = Path(__file__).resolve().parents[2] / "tools" / "build_emoji.py"
FILES = ("emoji-pictures.parquet", "emoji-texts.parquet")


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_emoji", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_bundled_files_are_those_that_the_tool_makes(tool: ModuleType) -> None:
    digests = {n: hashlib.sha256((FOLDER / n).read_bytes()).hexdigest() for n in FILES}
    assert digests == tool.SHA256
    assert sum((FOLDER / name).stat().st_size for name in FILES) <= 12 * 2**20


def test_authors_and_licences_are_named() -> None:
    notice = (TOOL.parents[1] / "NOTICE").read_text(encoding="utf-8")
    for word in ("Google", "Twitter", "Emoji One", "Microsoft", "Miles Johnson", "emojibase-data"):
        assert word in notice
    for licence in ("Apache License", "Creative Commons Attribution 4.0", "MIT License"):
        assert licence in notice


def entry(code: str, label: str, group: int, order: int) -> dict[str, Any]:
    return {"hexcode": code, "label": label, "group": group, "subgroup": 0, "order": order}


@pytest.fixture
def packages(tmp_path: Path, tool: ModuleType) -> Path:
    """Packs with a square at the left of a view box that does not begin at 0, and its mirror."""
    root = tmp_path / "node_modules"
    files: dict[str, Any] = {
        "emojibase-data/meta/groups.json": {"groups": {"0": "shapes"}, "subgroups": {"0": "all"}},
        "emojibase-data/en/data.json": [
            entry("1F3F4-E0067", "a flag", 9, 9),
            entry("1F3FB", "a skin tone", 2, 8),
            entry("2B1B-FE0F", "Right’s Square", 0, 2),
            {**entry("2B1C", "left square", 0, 1), "tags": ["left square", "box"]},
        ],
        "emojibase-data/en/shortcodes/some.json": {"2B1C": ["left_one", "l"]},
    }
    body = '<rect x="8" y="8" width="8" height="16" fill="#f00"/>'
    for style in tool.STYLES:
        files[f"@iconify-json/{style}/icons.json"] = {
            "width": 1,
            "height": 1,
            "icons": {"left-one": {"body": body, "left": 8, "top": 8, "width": 16, "height": 16}},
            "aliases": {"mirror": {"parent": "left-one", "hFlip": True}},
        }
        files[f"@iconify-json/{style}/chars.json"] = {"2b1b": "mirror"}
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    return root


def test_the_tool_leaves_out_flags_and_components(tool: ModuleType, packages: Path) -> None:
    assert list(tool.read_concepts(packages)) == ["2B1C", "2B1B-FE0F"]


def test_the_tool_finds_icons_by_code_and_by_name(tool: ModuleType, packages: Path) -> None:
    pack = tool.load_pack(packages, "noto")
    assert tool.find_icon(pack, "2B1B-FE0F", ["left one"]) == "mirror"
    assert tool.find_icon(pack, "2B1C", ["no such", "left_one"]) == "left-one"
    assert tool.find_icon(pack, "2B1C", ["no such"]) is None
    assert tool.slug("Woman’s Hat: São Tomé") == "womans-hat-sao-tome"


def test_the_tool_draws_the_same_bytes_twice(
    tool: ModuleType, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("resvg_py")
    for out in ("one", "two"):
        monkeypatch.setattr("sys.argv", ["build", str(packages), str(tmp_path / out)])
        tool.main()
    one, two = ({n: (tmp_path / out / n).read_bytes() for n in FILES} for out in ("one", "two"))
    assert one == two
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(FILES)
    rows = pq.read_table(tmp_path / "one" / FILES[0]).to_pylist()
    assert [(row["concept"], row["style"]) for row in rows] == [
        (code, style) for code in ("2B1C", "2B1B-FE0F") for style in range(5)
    ]
    left = np.asarray(Image.open(io.BytesIO(rows[0]["picture"])))
    assert left.shape == (64, 64, 3)
    assert (left[:, :32] == (255, 0, 0)).all()
    assert (left[:, 32:] == 255).all()
    assert (np.asarray(Image.open(io.BytesIO(rows[5]["picture"]))) == left[:, ::-1]).all()
    texts = pq.read_table(tmp_path / "one" / FILES[1]).to_pylist()
    assert texts[0] == {
        "concept": "2B1C",
        "language": "en",
        "label": "left square",
        "keywords": ["box"],
    }
