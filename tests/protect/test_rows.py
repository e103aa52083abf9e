import math
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.batch import Batch, Dataset, Output
from motet.core.errors import BudgetError, ConfigError, SiteError
from motet.core.groups import freeze
from motet.core.guard import SPENT, Passage
from motet.core.learner import Learner, Loss
from motet.core.optim import SGD
from motet.core.rng import generator, seeded
from motet.core.tree import Tree, weights_of
from motet.protect.accountant import default_delta, gaussian_epsilon
from motet.protect.privacy import PrivacySpec
from motet.protect.row_gradients import RowGradients
from motet.protect.rows import RowPrivacy, Sealed


def rows(count: int = 40) -> Dataset:
    x = torch.randn(count, 6, generator=generator(5, "x"))
    labels = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    return Dataset({"x": x}, labels=labels, classes=("a", "b", "c"))


class Net(nn.Module):
    """[n, 6] -> 3 scores, through whatever layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers) if layers else nn.Sequential(nn.Linear(6, 3))

    def forward(self, batch: Batch) -> Output:
        return Output(self.layers(batch.inputs["x"]))


def deep() -> Net:
    return Net(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))


def cross(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch).logits, batch.labels)


def total(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch).logits, batch.labels, reduction="sum")


def contrast(model: nn.Module, batch: Batch) -> Tensor:
    """A loss whose rows depend on each other."""
    scores = model(batch).logits
    return F.cross_entropy(scores @ scores.T, torch.arange(len(batch)))


def learner(build: Callable[[], nn.Module] = deep, **fields: Any) -> Learner:
    def made() -> nn.Module:
        with seeded(1, "weights"):
            return build()

    found = Learner("a", 0, made)
    found.key = ("train", "0.0.1")
    found.fitter = RowPrivacy(PrivacySpec.model_validate({"mode": "rows", **fields}))
    return found


def train(found: Learner, data: Dataset, loss: Loss = cross, lr: float = 0.5, **how: Any) -> float:
    how.setdefault("steps", 1)
    size = how.pop("size", 10)
    adjust = how.pop("adjust", None)
    batches = found.batches(data, size, **how)
    return found.fit(loss, batches, SGD(lr), adjust=adjust)


def guard_of(found: Learner) -> RowPrivacy:
    assert isinstance(found.fitter, RowPrivacy)
    return found.fitter


def passage(memory: Tree | None = None, tag: str = "0.0.1") -> Passage:
    return Passage("a", "train", tag, 0, {}, {}, memory={} if memory is None else memory)


def moved(found: Learner, before: Tree) -> Tensor:
    after = weights_of(found.model)
    return torch.cat([(before[name] - after[name]).flatten() for name in before])


READS: list[Callable[[Dataset], Any]] = [
    lambda data: data.columns["x"],
    lambda data: data.labels,
    lambda data: data.rows,
    lambda data: data.present,
    lambda data: data.about,
    lambda data: data.cache,
    lambda data: data.take([0]),
    lambda data: data.only(["x"]),
    lambda data: data.where("x", 1),
    lambda data: data.batch(torch.tensor([0])),
    lambda data: list(data.batches(4)),
    lambda data: data.positions(torch.tensor([0])),
    lambda data: learner().prepared(data).columns,
    lambda data: learner().encode(data, "x"),
    lambda data: list(learner().batches(data, 4)),
    lambda data: next(learner().batches(data, 4)),
    lambda data: list(islice(learner().batches(data, 4), 1)),
    lambda data: train(learner(), data, adjust=lambda model, batch: batch.inputs["x"]),
    lambda data: train(learner(), data, adjust=lambda model, batch: len(batch)),
    lambda data: learner().fit(cross, (b for b in learner().batches(data, 4)), SGD(0.1)),
]


@pytest.mark.parametrize("read", READS)
def test_sealed_rows_are_read_by_nobody(read: Callable[[Dataset], Any]) -> None:
    with pytest.raises(ConfigError, match="uses private rows in another way than by fitting"):
        read(Sealed(rows()))


def test_what_the_hub_knows_anyway_stays_open() -> None:
    data = Sealed(rows())
    assert isinstance(data, Dataset)
    assert (len(data), data.modalities, data.classes) == (40, ("x",), ("a", "b", "c"))
    assert repr(data) == "Sealed(40 rows of x)"
    # Sealed twice is sealed once: training still finds the rows.
    assert train(learner(), Sealed(data)) == 0


def test_open_rows_are_trained_on_as_ever() -> None:
    plain, sealing = learner(), learner()
    plain.fitter = None
    losses = [train(found, rows(), steps=3) for found in (plain, sealing)]
    assert losses[0] == losses[1] > 0
    assert torch.equal(*[weights_of(found.model)["layers.0.weight"] for found in (plain, sealing)])
    assert guard_of(sealing).leave({"n": 1}, passage()) == {"n": 1}


def test_without_noise_clip_and_chance_it_is_a_plain_step_on_all_rows() -> None:
    private, plain = learner(clip=math.inf, noise=0.0), learner()
    plain.fitter = None
    told = train(private, Sealed(rows()), size=40)
    train(plain, rows(), size=40)
    for name, value in weights_of(plain.model).items():
        torch.testing.assert_close(weights_of(private.model)[name], value)
    # The mean loss is a statistic of private rows.
    assert told == 0


def slow(model: nn.Module, loss: Loss, clip: float = math.inf) -> RowGradients:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return RowGradients(model, loss, parameters, clip, opacus=False)


def fast(model: nn.Module, loss: Loss, clip: float = math.inf) -> RowGradients:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return RowGradients(model, loss, parameters, clip)


def batch(count: int = 12) -> Batch:
    return rows(40).batch(torch.arange(count))


def convolved() -> Net:
    convolution = [nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.GroupNorm(2, 4)]
    return Net(*convolution, nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize(
    "build",
    [
        deep,
        Net,
        lambda: Net(
            nn.Unflatten(1, (1, 6)),
            nn.Conv1d(1, 4, 3),
            nn.GroupNorm(2, 4),
            nn.Flatten(),
            nn.Linear(16, 3),
        ),
    ],
)
def test_both_ways_to_the_gradients_of_rows_agree(build: Callable[[], nn.Module]) -> None:
    with seeded(1, "weights"):
        model = build().train()
    with fast(model, cross, 0.3) as quick:
        found = quick.clipped_sum(batch())
        assert quick.fast
    torch.testing.assert_close(
        found, slow(model, cross, 0.3).clipped_sum(batch()), rtol=1e-4, atol=1e-6
    )
    # Nothing of it stays in the model.
    assert not any(hasattr(p, "grad_sample") for p in model.parameters())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


@pytest.mark.parametrize("loss", [contrast, total])
def test_where_opacus_is_wrong_it_is_row_by_row(loss: Loss) -> None:
    with seeded(1, "weights"):
        model = deep().train()
    with fast(model, loss, 0.3) as quick:
        found = quick.clipped_sum(batch())
        assert quick.fast is False
    torch.testing.assert_close(found, slow(model, loss, 0.3).clipped_sum(batch()))


class Odd(Net):
    """Parameters outside any layer, which Opacus does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterDict({"one": nn.Parameter(torch.tensor(2.0))})

    def forward(self, batch: Batch) -> Output:
        logits = super().forward(batch).logits
        assert logits is not None
        return Output(logits * self.scales["one"])


