"""Data sets: columns of one length, selections that keep their rows, batches of tensors."""

from __future__ import annotations

import pytest
import torch

from motet.core import Dataset


@pytest.fixture
def data() -> Dataset:
    return Dataset(
        {"text": ("a", "b", "c"), "image": torch.arange(3)[:, None]},
        labels=torch.tensor([2, 1, 0]),
        rows=torch.tensor([30, 10, 20]),
        present={
            "text": torch.tensor([True, False, True]),
            "image": torch.ones(3, dtype=torch.bool),
        },
        about={"style": ("x", "y", "z")},
    )


def test_rows_and_presence_have_defaults() -> None:
    data = Dataset({"text": ("a", "b")})
    assert data.rows.tolist() == [0, 1]
    assert data.present["text"].tolist() == [True, True]
    assert data.modalities == ("text",)
    assert len(Dataset({})) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": {"a": ("x",), "b": ("x", "y")}}, "columns differ in length"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, "labels has 2 entries for 1 rows"),
        ({"about": {"style": ("x", "y")}}, "style has 2 entries for 1 rows"),
        ({"rows": torch.tensor([1, 2])}, "rows has 2 entries"),
    ],
)
def test_lengths_must_agree(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dataset(**{"columns": {"a": ("x",)}, **change})  # type: ignore[arg-type]


def test_a_selection_takes_everything_along(data: Dataset) -> None:
    part = data.take([2, 0])
    assert part.columns["text"] == ("c", "a")
    assert part.rows.tolist() == [20, 30]
    assert part.labels is not None
    assert part.labels.tolist() == [0, 2]
    assert part.present["text"].tolist() == [True, True]
    assert part.about["style"] == ("z", "x")
    assert len(data.take([])) == 0


def test_a_mask_is_not_taken_for_positions(data: Dataset) -> None:
    with pytest.raises(TypeError, match="positions"):
        data.take(data.present["text"])


def test_rows_are_found_by_their_ids(data: Dataset) -> None:
    assert data.positions(torch.tensor([20, 30, 10])).tolist() == [2, 0, 1]


def test_one_modality_alone(data: Dataset) -> None:
    assert data.only(["text"]).modalities == ("text",)
    with pytest.raises(KeyError):
        data.only(["audio"])


def test_batches_hold_tensors_in_order(data: Dataset) -> None:
    with pytest.raises(TypeError, match="'text' is not a tensor"):
        data.batch(torch.tensor([0]))
    batches = list(data.only(["image"]).batches(2))
    assert [len(batch) for batch in batches] == [2, 1]
    assert batches[0].inputs["image"].tolist() == [[0], [1]]
    assert batches[1].rows.tolist() == [20]
    assert batches[1].labels is not None
    assert batches[1].only("image").present["image"].tolist() == [True]


class Marked(Dataset):
    """A data set of somebody's own."""


def test_other_columns_of_the_same_rows() -> None:
    whole, some = torch.ones(3, dtype=torch.bool), torch.tensor([True, False, True])
    columns = {"x": torch.arange(6.0).view(3, 2), "y": torch.ones(3, 1)}
    given = Marked(columns, rows=torch.tensor([7, 5, 6]), present={"x": whole, "y": some})
    assert not given.complete
    assert given.positions(torch.tensor([5])).tolist() == [1]
    other = given.with_columns({name: 2 * value for name, value in columns.items()}, {"x": "k"})
    less = given.with_columns({"x": columns["x"]}, {})
    for found in (other, less, given.only(["x"])):
        assert type(found) is Marked
        assert found.rows is given.rows
        assert found.cache is given.cache
        assert found.positions(torch.tensor([6])).tolist() == [2]
    assert not other.complete
    assert other.ready == {"x": "k"}
    assert torch.equal(other.batch(torch.tensor([2])).inputs["y"], 2 * columns["y"][2:])
    assert less.complete
    assert less.present.keys() == {"x"}
    assert not given.only(["y"]).complete
    assert len(given.with_columns({}, {})) == 3
    assert not given.complete
