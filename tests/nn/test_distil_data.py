from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core import DataError, Dataset, Site, SiteSpec, freeze, weights_of
from motet.core.rng import generator, seeded
from motet.models.base import MultimodalModel
from motet.models.pixels import CNN, PixelMLP
from motet.nn import distil_data as synthesis

LABELS = torch.tensor([0, 0, 1, 1, 1, 2])


@pytest.fixture(autouse=True)
def _keyed() -> Iterator[None]:
    with seeded(0, "distil tests"):
        yield


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "distil", *shape))


def model(norm: str = "instance") -> MultimodalModel:
    encoder = CNN(width=8, maps=(4, 4), kernel=3, norm=norm, side=8, pool="mean")  # type: ignore[arg-type]
    return MultimodalModel({"image": encoder}, classes=3)


def rows(n: int = 30) -> synthesis.Rows:
    labels = torch.arange(n) % 3
    return {"values": draw(n, 1, 8, 8) + labels.view(-1, 1, 1, 1), "labels": labels}


def test_labelled_rows_leave_out_rows_without_a_label() -> None:
    found = synthesis.labelled_rows(
        Dataset({"image": draw(6, 1, 8, 8)}, LABELS - (LABELS == 2) * 102)
    )
    assert found["labels"].tolist() == [0, 0, 1, 1, 1]
    assert found["values"].shape == (5, 1, 8, 8)


@pytest.mark.parametrize(
    "data",
    [
        Dataset({"image": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)}, torch.tensor([0, 1])),
        Dataset({"text": ("a", "b")}, torch.tensor([0, 1])),
        Dataset({"image": torch.zeros(2, 1, 4, 4)}),
    ],
)
def test_what_cannot_be_painted_is_refused(data: Dataset) -> None:
    with pytest.raises(DataError, match="fractions"):
        synthesis.labelled_rows(data)


@pytest.mark.parametrize("count", [0, 2])
def test_a_site_without_labelled_rows_is_named(count: int) -> None:
    data = Dataset({"image": torch.zeros(count, 1, 8, 8)}, torch.full((count,), -100))
    site = Site(SiteSpec("ward-1", data, build=nn.Identity), seed=0, public=None, evaluate=None)
    with pytest.raises(DataError, match="ward-1 has no rows to paint after"):
        synthesis.real_rows(site)


def test_class_statistics_are_of_the_class_alone() -> None:
    values = draw(6, 2, 3, 3)
    found = synthesis.class_statistics({"values": values, "labels": LABELS})
    assert sorted(found) == ["0", "1", "2"]
    for label in range(3):
        for channel in range(2):
            mine = values[label == LABELS][:, channel]
            expected = torch.stack([mine.mean(), mine.std(correction=0)])
            torch.testing.assert_close(found[str(label)][:, channel], expected)


def test_noise_has_the_statistics_by_class_and_channel() -> None:
    # Ten classes and more would be out of order as texts.
    found = {str(k): torch.tensor([[k, -k], [1.0, 2.0]], dtype=torch.float32) for k in (2, 10)}
    made = synthesis.noise_like(found, (2, 5, 5), 200, generator(1))
    assert made["labels"].tolist() == [2] * 200 + [10] * 200
    means = made["values"].view(2, 200, 2, 25).mean(dim=(1, 3))
    torch.testing.assert_close(means, torch.tensor([[2.0, -2], [10, -10]]), atol=0.15, rtol=0)
    spreads = made["values"].view(2, 200, 2, 25).std(dim=(1, 3))
    torch.testing.assert_close(spreads, torch.tensor([[1.0, 2], [1, 2]]), atol=0.1, rtol=0)
    flat = synthesis.noise_of({"values": draw(6, 4), "labels": LABELS}, 2, generator(1))
    assert flat["values"].shape == (6, 4)