class Twice(Net):
    """A layer whose second output goes nowhere, which confuses notes of activations."""

    def forward(self, batch: Batch) -> Output:
        found = super().forward(batch)
        self.layers(batch.inputs["x"] * 7)
        return found


@pytest.mark.parametrize("build", [Odd, Twice])
def test_models_that_opacus_gets_wrong_are_done_row_by_row(build: type[Net]) -> None:
    with seeded(1, "weights"):
        model = build().train()
    with fast(model, cross) as quick:
        found = quick.clipped_sum(batch())
        assert quick.fast is False
    torch.testing.assert_close(found, slow(model, cross).clipped_sum(batch()))


def test_dropout_does_not_hide_that_both_ways_agree() -> None:
    with seeded(1, "weights"):
        model = Net(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    with seeded(3), fast(model, cross) as quick:
        quick.clipped_sum(batch())
        assert quick.fast
    assert all(module.training for module in model.modules())


def test_rows_that_lack_a_modality_are_done_one_by_one() -> None:
    with seeded(1, "weights"):
        model = deep().train()
    lacking = batch()
    lacking.present["x"][3] = False
    with fast(model, cross) as quick:
        quick.clipped_sum(lacking)
        assert quick.fast is None


def test_no_row_moves_the_sum_by_more_than_the_clip() -> None:
    with seeded(1, "weights"):
        model = deep().train()
    for build in (fast, slow):
        with build(model, cross, 0.2) as gradients:
            whole = gradients.clipped_sum(batch(12))
            without = gradients.clipped_sum(batch(11))
        assert float((whole - without).norm()) <= 0.2 * (1 + 1e-4)
    huge = batch(12)
    huge.inputs["x"][11] *= 1e6  # type: ignore[index]
    with seeded(1, "weights"):
        wide = Net().train()
    # Far from its label: a row that is sure and right has no gradient.
    huge.labels[11] = wide(huge).logits[11].argmin()  # type: ignore[index]
    with slow(wide, cross, 0.2) as gradients:
        gap = gradients.clipped_sum(huge) - gradients.clipped_sum(batch(11))
    assert float(gap.norm()) == pytest.approx(0.2, rel=1e-3)


def test_noise_is_z_clips_on_the_sum_over_the_expected_size() -> None:
    steps = []
    for seed in range(200):
        found = [learner(Net, clip=0.5, noise=z) for z in (2.0, 0.0)]
        changes = []
        for one in found:
            one.key = ("train", f"0.{seed}.1")
            before = weights_of(one.model)
            train(one, Sealed(rows()), lr=1.0)
            changes.append(moved(one, before))
        steps.append(changes[0] - changes[1])
    # Batches are of 10 rows on average.
    assert float(torch.stack(steps).std()) == pytest.approx(2.0 * 0.5 / 10, rel=0.1)


def test_rows_are_drawn_by_chance_and_an_empty_batch_is_a_step() -> None:
    seen: list[int] = []

    def counting(model: nn.Module, given: Batch) -> Tensor:
        seen.extend(given.rows.tolist())
        return cross(model, given)

    found = learner(Net, clip=1.0, noise=0.0)
    found.key = ("train", "0.5.1")
    sealed = Sealed(rows(4))
    before = weights_of(found.model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RowGradients, "_agrees", lambda self, given: False)
        train(found, sealed, counting, size=1, steps=400)
    # A chance of 1/4 for each of 4 rows: 400 on average, and some of 400 batches empty.
    assert 320 < len(seen) < 480
    assert set(seen) == {0, 1, 2, 3}
    assert float(moved(found, before).norm()) > 0


def test_no_row_at_all_is_a_step_of_noise() -> None:
    found = learner(Net, clip=1.0, noise=1.0)
    before = weights_of(found.model)

    def drawn(tag: str) -> bool:
        rng = generator(0, "a", "train", tag, "batches", "rows drawn", 0)
        return bool((torch.rand(3, generator=rng) < 1 / 3).any())

    # A moment at which not one of the 3 rows is drawn.
    found.key = ("train", next(tag for tag in map(str, range(100)) if not drawn(tag)))
    train(found, Sealed(rows(3)), size=1)
    assert 0.3 < float(moved(found, before).std()) / 0.5 < 2


def test_frozen_parameters_neither_move_nor_count() -> None:
    def build() -> nn.Module:
        return Net(freeze(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3))

    found = learner(build)
    before = {name: value.clone() for name, value in found.model.state_dict().items()}
    train(found, Sealed(rows()), steps=3)
    after = found.model.state_dict()
    assert torch.equal(before["layers.0.weight"], after["layers.0.weight"])
    assert not torch.equal(before["layers.2.weight"], after["layers.2.weight"])


def test_batch_norm_is_refused_and_another_is_named() -> None:
    found = learner(lambda: Net(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    with pytest.raises(ConfigError, match=r"layers\.1 is a BatchNorm1d.*needs GroupNorm"):
        train(found, Sealed(rows()))


class Watching(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, batch: Batch) -> Output:
        self.seen += batch.inputs["x"].detach().sum(dim=0)
        return super().forward(batch)


def test_a_statistic_that_training_keeps_is_refused() -> None:
    with pytest.raises(ConfigError, match="changes the model's seen, a statistic of private rows"):
        train(learner(Watching), Sealed(rows()))


def test_a_graph_is_refused() -> None:
    data = Dataset({"graph": torch.zeros(4, 2)}, labels=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ConfigError, match="nodes of a graph depend on their neighbours"):
        train(learner(), Sealed(data))


def test_weights_that_are_spoilt_are_told() -> None:
    with pytest.raises(SiteError, match="became infinite or NaN"):
        train(learner(noise=1000.0), Sealed(rows()), lr=1e38, steps=3)


def test_a_row_without_a_finite_gradient_counts_as_none() -> None:
    data = rows(4)
    data.columns["x"][1] = math.nan  # type: ignore[index]
    found = learner(Net, clip=1.0, noise=0.0)
    train(found, Sealed(data), size=4)
    assert all(bool(value.isfinite().all()) for value in weights_of(found.model).values())


def test_adjusting_sees_noised_gradients() -> None:
    found = learner(Net, clip=1.0, noise=0.0)
    before = weights_of(found.model)

    def reverse(model: nn.Module, given: Batch) -> None:
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.zero_()

    train(found, Sealed(rows()), adjust=reverse)
    assert float(moved(found, before).norm()) == 0


def test_every_step_of_all_rounds_is_counted_once() -> None:
    found, memory = learner(noise=1.3), {}
    for number in range(3):
        found.key = ("train", f"0.{number}.1")
        train(found, Sealed(rows()), epochs=2, steps=None)
        train(found, Sealed(rows()), steps=1, key="again")
        # As after a crash, with what was kept.
        memory = dict(memory)
        note = guard_of(found).leave({"w": 1}, passage(memory, f"0.{number}.1"))[SPENT]
        # Two epochs of 40 / 10 steps, and one more.
        steps = 9 * (number + 1)
        expected = gaussian_epsilon(1.3, 10 / 40, steps, default_delta(40))
        assert note["epsilon"] == pytest.approx(expected, abs=1e-9)
        assert note["unit"] == "row"
    # A reply for which nothing was trained says nothing, and adds nothing.
    assert guard_of(found).leave({"w": 1}, passage(memory, "0.9.9")) == {"w": 1}


def test_an_operation_that_failed_released_nothing() -> None:
    found = learner(noise=1.3)
    train(found, Sealed(rows()), steps=50)
    found.key = ("train", "0.1.1")
    train(found, Sealed(rows()), steps=2)
    note = guard_of(found).leave({}, passage({}, "0.1.1"))[SPENT]
    expected = gaussian_epsilon(1.3, 10 / 40, 2, default_delta(40))
    assert note["epsilon"] == pytest.approx(expected, abs=1e-9)


def test_a_site_that_has_spent_its_budget_holds_its_reply_back() -> None:
    found = learner(noise=1.0, epsilon=0.5, delta=1e-3)
    train(found, Sealed(rows()), steps=50)
    memory: Tree = {}
    with pytest.raises(BudgetError, match="budget is spent"):
        guard_of(found).leave({}, passage(memory))
    assert memory == {}


def test_it_learns() -> None:
    found = learner(Net, clip=1.0, noise=0.5)
    data = rows(400)
    before = float(cross(found.model, data.batch(torch.arange(400))).detach())
    train(found, Sealed(data), size=50, epochs=5, steps=None)
    after = float(cross(found.model, data.batch(torch.arange(400))).detach())
    assert after < 0.8 * before


def test_the_noise_is_the_moments_own() -> None:
    def after(tag: str) -> Tensor:
        found = learner(Net)
        found.key = ("train", tag)
        train(found, Sealed(rows()), steps=2)
        return weights_of(found.model)["layers.0.weight"]

    assert torch.equal(after("0.0.1"), after("0.0.1"))
    assert not torch.equal(after("0.0.1"), after("0.1.1"))
