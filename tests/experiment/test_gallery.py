from __future__ import annotations

import base64
import io
import json
import math
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from motet.core.batch import Column, Dataset
from motet.core.errors import DataError
from motet.experiment.gallery import choose_queries, gallery_json, snapshot
from motet.models.base import Encoder, MultimodalModel


def on_circle(degrees: Tensor) -> Tensor:
    """Unit vectors [n, 2] at these angles [n]."""
    radians = degrees.float() * math.pi / 180
    return torch.stack([radians.cos(), radians.sin()], dim=1)


LOST = 255


class Grey(Encoder):
    """A picture stands at the angle that its grey value says, and ``LOST`` is no number."""

    width = 2

    def forward(self, x: Tensor) -> Tensor:
        values = x[:, 0, 0, 0].float()
        return on_circle(values.masked_fill(values == LOST, torch.nan))


class Number(Encoder):
    """A text stands at the angle that it spells, off by ``shift``."""

    width = 2

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    @property
    def key(self) -> str:
        return "number"

    def prepare(self, column: Column) -> Tensor:
        return torch.tensor([float(text) for text in column])

    def forward(self, x: Tensor) -> Tensor:
        return on_circle(x + self.shift)


def model(shift: float = 0.0) -> MultimodalModel:
    return MultimodalModel({"image": Grey(), "text": Number(shift)})


def numbered(angles: list[int], edge: int = 8, **fields: Any) -> Dataset:
    """Picture k is grey of value angles[k], and its text is that number."""
    grey = torch.tensor(angles, dtype=torch.uint8)[:, None, None, None]
    columns: dict[str, Column] = {
        "image": grey.expand(-1, 3, edge, edge).contiguous(),
        "text": tuple(str(angle) for angle in angles),
    }
    return Dataset(columns, **fields)


TEST = numbered(
    [0, 40, 80, 120, 160, 200],
    labels=torch.tensor([0, 0, 1, 1, 2, 2]),
    classes=("a", "b", "c"),
)


def test_a_good_model_finds_the_right_picture_first_and_its_neighbours_after() -> None:
    (found,) = snapshot(model(), TEST, queries=[2], depth=3)
    assert found["place"] == 1
    assert found["of"] == 6
    assert found["found"][0] == {"row": 2, "right": True, "same": True}
    assert {item["row"] for item in found["found"][1:]} == {1, 3}


def test_a_shifted_model_puts_the_right_picture_later() -> None:
    (found,) = snapshot(model(shift=70), TEST, queries=[1], depth=2)
    # The text stands at 110 degrees: nearest are 120, then 80, then 160, then 40.
    assert [item["row"] for item in found["found"]] == [3, 2]
    assert found["place"] == 4
    assert not any(item["right"] for item in found["found"])


def test_same_tells_the_label_and_not_the_picture() -> None:
    found = snapshot(model(shift=41), TEST, queries=[0, 1], depth=1)
    assert found[0]["found"] == [{"row": 1, "right": False, "same": True}]
    assert found[1]["found"] == [{"row": 2, "right": False, "same": False}]


def test_of_equal_scores_the_right_picture_comes_last() -> None:
    test = numbered([50, 50, 50, 90])
    assert [found["place"] for found in snapshot(model(), test, queries=[0, 1, 2])] == [3, 3, 3]


def test_scores_that_are_no_numbers_earn_nothing() -> None:
    found = snapshot(model(shift=math.nan), TEST, queries=[0, 5])
    assert [item["place"] for item in found] == [6, 6]
    (alone,) = snapshot(model(), numbered([0, LOST, 90]), queries=[1])
    assert alone["place"] == 3


def test_captions_of_one_picture_search_among_pictures_that_stand_there_once() -> None:
    test = numbered([0, 0, 90, 90], about={"image_id": torch.tensor([7, 7, 8, 8])})
    found = snapshot(model(), test, queries=[1, 3])
    assert [item["of"] for item in found] == [2, 2]
    assert [item["place"] for item in found] == [1, 1]
    assert [hit["row"] for hit in found[0]["found"]] == [0, 2]


def test_rows_without_their_picture_are_neither_asked_nor_found() -> None:
    present = {
        "image": torch.tensor([True, True, False, True, True, True]),
        "text": torch.tensor([True, False, True, True, True, True]),
    }
    test = numbered([0, 40, 80, 120, 160, 200], present=present)
    assert choose_queries(test, 6) == [0, 3, 4, 5]
    (found,) = snapshot(model(), test, queries=[3], depth=6)
    assert {hit["row"] for hit in found["found"]} == {0, 3, 4, 5}
    with pytest.raises(DataError, match="row 2"):
        snapshot(model(), test, queries=[2])


def test_texts_alone_cannot_be_searched() -> None:
    with pytest.raises(DataError, match="images and texts"):
        choose_queries(TEST.only(["text"]))


def test_queries_are_spread_over_labels_and_always_the_same() -> None:
    labels = torch.arange(120) % 40
    test = numbered([i % 200 for i in range(120)], labels=labels)
    chosen = choose_queries(test, 8)
    assert chosen == choose_queries(test, 8)
    picked = sorted(int(labels[row]) for row in chosen)
    assert len(set(picked)) == 8
    assert picked[0] < 5
    assert picked[-1] >= 35


@pytest.mark.parametrize("count", [0, 1, 3, 5, 6, 50])
def test_fewer_labels_than_queries_are_filled_up_with_other_rows(count: int) -> None:
    chosen = choose_queries(TEST, count)
    assert len(chosen) == len(set(chosen)) == min(count, 6)


def test_queries_without_labels() -> None:
    assert choose_queries(numbered(list(range(100))), 4) == [12, 37, 62, 87]


def test_the_model_is_left_in_the_mode_that_it_was_in(rng_untouched: None) -> None:
    own = model().train()
    snapshot(own, TEST, queries=[0])
    assert own.training


def test_json_holds_each_picture_once_and_exactly() -> None:
    stages = {
        "before": snapshot(model(90), TEST, queries=[0, 1], depth=2),
        "after": snapshot(model(), TEST, queries=[0, 1], depth=2),
    }
    content = json.loads(gallery_json(stages, TEST))
    assert list(content["stages"]) == ["before", "after"]
    shown = {0, 1} | {h["row"] for s in stages.values() for q in s for h in q["found"]}
    assert set(content["pictures"]) == {str(row) for row in shown}
    one = content["pictures"]["1"]
    assert (one["caption"], one["label"]) == ("40", "a")
    image = Image.open(io.BytesIO(base64.b64decode(one["data"].partition(",")[2])))
    assert image.size == (8, 8)
    assert image.convert("RGB").getpixel((3, 3)) == (40, 40, 40)


def test_large_pictures_become_small() -> None:
    test = numbered([0, 90], edge=400)
    data = gallery_json({"after": snapshot(model(), test, queries=[0])}, test)
    url = json.loads(data)["pictures"]["0"]["data"]
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert image.size == (96, 96)
    assert len(data) < 5000


def test_json_is_the_same_every_time() -> None:
    def once() -> bytes:
        return gallery_json({"after": snapshot(model(), TEST, queries=[0, 3])}, TEST)

    assert once() == once()
