from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.batch import Column, Dataset
from motet.core.rng import generator, seeded
from motet.models.base import Encoder, MultimodalModel
from motet.models.hashed import HashedMLP
from motet.models.hog import HogMLP

TEXTS = tuple(f"text number {i}" for i in range(6))


class Watcher(Encoder):
    """Takes note of what it is given."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.seen: list[Column] = []
        self.linear = nn.Linear(2, width)

    def calibrate(self, column: Column) -> None:
        self.seen.append(column)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def both(classes: int = 0) -> MultimodalModel:
    with seeded(0):
        return MultimodalModel({"text": HashedMLP(width=8), "image": HogMLP(width=8)}, classes)


def data(**present: Tensor) -> Dataset:
    shape = (6, 3, 32, 32)
    pictures = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0))
    return Dataset({"image": pictures, "text": TEXTS}, present=present)


@pytest.mark.parametrize("names", [("image",), ("text",), ("image", "text")])
def test_any_subset_of_the_modalities_will_do(names: tuple[str, ...]) -> None:
    model = both(classes=3)
    batch = model.prepare(data()).batch(torch.arange(6)).only(*names)
    out = model(batch)
    assert set(out.features) == set(names)
    assert out.logits.shape == (6, 3)
    for name in names:
        torch.testing.assert_close(out.features[name].norm(dim=1), torch.ones(6))
        alone = model.encoders[name](batch.inputs[name])
        torch.testing.assert_close(out.features[name], F.normalize(alone, dim=1))


def test_no_shared_modality_no_features() -> None:
    model = MultimodalModel({"sound": Watcher()}, classes=2)
    out = model(both().prepare(data()).batch(torch.arange(2)))
    assert not out.features
    assert out.logits is None


def test_head_reads_the_modalities_that_a_row_has() -> None:
    has_text = torch.tensor([True, False, True, True, False, True])
    model = both(classes=3)
    batch = model.prepare(data(text=has_text)).batch(torch.arange(6))
    image = F.gelu(model.encoders["image"](batch.inputs["image"]))
    text = F.gelu(model.encoders["text"](batch.inputs["text"]))
    joint = torch.where(has_text[:, None], (image + text) / 2, image)
    assert model.head is not None
    torch.testing.assert_close(model(batch).logits, model.head(joint))


def test_calibration_passes_on_public_rows_that_are_there() -> None:
    first, second = Watcher(), Watcher()
    model = MultimodalModel({"a": first, "b": second, "c": Watcher()})
    column = torch.arange(6.0).view(3, 2)
    present = {"a": torch.tensor([True, False, True]), "b": torch.zeros(3, dtype=torch.bool)}
    model.calibrate(Dataset({"a": column, "b": column}, present=present))
    assert len(first.seen) == 1
    assert isinstance(first.seen[0], Tensor)
    assert first.seen[0].equal(column[[0, 2]])
    assert second.seen == []


def test_calibration_does_nothing_by_default() -> None:
    model = MultimodalModel({"text": HashedMLP(width=8)})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.calibrate(data())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_what_one_key_made_is_made_once() -> None:
    rows = data()
    small = MultimodalModel({"image": HogMLP(width=8, hidden=4)})
    large = both()
    first = small.prepare(rows).columns["image"]
    assert large.prepare(rows).columns["image"] is first
    coarse = MultimodalModel({"text": HashedMLP(width=8, bins=64)}).prepare(rows)
    assert coarse.columns["text"].shape == (6, 64)  # type: ignore[union-attr]
    assert large.prepare(rows).columns["text"].shape == (6, 1024)  # type: ignore[union-attr]


def test_a_selection_is_not_prepared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = data(text=torch.ones(6, dtype=torch.bool))
    model = MultimodalModel({"text": HashedMLP(width=8)})
    whole = model.prepare(rows).columns["text"]
    some = rows.take([4, 1])
    monkeypatch.setattr(HashedMLP, "prepare", lambda *_: pytest.fail("prepared again"))
    assert isinstance(whole, torch.Tensor)
    assert torch.equal(model.prepare(some.only(["text"])).columns["text"], whole[[4, 1]])


def test_what_is_prepared_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = data(text=torch.ones(6, dtype=torch.bool))
    model = MultimodalModel({"text": HashedMLP(width=8)})
    ready = model.prepare(rows)
    rows.cache.clear()
    monkeypatch.setattr(HashedMLP, "prepare", lambda *_: pytest.fail("prepared again"))
    assert model.prepare(ready).columns["text"] is ready.columns["text"]
    some = ready.take([4, 1])
    assert model.prepare(some).columns["text"] is some.columns["text"]


def test_other_columns_do_not_find_what_was_prepared_before() -> None:
    rows = data(text=torch.ones(6, dtype=torch.bool))
    model = MultimodalModel({"text": HashedMLP(width=8)})
    before = model.prepare(rows).columns["text"]
    texts = tuple(reversed(rows.columns["text"]))
    after = model.prepare(replace(rows, columns={**rows.columns, "text": texts})).columns["text"]
    assert torch.equal(after, before.flip(0))


def test_prepared_rows_keep_ids_labels_and_presence() -> None:
    rows = Dataset(
        {"text": TEXTS, "sound": torch.zeros(6, 2)},
        labels=torch.arange(6),
        rows=torch.arange(10, 16),
        present={"text": torch.arange(6) > 2},
    )
    prepared = both().prepare(rows)
    assert prepared.modalities == ("text",)
    assert prepared.rows.equal(rows.rows)
    assert prepared.labels is rows.labels
    assert prepared.present["text"].equal(rows.present["text"])


def test_widths_must_agree() -> None:
    with pytest.raises(ValueError, match="one embedding width"):
        MultimodalModel({"image": HogMLP(width=8), "text": HashedMLP(width=16)})


def test_an_encoder_without_code_says_so() -> None:
    with pytest.raises(TypeError, match="Encoder has no forward"):
        Encoder()(torch.zeros(1))
    with pytest.raises(TypeError, match="cannot prepare strings"):
        Encoder().prepare(("a",))
    column = torch.zeros(2, 2)
    assert Encoder().prepare(column) is column
    assert Watcher().key == "Watcher"


class Halving(Watcher):
    """Makes one row of two."""

    def prepare(self, column: Column) -> Tensor:
        assert isinstance(column, Tensor)
        return column[::2]


def test_an_encoder_that_loses_rows_is_noticed() -> None:
    model = MultimodalModel({"x": Halving()})
    with pytest.raises(ValueError, match="the encoder of 'x' makes 2 rows of 4"):
        model.prepare(Dataset({"x": torch.zeros(4, 2)}))
