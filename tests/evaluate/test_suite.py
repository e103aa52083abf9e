"""The suite: what a model's modalities, its head and the rows of a test set allow."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from motet.core import Batch, Dataset, Output
from motet.evaluate.suite import evaluate

RETRIEVAL = ["i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum"]


class Mirror(nn.Module):
    """Embeds a row as it is; its head says the class that column 0 holds."""

    def __init__(self, head: bool = False) -> None:
        super().__init__()
        self.head = head
        self.seen: list[tuple[int, bool]] = []

    def forward(self, batch: Batch) -> Output:
        self.seen.append((len(batch), self.training))
        first = next(iter(batch.inputs.values()))
        logits = nn.functional.one_hot(first[:, 0].long(), 5).float() if self.head else None
        return Output(logits=logits, features=batch.inputs)


def pairs(count: int = 12) -> Dataset:
    z = torch.zeros(count, count + 1)
    z[:, 1:] = torch.eye(count)
    labels = torch.arange(count) % 3
    image = z.clone()
    image[:, 0] = labels.float() * (torch.arange(count) % 4 > 0)
    return Dataset({"image": image, "text": z}, labels=labels)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("modalities", [["image"], ["text"], ["image", "text"]])
def test_metrics_are_those_that_the_rows_allow(
    modalities: list[str], labelled: bool, head: bool
) -> None:
    data = pairs().only(modalities)
    data = data if labelled else replace(data, labels=None)
    expected = [*RETRIEVAL] if len(modalities) == 2 else []
    expected += ["cat@10"] if len(modalities) == 2 and labelled else []
    expected += ["accuracy"] if labelled and head else []
    found = evaluate(Mirror(head), data)
    assert list(found) == expected
    assert all(n == 12 for _, n in found.values())


def test_values_are_right() -> None:
    found = evaluate(Mirror(head=True), pairs())
    assert found["i2t_r1"] == (100.0, 12)
    assert found["rsum"] == (600.0, 12)
    # Every fourth row says class 0; of these the labels are 0, 1, 2.
    assert found["accuracy"][0] == pytest.approx(100 * 10 / 12)


def test_batches_do_not_matter_and_the_mode_comes_back() -> None:
    model = Mirror(head=True).train()
    assert evaluate(model, pairs(), batch=5) == evaluate(model, pairs())
    assert model.training
    assert model.seen == [(5, False), (5, False), (2, False), (12, False)]


def test_captions_of_one_picture_have_one_picture() -> None:
    """Copies of a picture in the gallery would tie with it, and a tie is lost."""
    data = pairs(6)
    twice = data.take([0, 0, 1, 1, 2, 3, 4, 5])
    ids = torch.tensor([7, 7, 3, 3, 9, 2, 1, 0])
    plain = evaluate(Mirror(), twice)
    assert plain["t2i_r1"][0] == 50.0
    found = evaluate(Mirror(), replace(twice, about={"image_id": ids}))
    assert found["rsum"] == (600.0, 8)


def test_an_image_id_of_words_is_no_id() -> None:
    data = replace(pairs(6), about={"image_id": tuple("abcdef")})
    assert evaluate(Mirror(), data)["rsum"] == (600.0, 6)


def test_fillers_are_not_counted() -> None:
    """A row that lacks a modality holds a filler: it belongs to no metric that needs it."""
    data = pairs()
    lacking = torch.ones(12, dtype=torch.bool)
    lacking[:3] = False
    text = data.columns["text"]
    assert isinstance(text, Tensor)
    spoilt = text.clone()
    spoilt[:3] = text[5]
    data = replace(
        data,
        columns={**data.columns, "text": spoilt},
        present={**data.present, "text": lacking},
        about={"image_id": torch.arange(12)},
    )
    found = evaluate(Mirror(head=True), data)
    assert found["rsum"] == (600.0, 9)
    assert found["cat@10"][1] == 9
    assert found["accuracy"][1] == 12


def test_without_rows_there_are_no_metrics() -> None:
    data = pairs()
    assert evaluate(Mirror(head=True), data.take([])) == {}
    nothing = {name: torch.zeros(12, dtype=torch.bool) for name in data.present}
    assert evaluate(Mirror(head=True), replace(data, present=nothing)) == {}


def test_what_the_model_prepares_is_what_it_sees() -> None:
    class Prepared(Mirror):
        def prepare(self, data: Dataset) -> Dataset:
            return replace(data, columns={"text": torch.ones(len(data), 2)}).only(["text"])

    texts = replace(pairs(3), columns={"image": torch.zeros(3, 1), "text": ("a", "b", "c")})
    assert evaluate(Prepared(head=True), texts)["accuracy"][1] == 3


@pytest.mark.usefixtures("rng_untouched")
def test_no_draw_is_made() -> None:
    evaluate(Mirror(head=True), pairs())
