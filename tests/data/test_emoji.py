"""The bundled emoji set: what is in it, stable row ids, readable complaints."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from motet.core import ConfigError, DataError, Dataset
from motet.data import emoji, load_data
from motet.data.emoji import GROUPS, LANGUAGES, STYLES, SUBGROUPS, concepts, load_emoji

FILES = ("emoji-pictures.parquet", "emoji-texts.parquet")
PER_STYLE = {
    "noto": 1644,
    "noto-v1": 1218,
    "twemoji": 1644,
    "fluent-emoji-flat": 1587,
    "emojione": 1094,
}


@pytest.fixture(scope="module")
def whole() -> Dataset:
    return load_emoji()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy in place of the bundled folder, of which nothing is remembered."""
    for name in FILES:
        shutil.copy(emoji.FOLDER / name, tmp_path)
    monkeypatch.setattr(emoji, "FOLDER", tmp_path)
    for cached in (emoji._facts, emoji._table, emoji._pictures, emoji._texts):
        monkeypatch.setattr(emoji, cached.__name__, cached.__wrapped__)
    return tmp_path


def image(dataset: Dataset) -> torch.Tensor:
    column = dataset.columns["image"]
    assert isinstance(column, torch.Tensor)
    return column


def about(dataset: Dataset, name: str) -> torch.Tensor:
    column = dataset.about[name]
    assert isinstance(column, torch.Tensor)
    return column


def what_rows_hold(dataset: Dataset) -> dict[int, tuple[Any, ...]]:
    """Row id -> all that stands in the row, the picture as a digest."""
    pictures = [hashlib.sha256(one.numpy().tobytes()).digest() for one in image(dataset)]
    numbers = [about(dataset, name).tolist() for name in ("concept", "group", "subgroup")]
    names = (dataset.columns["text"], dataset.about["style"], dataset.about["language"])
    assert dataset.labels is not None
    rows = zip(pictures, *names, *numbers, dataset.labels.tolist(), strict=True)
    return dict(zip(dataset.rows.tolist(), rows, strict=True))


def test_the_standard_set_has_the_counts_that_are_published(whole: Dataset) -> None:
    assert len(whole) == sum(PER_STYLE.values()) == 7187
    assert dict(Counter(whole.about["style"])) == PER_STYLE
    assert set(whole.about["language"]) == {"en"}
    assert len(about(whole, "concept").unique()) == 1644
    assert len(about(whole, "group").unique()) == 8
    assert whole.labels is not None
    assert len(whole.labels.unique()) == 95
    assert len(whole.classes) == len(set(whole.classes)) == 100


def test_columns_are_what_models_want(whole: Dataset) -> None:
    assert whole.modalities == ("image", "text")
    assert image(whole).shape == (7187, 3, 64, 64)
    assert image(whole).dtype == torch.uint8
    assert whole.labels is not None
    assert whole.labels.dtype == whole.rows.dtype == torch.int64
    assert torch.equal(whole.labels, about(whole, "subgroup"))
    assert all(mask.all() for mask in whole.present.values())


def test_no_picture_is_blank_and_the_ground_is_white(whole: Dataset) -> None:
    pictures = image(whole).float()
    assert pictures.flatten(1).std(dim=1).min() > 2
    corners = pictures[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].amin(dim=1)
    assert (corners == 255).any(dim=1).float().mean() > 0.9


