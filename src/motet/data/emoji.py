"""The bundled emoji set: pictures in five drawing styles, names and keywords in many languages.

Pictures: Noto and Noto v1 (Apache-2.0), Twemoji and EmojiOne (CC-BY-4.0), Fluent Emoji Flat (MIT).
Texts: emojibase-data (MIT). The NOTICE file names their authors.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

STYLES: tuple[str, ...]
LANGUAGES: tuple[str, ...]
GROUPS: tuple[str, ...]
SUBGROUPS: tuple[str, ...]


def __getattr__(name: str) -> tuple[str, ...]:
    # Only on use: importing this module reads no file.
    if name not in {"STYLES", "LANGUAGES", "GROUPS", "SUBGROUPS"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return tuple(_facts()[name.lower()])


@dataclass(frozen=True)
class Concept:
    """One emoji: its code points ("1F600"), English label, group, subgroup, and who draws it."""

    code: str
    label: str
    group: str
    subgroup: str
    styles: tuple[str, ...]


def load_emoji(
    *,
    size: int = 64,
    styles: Sequence[str] | None = None,
    languages: Sequence[str] = ("en",),
    exclude_groups: Sequence[str] = (),
    must_have: str | None = "noto",
) -> Dataset:
    """Emoji as image-text pairs: a row is one picture with its text in one language.

    size: edge of the pictures in pixels, at most 64. styles: drawing styles, None for all.
    languages: codes such as "en" or "de"; several give a row for each. exclude_groups: groups to
    leave out, such as "symbols". must_have: only concepts that this style draws; None for all
    concepts.

    Columns: image uint8 [n, 3, size, size], text "label, keyword, ...". Labels are the subgroups;
    about has concept (its place in ``concepts()``), style, language, group (its place in GROUPS)
    and subgroup. A row's id is the same in every selection. Raises ConfigError for a name that is
    not there, DataError when the bundled files are damaged.
    """
    if not 8 <= size <= 64:
        raise ConfigError(f"size={size}: pictures can be had from 8 to 64 pixels")
    facts = _facts()
    chosen = _known(facts["styles"] if styles is None else styles, facts["styles"], "styles")
    spoken = _known(languages, facts["languages"], "languages")
    if must_have is not None:
        _known([must_have], facts["styles"], "must_have")
    without = _known(exclude_groups, facts["groups"], "exclude_groups") if exclude_groups else []
    pictures = _pictures(size)
    left_out = {facts["groups"].index(name) for name in without}
    drawn = _keep(pictures, facts["styles"], chosen, must_have)
    keep = [i for i in drawn if pictures["group"][i] not in left_out]
    return _join(pictures, keep, spoken, facts)


def concepts() -> tuple[Concept, ...]:
    """All concepts in Unicode's order; ``about["concept"]`` of a data set counts along them."""
    facts, texts = _facts(), _table("texts")
    english = {row["concept"]: row["label"] for row in texts.to_pylist() if row["language"] == "en"}
    found: dict[str, Concept] = {}
    drawn: dict[str, list[str]] = {}
    for row in _table("pictures").drop_columns("picture").to_pylist():
        code = row["concept"]
        drawn.setdefault(code, []).append(facts["styles"][row["style"]])
        found[code] = Concept(
            code=code,
            label=english[code],
            group=facts["groups"][row["group"]],
            subgroup=facts["subgroups"][row["subgroup"]],
            styles=tuple(drawn[code]),
        )
    return tuple(found.values())


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
    texts = _texts(tuple(spoken))
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
    metadata = _table("pictures").schema.metadata or {}
    if b"motet" not in metadata:
        raise _damaged("pictures", "it does not say what it holds")
    facts: dict[str, Any] = json.loads(metadata[b"motet"])
    return facts


@lru_cache(maxsize=2)
def _table(name: str) -> pyarrow.Table:
    import pyarrow
    import pyarrow.parquet

    path = FOLDER / f"emoji-{name}.parquet"
    try:
        # read_table would import pyarrow.dataset, and with it pandas where it is installed.
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.read()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise _damaged(name, error) from None


def _damaged(name: str, why: object) -> DataError:
    return DataError(
        f"the bundled file emoji-{name}.parquet is missing or damaged ({why}); install motet again"
    )


@lru_cache(maxsize=2)
def _pictures(size: int) -> Mapping[str, Any]:
    """The columns of all pictures, drawn at this size: image uint8 [n, 3, size, size]."""
    import numpy
    from PIL import Image

    table = _table("pictures")
    frames = numpy.empty((table.num_rows, size, size, 3), dtype=numpy.uint8)
    for i, picture in enumerate(table["picture"].to_pylist()):
        try:
            # Without the format, every plugin of Pillow would look at each of the thousands.
            image = Image.open(io.BytesIO(picture), formats=("WEBP",)).convert("RGB")
        except OSError as error:
            raise _damaged("pictures", f"picture {i}: {error}") from None
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BOX)
        frames[i] = numpy.asarray(image)
    columns = {name: table[name].to_pylist() for name in table.column_names if name != "picture"}
    return {**columns, "image": torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()}


@lru_cache(maxsize=4)
def _texts(languages: tuple[str, ...]) -> Mapping[tuple[str, str], str]:
    """(concept, language) -> "label, keyword, keyword ...", in these languages."""
    import pyarrow
    import pyarrow.compute

    table = _table("texts")
    # Of some thirty languages most runs want one.
    wanted = pyarrow.compute.is_in(table["language"], value_set=pyarrow.array(languages))
    return {
        (row["concept"], row["language"]): ", ".join([row["label"], *row["keywords"]])
        for row in table.filter(wanted).to_pylist()
    }