def test_some_of_draws_each_class_and_repeats_only_what_is_short() -> None:
    given = {"values": torch.arange(6.0).unsqueeze(1), "labels": LABELS}
    made = synthesis.some_of(given, 3, generator(1))
    assert made["labels"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    values = made["values"].flatten().tolist()
    assert sorted(values[3:6]) == [2, 3, 4]
    assert set(values[:3]) == {0, 1}
    assert values[6:] == [5, 5, 5]
    assert synthesis.joined(given, made)["labels"].tolist() == [
        *LABELS.tolist(),
        *[0] * 3,
        *[1] * 3,
        *[2] * 3,
    ]


def test_shifted_labels_go_round() -> None:
    assert synthesis.shifted(rows(3), 1, 3)["labels"].tolist() == [1, 2, 0]
    assert synthesis.shifted(rows(3), 0, 3)["labels"].tolist() == [0, 1, 2]


def test_distribution_matching_is_the_formula_and_real_rows_are_constant() -> None:
    real, synthetic = draw(6, 4).requires_grad_(), draw(5, 4).requires_grad_()
    labels = torch.tensor([0, 1, 1, 0, 0])
    loss = synthesis.distribution_matching(real, LABELS, synthetic, labels)
    expected = sum(
        (real[k == LABELS].mean(dim=0) - synthetic[labels == k].mean(dim=0)).square().sum()
        for k in (0, 1)
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert real.grad is None
    assert float(synthetic.grad.abs().min()) > 0


def test_gradient_matching_is_per_output_row_and_knows_no_lengths() -> None:
    target = {"kernel": draw(4, 2, 3, 3), "bias": draw(4), "last": draw(3, 5)}
    same = {name: 7 * value for name, value in target.items()}
    assert float(synthesis.gradient_matching(same, target)) == pytest.approx(0, abs=1e-4)
    opposite = {name: -value for name, value in target.items()}
    assert float(synthesis.gradient_matching(opposite, target)) == pytest.approx(14, abs=1e-4)
    zero = {name: torch.zeros_like(value) for name, value in target.items()}
    assert float(synthesis.gradient_matching(zero, target)) == pytest.approx(7)
    # One row turned round costs 2, whatever the others are; vectors do not count.
    turned = {**same, "kernel": same["kernel"].clone(), "bias": -same["bias"]}
    turned["kernel"][1] *= -3
    assert float(synthesis.gradient_matching(turned, target)) == pytest.approx(2, abs=1e-4)


def supcon_by_hand(features: Tensor, labels: Tensor, tau: float) -> float:
    unit = [row / row.norm() for row in features.double()]
    total = 0.0
    for i, mine in enumerate(unit):
        others = [a for a in range(len(unit)) if a != i]
        below = sum(math.exp(float(mine @ unit[a]) / tau) for a in others)
        positives = [p for p in others if labels[p] == labels[i]]
        logs = [-math.log(math.exp(float(mine @ unit[p]) / tau) / below) for p in positives]
        total += sum(logs) / len(logs) if logs else 0.0
    return total / len(unit)


def test_sup_con_is_the_formula_and_rows_without_partner_count_0() -> None:
    features = draw(6, 5).requires_grad_()
    loss = synthesis.sup_con(features, LABELS, tau=0.3)
    expected = supcon_by_hand(features.detach(), LABELS, 0.3)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    # The last row has no partner, but the others are pushed away from it and it from them.
    assert float(features.grad.abs().sum(dim=1).min()) > 1e-4
    alone = draw(1, 5).requires_grad_()
    synthesis.sup_con(alone, torch.tensor([0])).backward()
    assert torch.equal(alone.grad, torch.zeros(1, 5))


def test_sup_con_is_low_where_classes_are_apart() -> None:
    apart = torch.eye(3)[LABELS]
    mixed = torch.eye(3)[torch.tensor([0, 1, 2, 0, 1, 2])]
    assert float(synthesis.sup_con(apart, LABELS)) < 1 < float(synthesis.sup_con(mixed, LABELS))


def test_painting_is_sgd_with_momentum_on_the_values_alone() -> None:
    given = {"values": torch.tensor([[4.0]]), "labels": torch.tensor([0])}
    made, losses = synthesis.paint(given, lambda x: x.square().sum(), steps=3, lr=0.1, momentum=0.5)
    x, v, expected = 4.0, 0.0, []
    for _ in range(3):
        expected.append(x * x)
        v = 0.5 * v + 2 * x
        x -= 0.1 * v
    assert losses == pytest.approx(expected)
    assert float(made["values"]) == pytest.approx(x)
    assert not made["values"].requires_grad
    assert float(given["values"]) == 4
    same, none = synthesis.paint(given, lambda x: x.sum(), steps=0, lr=1, momentum=0)
    assert torch.equal(same["values"], given["values"])
    assert none == []


def test_a_distribution_loss_uses_only_the_classes_and_as_many_rows_as_it_should() -> None:
    seen: list[int] = []

    def features(values: Tensor) -> Tensor:
        seen.append(len(values))
        return values.flatten(1)

    labels = torch.tensor([0, 2, 2])
    loss = synthesis.distribution_loss(
        rows(), labels, lambda: features, batch=4, changes=(), rng=generator(0)
    )
    painted = draw(3, 1, 8, 8)
    assert float(loss(painted)) > 0
    assert seen == [8, 3]
    every = synthesis.distribution_loss(
        rows(), labels, lambda: features, batch=99, changes=(), rng=generator(0)
    )
    real = rows()
    expected = synthesis.distribution_matching(
        real["values"].flatten(1), real["labels"], painted.flatten(1), labels
    )
    torch.testing.assert_close(every(painted), expected)


def test_real_and_synthetic_pictures_of_a_class_are_changed_alike() -> None:
    # With one and the same picture on both sides, changes cannot tell them apart.
    one = {"values": draw(3, 1, 8, 8), "labels": torch.arange(3)}
    loss = synthesis.distribution_loss(
        one,
        one["labels"],
        lambda: lambda x: x.flatten(1),
        batch=1,
        changes=("flip", "shift", "rotate", "brightness", "cutout"),
        rng=generator(0),
    )
    for _ in range(5):
        assert float(loss(one["values"])) == pytest.approx(0, abs=1e-9)


def test_painting_towards_real_rows_brings_features_together() -> None:
    real = rows()
    start = synthesis.noise_of(real, 2, generator(3))
    look = synthesis.looking_through(model())
    loss = synthesis.distribution_loss(
        real, start["labels"], look, batch=10, changes=(), rng=generator(0)
    )
    _, losses = synthesis.paint(start, loss, steps=60, lr=20.0, momentum=0.5)
    assert synthesis.share_left(losses) < 0.3
    assert synthesis.share_left([]) == 1
    assert synthesis.share_left([4, 2, 1], edge=1) == 0.25


def sgd_gradient(net: MultimodalModel, made: synthesis.Rows) -> dict[str, Tensor]:
    net.zero_grad()
    F.cross_entropy(net(synthesis.as_batch(net, made["values"])).logits, made["labels"]).backward()
    return {
        name: value.grad.clone() for name, value in net.named_parameters() if value.grad is not None
    }


def test_the_gradient_of_the_rows_themselves_is_matched_at_once() -> None:
    net, made = model(), rows(9)
    # Long, since rows whose gradients are about 1e-3 and less are beneath notice.
    target = {name: 1e4 * value for name, value in sgd_gradient(net, made).items()}
    loss = synthesis.gradient_loss(net, made["labels"], target)
    # Rows of 4 + 4 + 8 + 3: biases and norms do not count.
    assert float(loss(made["values"]).detach()) == pytest.approx(0, abs=0.01)
    wrong = {name: -value for name, value in target.items()}
    away = synthesis.gradient_loss(net, made["labels"], wrong)
    assert float(away(made["values"]).detach()) == pytest.approx(2 * 19, abs=0.01)


def test_gradient_matching_is_differentiated_twice() -> None:
    net, made = model().double(), rows(4)
    target = {name: torch.randn_like(value) for name, value in net.named_parameters()}
    loss = synthesis.gradient_loss(net, made["labels"], target)
    values = made["values"].double().requires_grad_()
    (slope,) = torch.autograd.grad(loss(values), values)
    direction = draw(*values.shape).double()
    step = 1e-5
    ahead, behind = loss(values + step * direction), loss(values - step * direction)
    expected = float((ahead - behind).detach()) / (2 * step)
    assert float((slope * direction).sum()) == pytest.approx(expected, rel=1e-3)


def test_painting_the_hubs_rows_leaves_the_model_as_it_was() -> None:
    net, made = model("batch"), rows(6)
    before = weights_of(net)
    target = {name: torch.ones_like(value) for name, value in net.named_parameters()}
    loss = synthesis.gradient_loss(net, made["labels"], target)
    painted, losses = synthesis.paint(made, loss, steps=5, lr=1.0, momentum=0.5)
    assert losses[-1] < losses[0]
    synthesis.looking_through(net)()(painted["values"])
    after = weights_of(net)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(value.grad is None for value in net.parameters())


def test_fresh_networks_differ_from_step_to_step_and_fixed_ones_do_not() -> None:
    net, x = model(), draw(2, 1, 8, 8)
    fixed, fresh = synthesis.looking_through(net), synthesis.looking_through(net, fresh=True)
    expected = net(synthesis.as_batch(net, x)).aux["embedding"]
    assert torch.equal(fixed()(x), expected)
    assert torch.equal(fixed()(x), expected)
    first = fresh()(x)
    assert not torch.equal(first, expected)
    assert not torch.equal(first, fresh()(x))


def test_frozen_layers_are_not_drawn_anew() -> None:
    net = nn.Sequential(freeze(nn.Linear(3, 3)), nn.Linear(3, 3))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    synthesis.reinitialise(net)
    changed = {
        name for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"1.weight", "1.bias"}


def test_rows_are_not_prepared_once_more() -> None:
    net, made = model(), rows(5)
    ready = net.prepare(synthesis.as_dataset(net, made))
    assert ready.columns["image"] is made["values"]
    assert torch.equal(ready.labels, made["labels"])


def test_alignment_is_cross_entropy_and_the_contrast_with_all_anchors() -> None:
    net, made, anchors = model(), rows(5), rows(6)
    batch = synthesis.as_dataset(net, made).batch(torch.arange(5))
    loss = synthesis.aligned_loss(anchors, 0.7, 0.2)(net, batch)
    output = net(batch)
    features = [output.aux["embedding"], synthesis.embed(net, anchors["values"])]
    labels = torch.cat([made["labels"], anchors["labels"]])
    contrast = synthesis.sup_con(torch.cat(features), labels, 0.2)
    expected = F.cross_entropy(output.logits, made["labels"]) + 0.7 * contrast
    torch.testing.assert_close(loss, expected)


def test_a_network_learns_from_rows_that_mean_something() -> None:
    class Party:
        model = MultimodalModel({"image": PixelMLP(width=8, side=8)}, classes=3)

        def prepared(self, data: Dataset) -> Dataset:
            return data

    made = rows(30)
    test = Dataset({"image": made["values"]}, made["labels"])
    right = synthesis.taught_alone(Party(), made, test, steps=80, lr=0.1)  # type: ignore[arg-type]
    wrong = synthesis.shifted(made, 1, 3)
    assert right > 80
    assert synthesis.taught_alone(Party(), wrong, test, steps=80, lr=0.1) < 20  # type: ignore[arg-type]