def test_pictures_fill_their_frame(whole: Dataset) -> None:
    ink = (image(whole) < 250).any(dim=1).flatten(1).float()
    assert ink.mean(dim=1).min() > 0.03
    place = torch.arange(64 * 64)
    down, across = (ink * (place // 64)).sum(1), (ink * (place % 64)).sum(1)
    amount = ink.sum(dim=1)
    # A shift of all pictures of a style would be a wrong view box.
    styles = np.array(whole.about["style"])
    for style in STYLES:
        mine = torch.from_numpy(styles == style)
        assert (down[mine] / amount[mine]).mean() == pytest.approx(31.5, abs=2.5)
        assert (across[mine] / amount[mine]).mean() == pytest.approx(31.5, abs=2.5)


def test_texts_are_the_name_and_its_keywords(whole: Dataset) -> None:
    texts = whole.columns["text"]
    assert all(isinstance(text, str) and text.strip() for text in texts)
    assert texts[0] == (
        "grinning face, cheerful, cheery, face, grin, grinning, happy, laugh, nice, smile, "
        "smiling, teeth"
    )
    assert len(set(texts)) == 1644


def test_all_pictures_of_a_concept_share_text_and_labels(whole: Dataset) -> None:
    known = concepts()
    concept = about(whole, "concept").tolist()
    drawn: dict[int, list[str]] = {}
    for i, number in enumerate(concept):
        drawn.setdefault(number, []).append(str(whole.about["style"][i]))
        assert str(whole.columns["text"][i]).startswith(known[number].label)
        assert GROUPS[about(whole, "group")[i]] == known[number].group
        assert whole.classes[about(whole, "subgroup")[i]] == known[number].subgroup
    assert [tuple(drawn[number]) for number in range(len(known))] == [c.styles for c in known]


def test_names_come_from_the_file() -> None:
    assert tuple(PER_STYLE) == STYLES
    assert len(LANGUAGES) == 28
    assert {"en", "de", "ja", "zh-hant"} <= set(LANGUAGES)
    assert len(GROUPS) == 10
    assert len(SUBGROUPS) == 100
    assert concepts()[0].code == "1F600"
    assert {concept.group for concept in concepts()} == set(GROUPS) - {"flags", "component"}
    with pytest.raises(AttributeError, match="no attribute 'STYLE'"):
        _ = emoji.STYLE


def test_a_picture_is_that_of_its_concept(whole: Dataset) -> None:
    known = concepts()
    names = [known[number].label for number in about(whole, "concept").tolist()]
    for style in STYLES:
        at = {n: i for i, n in enumerate(names) if whole.about["style"][i] == style}
        red, green, blue = (
            image(whole)[at[name]].float().mean(dim=(1, 2))
            for name in ("red heart", "green heart", "blue heart")
        )
        assert red.argmax() == 0, style
        assert green.argmax() == 1, style
        assert blue.argmax() == 2, style
        left, right = (
            image(whole)[at[f"backhand index pointing {way}"]].float() for way in ("left", "right")
        )
        difference = (left - right).abs().mean()
        assert (left - right.flip(2)).abs().mean() < difference / 2, style


def test_row_ids_do_not_depend_on_the_selection(whole: Dataset) -> None:
    everything = what_rows_hold(whole)
    assert len(everything) == len(whole)
    selections: tuple[dict[str, Any], ...] = (
        {"styles": ["emojione"]},
        {"styles": ["twemoji", "noto"], "must_have": None},
        {"must_have": "emojione", "exclude_groups": ["symbols", "objects"]},
        {"languages": ["en", "de"]},
    )
    for options in selections:
        some = load_emoji(**options)
        english = [i for i, language in enumerate(some.about["language"]) if language == "en"]
        found = what_rows_hold(some.take(english))
        assert found
        assert found.items() <= everything.items(), options


def test_loading_again_gives_the_same(whole: Dataset) -> None:
    assert what_rows_hold(load_emoji()) == what_rows_hold(whole)


def test_a_caller_cannot_change_what_the_next_one_gets() -> None:
    image(load_emoji(size=8)).zero_()
    assert image(load_emoji(size=8)).any()


@pytest.mark.parametrize("size", [8, 32])
def test_other_sizes_are_means_over_areas(whole: Dataset, size: int) -> None:
    small = load_emoji(size=size, styles=["noto", "emojione"])
    assert image(small).shape == (1644 + 1094, 3, size, size)
    full = image(whole)[whole.positions(small.rows)].float()
    wanted = torch.nn.functional.avg_pool2d(full, 64 // size)
    assert (image(small).float() - wanted).abs().max() <= 1


def test_several_languages_give_a_row_each() -> None:
    both = load_emoji(size=8, styles=["noto-v1"], languages=["de", "en"])
    assert len(both) == 2 * 1218
    assert dict(Counter(both.about["language"])) == {"de": 1218, "en": 1218}
    assert len(both.rows.unique()) == len(both)
    assert both.columns["text"][0] != both.columns["text"][1]
    assert torch.equal(image(both)[0], image(both)[1])
    turned = load_emoji(size=8, styles=["noto-v1"], languages=["en", "de"])
    assert what_rows_hold(turned) == what_rows_hold(both)


def test_every_language_names_every_concept() -> None:
    many = load_emoji(size=8, styles=["noto"], languages=LANGUAGES)
    assert len(many) == 1644 * 28
    assert len(many.rows.unique()) == len(many)
    assert all(str(text).strip() for text in many.columns["text"])


@pytest.mark.parametrize("style", ["noto-v1", "emojione"])
def test_must_have_keeps_concepts_that_one_style_draws(style: str) -> None:
    some = load_emoji(size=8, must_have=style)
    counts = Counter(some.about["style"])
    assert counts[style] == counts["noto"] == PER_STYLE[style]
    assert set(about(some, "concept").tolist()) == {
        number for number, concept in enumerate(concepts()) if style in concept.styles
    }
    without = load_emoji(size=8, must_have=style, styles=["noto"])
    assert set(without.about["style"]) == {"noto"}
    assert len(without) == PER_STYLE[style]


def test_groups_can_be_left_out() -> None:
    some = load_emoji(size=8, exclude_groups=["symbols"])
    groups = {GROUPS[number] for number in about(some, "group").tolist()}
    assert groups == set(GROUPS) - {"flags", "component", "symbols"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"styles": ["apple"]}, "styles: there is no 'apple'; write some of noto, noto-v1, "),
        ({"styles": []}, "styles: name at least one of noto, "),
        ({"languages": ["en", "xx"]}, "languages: there is no 'xx'; write some of bn, da, de"),
        ({"languages": []}, "languages: name at least one of bn"),
        ({"must_have": "twitter"}, "must_have: there is no 'twitter'; write some of noto"),
        ({"exclude_groups": ["food"]}, "exclude_groups: there is no 'food'; .*food-drink"),
        ({"size": 65}, "size=65: pictures can be had from 8 to 64 pixels"),
        ({"size": 0}, "size=0: "),
    ],
)
def test_a_wrong_name_is_answered_with_those_there_are(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_emoji(**options)


def test_it_can_be_had_by_name() -> None:
    assert len(load_data("emoji", size=8, styles=["noto"])) == 1644
    with pytest.raises(ConfigError, match="emoji.style: there is no such option"):
        load_data("emoji", style=["noto"])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [None, 0, 5000])
def test_a_missing_or_damaged_file_is_told(elsewhere: Path, name: str, keep: int | None) -> None:
    path = elsewhere / name
    held = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(held[:keep])
    with pytest.raises(DataError, match=f"{name} is missing or damaged .*install motet again"):
        concepts()


def test_a_file_without_its_facts_is_told(elsewhere: Path) -> None:
    path = elsewhere / FILES[0]
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(DataError, match="does not say what it holds.*install motet again"):
        load_emoji()


def test_a_damaged_picture_is_told(elsewhere: Path) -> None:
    path = elsewhere / FILES[0]
    table = pq.read_table(path)
    column = table.column_names.index("picture")
    pictures = table["picture"].to_pylist()
    pictures[3] = b"no picture"
    pq.write_table(table.set_column(column, "picture", [pictures]), path)
    with pytest.raises(DataError, match="emoji-pictures.parquet .*picture 3.*install motet again"):
        load_emoji()
