"""The bundled emoji set: pictures in five drawing styles, names and keywords in many languages.

Pictures: Noto and Noto v1 (Apache-2.0), Twemoji and EmojiOne (CC-BY-4.0), Fluent Emoji Flat (MIT).
Texts: emojibase-data (MIT). The NOTICE file names their authors.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from motet.core.batch import Dataset
from motet.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pyarrow

FOLDER = Path(__file__).parent / "bundled"


def load_emoji(
    *,
    size: int = 64,
    styles: Sequence[str] | None = None,
    languages: Sequence[str] = ("en",),
    must_have: str | None = "noto",
) -> Dataset:
    """Emoji as image-text pairs: a row is one picture with its text in one language.

    size: edge of the pictures in pixels, at most 64. styles: drawing styles, None for all.
    languages: codes such as "en" or "de"; several give a row for each. must_have: only concepts
    that this style draws; None for all concepts.

    Columns: image uint8 [n, 3, size, size], text "label, keyword, ...". Labels are the subgroups;
    about has concept, style, language, group and subgroup. Raises ConfigError for a name that is
    not there, DataError when the bundled files are damaged.
    """
    if not 8 <= size <= 64:
        raise ConfigError(f"size={size}: pictures can be had from 8 to 64 pixels")
    facts = _facts()
    chosen = _known(styles or facts["styles"], facts["styles"], "styles")
    spoken = _known(languages, facts["languages"], "languages")
    if must_have is not None:
        _known([must_have], facts["styles"], "must_have")
    pictures = _pictures(size)
    keep = _keep(pictures, facts["styles"], chosen, must_have)
    return _join(pictures, keep, spoken, facts)


def _keep(
    pictures: Mapping[str, Any], styles: Sequence[str], chosen: Sequence[str], must: str | None
) -> list[int]:
    """Positions of the pictures in the chosen styles, of concepts that ``must`` draws."""
    wanted = {styles.index(name) for name in chosen}
    style, concept = pictures["style"], pictures["concept"]
    have = set(concept)
    if must is not None:
        number = styles.index(must)
        have = {code for code, drawn in zip(concept, style, strict=True) if drawn == number}
    return [i for i in range(len(style)) if style[i] in wanted and concept[i] in have]


def _join(
    pictures: Mapping[str, Any], keep: list[int], spoken: Sequence[str], facts: Mapping[str, Any]
) -> Dataset:
    texts = _texts()
    languages, styles = facts["languages"], facts["styles"]
    rows: list[tuple[int, str]] = [
        (i, language)
        for i in keep
        for language in spoken
        if (pictures["concept"][i], language) in texts
    ]
    at = torch.tensor([i for i, _ in rows], dtype=torch.int64)
    codes = pictures["concept"]
    numbers = {code: number for number, code in enumerate(dict.fromkeys(codes))}
    images: Tensor = pictures["image"]
    subgroup = torch.tensor(pictures["subgroup"], dtype=torch.int64)[at]
    # A row's id does not depend on what else was selected: the place of the picture among all
    # bundled ones and of the language among all of them.
    ids = [i * len(languages) + languages.index(language) for i, language in rows]
    return Dataset(
        columns={
            "image": images[at],
            "text": tuple(texts[codes[i], language] for i, language in rows),
        },
        labels=subgroup,
        rows=torch.tensor(ids, dtype=torch.int64),
        classes=tuple(facts["subgroups"]),
        about={
            "concept": torch.tensor([numbers[codes[i]] for i, _ in rows], dtype=torch.int64),
            "style": tuple(styles[pictures["style"][i]] for i, _ in rows),
            "language": tuple(language for _, language in rows),
            "group": torch.tensor(pictures["group"], dtype=torch.int64)[at],
            "subgroup": subgroup,
        },
    )


def _known(given: Sequence[str], known: Sequence[str], field: str) -> list[str]:
    for name in given:
        if name not in known:
            raise ConfigError(f"{field}: there is no {name!r}; write some of {', '.join(known)}")
    if not given:
        raise ConfigError(f"{field}: name at least one of {', '.join(known)}")
    return list(dict.fromkeys(given))


@lru_cache(maxsize=1)
def _facts() -> Mapping[str, Any]:
    """Styles, languages, groups and subgroups, from the file's own schema."""
    facts: dict[str, Any] = json.loads(_table("pictures").schema.metadata[b"motet"])
    return facts


@lru_cache(maxsize=2)
def _table(name: str) -> pyarrow.Table:
    import pyarrow
    import pyarrow.parquet

    path = FOLDER / f"emoji-{name}.parquet"
    try:
        return pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(
            f"the bundled file {path.name} is missing or damaged ({error}); install motet again"
        ) from None


@lru_cache(maxsize=2)
def _pictures(size: int) -> Mapping[str, Any]:
    """The columns of all pictures, drawn at this size: image uint8 [n, 3, size, size]."""
    import numpy
    from PIL import Image

    table = _table("pictures")
    frames = numpy.empty((table.num_rows, size, size, 3), dtype=numpy.uint8)
    for i, picture in enumerate(table["picture"].to_pylist()):
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BOX)
        frames[i] = numpy.asarray(image)
    columns = {name: table[name].to_pylist() for name in table.column_names if name != "picture"}
    return {**columns, "image": torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()}


@lru_cache(maxsize=1)
def _texts() -> Mapping[tuple[str, str], str]:
    """(concept, language) -> "label, keyword, keyword ..."."""
    table = _table("texts")
    return {
        (row["concept"], row["language"]): ", ".join([row["label"], *row["keywords"]])
        for row in table.to_pylist()
    }
