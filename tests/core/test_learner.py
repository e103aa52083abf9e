"""What hub and sites share: models built once, keyed batches, fits that fail loudly, encodings."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import chain

import pytest
import torch
from tests.core.toys import Toy, cross_entropy, rows, toy
from torch import Tensor, nn

from motet.core import SGD, Adam, Batch, DataError, Dataset, SiteError, wire
from motet.core.batches import Batches
from motet.core.learner import Learner, evaluating
from motet.core.rng import seeded
from motet.core.tree import weights_of


def learner(name: str = "ada", seed: int = 0) -> Learner:
    found = Learner(name, seed, partial(toy, name))
    found.key = ("op", "0.1.1")
    return found


def order(found: Learner, data: Dataset, **options: object) -> list[list[int]]:
    return [batch.rows.tolist() for batch in found.batches(data, 4, **options)]  # type: ignore[arg-type]


def test_a_model_is_built_once_and_when_asked_for() -> None:
    built: list[int] = []

    def build() -> nn.Module:
        built.append(1)
        return toy("ada")

    found = Learner("ada", 0, build)
    assert built == []
    assert found.model is found.model
    assert built == [1]


def test_without_a_model_it_says_so() -> None:
    with pytest.raises(DataError, match="ben has no model"):
        _ = Learner("ben", 0, None).model


@pytest.mark.usefixtures("rng_untouched")
def test_the_order_of_batches_is_keyed() -> None:
    data = rows("data", 10)
    found = learner()
    first = order(found, data)
    assert sorted(chain(*first)) == list(range(10))
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert order(learner(), data) == first
    others = [
        order(found, data, key="again"),
        order(learner("ben"), data),
        order(learner(seed=1), data),
    ]
    found.key = ("op", "0.2.1")
    others.append(order(found, data))
    assert all(other != first for other in others)


def test_every_epoch_has_an_order_of_its_own() -> None:
    data = rows("data", 8)
    epochs = order(learner(), data, epochs=2)
    assert [sorted(chain(*epochs[i : i + 2])) for i in (0, 2)] == [list(range(8))] * 2
    assert epochs[:2] != epochs[2:]
    assert order(learner(), data, epochs=0) == []


def test_no_rows_no_training() -> None:
    with pytest.raises(DataError, match="ada has no rows to train on"):
        order(learner(), rows("data", 4).take([]))


def test_random_draws_have_names() -> None:
    found = learner()
    draw = torch.rand(3, generator=found.rng("a")).tolist()
    assert torch.rand(3, generator=found.rng("a")).tolist() == draw
    assert torch.rand(3, generator=found.rng("b")).tolist() != draw
    numbers = found.numpy_rng("a").random(2).tolist()
    assert found.numpy_rng("a").random(2).tolist() == numbers


def test_a_fit_lowers_the_loss_and_says_how_far() -> None:
    found = learner()
    data = rows("data", 30)
    # The toy has dropout, whose draws are else the last test's.
    with seeded(0, "dropout"):
        first = found.fit(cross_entropy, found.batches(data, 10), SGD(0.0))
        for i in range(20):
            last = found.fit(cross_entropy, found.batches(data, 10, key=i), SGD(0.5))
    assert last < 0.7 * first
    assert found.fit(cross_entropy, [], SGD(0.5)) == 0


def test_the_loss_is_the_mean_over_steps() -> None:
    found = learner()

    def three(model: nn.Module, batch: Batch) -> Tensor:
        return model(batch).logits.sum() * 0 + len(batch)

    assert found.fit(three, found.batches(rows("data", 10), 4), SGD(0.1)) == pytest.approx(10 / 3)


def test_a_loss_that_is_not_finite_names_party_loss_and_remedy() -> None:
    found = learner()

    def broken(model: nn.Module, batch: Batch) -> Tensor:
        return model(batch).logits.sum() * torch.nan

    message = r"ada: the loss 'broken' became nan within 2 steps; lower the learning rate, or look"
    with pytest.raises(SiteError, match=message):
        found.fit(broken, found.batches(rows("data", 6), 3), SGD(0.1))


def test_weights_that_are_not_finite_are_noticed_though_the_loss_is_finite() -> None:
    """The slope of a root at 0 is infinite, and the loss before the step was not."""
    found = learner()

    def root(model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch).logits * 0).sum().sqrt()

    with pytest.raises(SiteError, match=r"ada: the weights 'layer.weight' became .* 'root'"):
        found.fit(root, list(found.batches(rows("data", 3), 3))[:1], SGD(0.1))


def test_an_optimizer_goes_on_and_a_spec_begins_anew() -> None:
    found = learner()
    data = rows("data", 4)
    kept = found.optimizer("local", Adam(0.1))
    found.fit(cross_entropy, found.batches(data, 4), kept)
    found.fit(cross_entropy, found.batches(data, 4), kept)
    assert kept.tree()["moments"]["0"]["step"] == 2
    assert found.optimizer("local", Adam(0.1)) is kept
    found.fit(cross_entropy, found.batches(data, 4), Adam(0.1))
    assert kept.tree()["moments"]["0"]["step"] == 2


def test_an_optimizer_takes_the_hyper_parameters_that_it_is_asked_with() -> None:
    found = learner()
    found.fit(cross_entropy, found.batches(rows("data", 4), 4), found.optimizer("local", Adam(0.1)))
    found.optimizer("local", Adam(0.1)).set_lr(0.5)
    again = found.optimizer("local", Adam(0.02), clip=3.0)
    assert again.inner.param_groups[0]["lr"] == 0.02
    assert again.clip == 3.0
    assert again.tree()["moments"]["0"]["step"] == 1


def test_encodings_are_in_eval_mode_and_in_order() -> None:
    found = learner()
    data = rows("data", 7)
    found.model.train()
    whole = found.encode(data, "x", batch=3)
    assert found.model.training
    found.model.eval()
    with torch.no_grad():
        expected = found.model(data.batch(torch.arange(7))).features["x"]
    torch.testing.assert_close(whole, expected)
    assert not whole.requires_grad
    assert found.encode(data.take([]), "x").shape == (0, 3)


def test_what_a_model_prepares_is_what_it_sees() -> None:
    class Doubling(Toy):
        def prepare(self, data: Dataset) -> Dataset:
            x = data.columns["x"]
            assert isinstance(x, Tensor)
            return replace(data, columns={"x": 2 * x})

    found = Learner("ada", 0, Doubling)
    data = rows("data", 4)
    (batch,) = found.batches(data, 4)
    assert torch.equal(batch.inputs["x"], 2 * data.batch(batch.rows).inputs["x"])


def test_model_and_optimizers_are_taken_up_again() -> None:
    data = rows("data", 6)
    one = learner()
    one.fit(cross_entropy, one.batches(data, 2), one.optimizer("a", Adam(0.1)))
    kept = wire.decode(wire.encode(one.tree()))
    two = learner()
    two.load_tree(kept)
    for found in (one, two):
        torch.manual_seed(0)
        found.fit(cross_entropy, found.batches(data, 2), found.optimizer("a", Adam(0.1)))
    assert wire.encode(one.tree()) == wire.encode(two.tree())


def test_moments_wait_for_an_optimizer_that_is_not_asked_for() -> None:
    one = learner()
    one.fit(cross_entropy, one.batches(rows("data", 4), 4), one.optimizer("a", Adam(0.1)))
    two = learner()
    two.load_tree(one.tree())
    assert wire.encode(two.tree()) == wire.encode(one.tree())


def test_an_empty_tree_gives_back_the_initial_weights() -> None:
    found = learner()
    initial = wire.encode(weights_of(found.model))
    optimizer = found.optimizer("a", Adam(0.1))
    found.fit(cross_entropy, found.batches(rows("data", 4), 4), optimizer)
    model = found.model
    found.load_tree({})
    assert found.model is model
    assert wire.encode(weights_of(model)) == initial
    assert optimizer.tree()["moments"] == {}


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_comes_back(mode: bool) -> None:
    model = toy("ada").train(mode)
    with evaluating(model):
        assert not model.training
    assert model.training is mode
    with pytest.raises(AssertionError), evaluating(model):
        assert model.training
    assert model.training is mode


@pytest.mark.parametrize("count", [1, 5, 8, 9])
@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"epochs": 0},
        {"epochs": 3},
        {"steps": 0},
        {"steps": 1},
        {"steps": 7},
        {"epochs": 2, "least": 2},
        {"steps": 5, "least": 4},
    ],
    ids=str,
)
def test_a_plan_is_what_going_through_the_batches_gives(
    count: int, size: int, options: dict[str, int]
) -> None:
    found = Learner("ada", 0, lambda: toy("ada"))
    data = rows("ada", count)
    one_by_one = [batch.rows for batch in found.batches(data, size, **options)]
    for gone in range(min(2, len(one_by_one)) + 1):
        batches = found.batches(data, size, **options)
        assert isinstance(batches, Batches)
        for _ in range(gone):
            next(batches)
        there, order, sizes = batches.plan()
        assert sum(sizes) == len(order)
        assert order.dtype == torch.int64
        parts = order.split(sizes)
        assert len(parts) == len(one_by_one) - gone
        for index, wanted in zip(parts, one_by_one[gone:], strict=True):
            assert torch.equal(there.rows[index], wanted)
        assert list(batches) == []
        assert batches.plan()[2] == []


def test_there_is_no_plan_without_rows() -> None:
    found = Learner("ada", 0, lambda: toy("ada"))
    batches = found.batches(rows("ada", 0), 4, steps=0)
    assert isinstance(batches, Batches)
    with pytest.raises(DataError, match="no rows"):
        batches.plan()
