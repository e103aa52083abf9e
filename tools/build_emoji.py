"""Builds the bundled emoji set from openly licensed npm packages.

    npm install @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5 @iconify-json/twemoji@1.2.5 \
        @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/emojione@1.2.3 emojibase-data@17.0.0
    pip install resvg_py==0.5.0 pillow==13.0.0 pyarrow==26.0.1
    python tools/build_emoji.py node_modules src/motet/data/bundled

Writes emoji-pictures.parquet (one row per concept and style: 64 x 64 RGB on white, lossless WebP)
and emoji-texts.parquet (one row per concept and language: label and keywords). Skin tones, flags
and emoji components are left out. These versions give the same bytes every time, SHA256 below; it
takes about five minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

STYLES = ("noto", "noto-v1", "twemoji", "fluent-emoji-flat", "emojione")
SIZE = 64
COMPONENT, FLAGS = 2, 9
VARIATION_SELECTOR = "fe0f"
# Packs without code points, where a name leads to another emoji: the right icon, or None where the
# pack has no drawing of its own.
CORRECTIONS: dict[tuple[str, str], str | None] = {
    ("noto-v1", "1F635"): "dizzy-face",
    ("noto-v1", "1F997"): None,
    ("noto-v1", "1F4C6"): None,
    ("noto-v1", "1F199"): "up-text-button",
    ("noto-v1", "0023-FE0F-20E3"): "keycap-pound",
    ("noto-v1", "002A-FE0F-20E3"): "keycap-asterisk",
    ("emojione", "1F635"): "dizzy-face",
    ("emojione", "1F997"): None,
    ("emojione", "1F199"): "up-text-button",
    ("emojione", "0023-FE0F-20E3"): "keycap-pound",
}
SHA256 = {
    "emoji-pictures.parquet": "25f7f7749aedba638234583d52d5b4eb829aef6e65225c94e6119f44624641ac",
    "emoji-texts.parquet": "9e28ee652c49981b178d04c114d00203d683b31e6e5b547e5eb1f9409e5ca812",
}


def main() -> None:
    """Reads the packages, writes the two files and says what is in them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", type=Path, help="the node_modules folder")
    parser.add_argument("out", type=Path, help="the folder of the two parquet files")
    options = parser.parse_args()
    concepts = read_concepts(options.packages)
    pictures = draw_all(options.packages, concepts)
    kept = sorted({row["concept"] for row in pictures}, key=lambda code: concepts[code]["order"])
    texts = read_texts(options.packages, kept)
    groups = json.loads((options.packages / "emojibase-data/meta/groups.json").read_text())
    about = {
        "size": SIZE,
        "styles": list(STYLES),
        "languages": sorted({row["language"] for row in texts}),
        "groups": list(groups["groups"].values()),
        "subgroups": list(groups["subgroups"].values()),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write(options.out / "emoji-pictures.parquet", pictures, about)
    write(options.out / "emoji-texts.parquet", texts, about)
    print(f"{len(pictures)} pictures of {len(kept)} concepts, {len(texts)} texts")
    for name, wanted in SHA256.items():
        digest = hashlib.sha256((options.out / name).read_bytes()).hexdigest()
        print(f"{name}: {digest}, {'as' if digest == wanted else 'NOT as'} it was published")


def read_concepts(packages: Path) -> dict[str, dict[str, Any]]:
    """Hexcode -> emojibase entry, without components and flags, in Unicode's order."""
    path = packages / "emojibase-data/en/data.json"
    entries = [entry for entry in json.loads(path.read_text()) if "group" in entry]
    wanted = [entry for entry in entries if entry["group"] not in (COMPONENT, FLAGS)]
    shortcodes: dict[str, list[str]] = {}
    for file in sorted((packages / "emojibase-data/en/shortcodes").glob("*.json")):
        for code, names in json.loads(file.read_text()).items():
            listed = [names] if isinstance(names, str) else names
            shortcodes.setdefault(code, []).extend(listed)
    for entry in wanted:
        entry["names"] = [entry["label"], *shortcodes.get(entry["hexcode"], [])]
    return {entry["hexcode"]: entry for entry in sorted(wanted, key=lambda entry: entry["order"])}


def draw_all(packages: Path, concepts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per concept and style that draws it."""
    rows = []
    for code, entry in concepts.items():
        for number, style in enumerate(STYLES):
            pack = load_pack(packages, style)
            icon = (
                CORRECTIONS[style, code]
                if (style, code) in CORRECTIONS
                else find_icon(pack, code, entry["names"])
            )
            if icon is not None:
                rows.append(
                    {
                        "concept": code,
                        "order": entry["order"],
                        "group": entry["group"],
                        "subgroup": entry["subgroup"],
                        "style": number,
                        "picture": draw(pack["icons"], icon),
                    }
                )
    return rows


_PACKS: dict[str, dict[str, Any]] = {}


def load_pack(packages: Path, style: str) -> dict[str, Any]:
    """A pack's icons and its map from code points to names, normalised."""
    if style not in _PACKS:
        folder = packages / "@iconify-json" / style
        chars = json.loads((folder / "chars.json").read_text())
        by_code = {normal_code(code): name for code, name in chars.items()}
        _PACKS[style] = {
            "icons": json.loads((folder / "icons.json").read_text()),
            "by_code": by_code,
        }
    return _PACKS[style]


def find_icon(pack: dict[str, Any], code: str, names: list[str]) -> str | None:
    """The pack's name for a concept: by code points, else by label and shortcodes."""
    candidates = [pack["by_code"].get(normal_code(code)), *map(slug, names)]
    icons = pack["icons"]
    for name in candidates:
        if name in icons["icons"] or name in icons.get("aliases", {}):
            return name
    return None


def normal_code(code: str) -> str:
    """Code points in lower case, without variation selectors."""
    parts = code.lower().split("-")
    return "-".join(part for part in parts if part != VARIATION_SELECTOR)


def slug(name: str) -> str:
    """A label as the packs write it: "Man's Shoe" -> "mans-shoe"."""
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"['’.]", "", plain)).strip("-")


def draw(icons: dict[str, Any], name: str) -> bytes:
    """The icon on white at 64 x 64, as lossless WebP."""
    # Only who draws needs the renderer: the rest of this file is tested without it.
    import resvg_py

    flip: list[str] = []
    icon: dict[str, Any] = {}
    while name in icons.get("aliases", {}) and name not in icons["icons"]:
        alias = icons["aliases"][name]
        icon = {**alias, **icon}
        flip += [key for key in ("hFlip", "vFlip") if alias.get(key)]
        name = alias["parent"]
    icon = {**icons["icons"][name], **{k: v for k, v in icon.items() if k != "parent"}}
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{left} {top} {width} {height}">'
        f"{icon['body']}</svg>"
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    for key in flip:
        way = Image.Transpose.FLIP_LEFT_RIGHT if key == "hFlip" else Image.Transpose.FLIP_TOP_BOTTOM
        picture = picture.transpose(way)
    out = io.BytesIO()
    picture.save(out, "WEBP", lossless=True, quality=100, method=6)
    return out.getvalue()


def read_texts(packages: Path, kept: list[str]) -> list[dict[str, Any]]:
    """One row per concept and language: label and keywords, as emojibase has them."""
    rows = []
    for folder in sorted((packages / "emojibase-data").iterdir()):
        path = folder / "data.json"
        if not path.is_file():
            continue
        entries = {entry["hexcode"]: entry for entry in json.loads(path.read_text())}
        for code in kept:
            entry = entries.get(code)
            if entry is not None and entry.get("label"):
                tags = [tag for tag in entry.get("tags", []) if tag != entry["label"]]
                rows.append(
                    {
                        "concept": code,
                        "language": folder.name,
                        "label": entry["label"],
                        "keywords": tags,
                    }
                )
    return rows


def write(path: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """One parquet file with the set's facts in its schema."""
    table = pa.Table.from_pylist(rows)
    table = table.replace_schema_metadata({"motet": json.dumps(about)})
    unfinished = path.with_suffix(".tmp")
    pq.write_table(table, unfinished, compression="zstd", compression_level=19)
    os.replace(unfinished, path)


if __name__ == "__main__":
    main()
