"""Masked layers: frozen random weights, scores that learn, masks of an exact size."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core import ConfigError, freeze, weights_of
from motet.core.groups import frozen_names
from motet.core.optim import SGD, Optimizer
from motet.nn.edge_popup import (
    Masked,
    edge_mask,
    kept_edges,
    mask_layers,
    masked_layers,
    top_mask,
)

KEYS: list[Literal["abs", "identity"]] = ["abs", "identity"]


def masked(
    layer: nn.Linear | nn.Conv2d | None = None, keep: float = 0.5, key: Any = "abs"
) -> Masked:
    return Masked(layer or nn.Linear(6, 4), keep, key)


@pytest.mark.parametrize(
    ("count", "keep", "kept"),
    [(10, 0.5, 5), (11, 0.5, 6), (10, 0.7, 7), (10, 0.9, 9), (7, 1.0, 7), (3, 0.01, 1)],
)
def test_floor_of_the_rest_is_cut(count: int, keep: float, kept: int) -> None:
    assert kept_edges(count, keep) == kept


@pytest.mark.parametrize("count", [1, 5, 11, 12])
def test_the_mask_is_that_of_a_stable_sort(count: int) -> None:
    key = torch.tensor([[3.0, 1, 2, 2], [2, 5, 0, 2], [2, 1, 1, 3]])
    expected = torch.ones(12)
    expected[key.flatten().argsort(stable=True)[: 12 - count]] = 0
    mask = top_mask(key, count)
    assert torch.equal(mask, expected.view(3, 4))
    assert mask.sum() == count


@pytest.mark.parametrize("count", [0, 13])
def test_a_mask_keeps_something_and_not_more_than_all(count: int) -> None:
    with pytest.raises(ValueError, match="cannot be kept"):
        top_mask(torch.zeros(12), count)


def test_the_key_decides_which_edges_stay() -> None:
    scores = torch.tensor([-4.0, 1, 2, -3])
    assert edge_mask(scores, 2, "abs").tolist() == [1, 0, 0, 1]
    assert edge_mask(scores, 2, "identity").tolist() == [0, 1, 1, 0]


def test_the_gradient_goes_straight_through() -> None:
    scores = torch.tensor([-4.0, 1, 2, -3], requires_grad=True)
    slope = torch.tensor([1.0, 2, 3, 4])
    (edge_mask(scores, 2, "identity") * slope).sum().backward()
    assert torch.equal(scores.grad, slope)
    scores.grad = None
    # Cut edges too, and through the absolute value: downhill is towards 0 from either side.
    (edge_mask(scores, 2, "abs") * slope).sum().backward()
    assert torch.equal(scores.grad, slope * torch.tensor([-1.0, 1, 1, -1]))


def test_weights_have_one_size_and_scores_their_bound() -> None:
    layer = masked(nn.Linear(50, 200))
    assert torch.equal(layer.edges.weight.abs(), torch.full((200, 50), math.sqrt(2 / 50)))
    assert abs(float(layer.edges.weight.sign().mean())) < 0.05
    bound = 1 / math.sqrt(50)
    assert 0.99 * bound < float(layer.levels.abs().max()) <= bound
    conv = masked(nn.Conv2d(3, 8, 5))
    assert torch.equal(conv.edges.weight.abs(), torch.full((8, 3, 5, 5), math.sqrt(2 / 75)))


@pytest.mark.parametrize("key", KEYS)
def test_a_layer_is_the_plain_one_with_its_cut_edges_at_0(key: Any) -> None:
    x = torch.randn(5, 6)
    layer = masked(nn.Linear(6, 4), 0.3, key)
    size = layer.scores.detach().abs() if key == "abs" else layer.scores.detach()
    weight = layer.edges.weight * top_mask(size, 24 - 16)
    torch.testing.assert_close(layer(x), F.linear(x, weight))
    picture = torch.randn(2, 3, 9, 9)
    plain = nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1)
    conv = masked(plain, 1.0, key)
    expected = F.conv2d(picture, conv.edges.weight, None, stride=2, padding=1)
    torch.testing.assert_close(conv(picture), expected)


def test_scores_alone_are_trained_and_decay() -> None:
    layer = masked()
    weight = layer.edges.weight.clone()
    scores = layer.scores.detach().clone()
    optimizer = Optimizer(layer, SGD(0.1, weight_decay=0.5))
    assert [id(value) for value in optimizer.parameters] == [id(layer.scores)]
    optimizer.step(0 * layer(torch.randn(3, 6)).sum())
    assert torch.equal(layer.edges.weight, weight)
    torch.testing.assert_close(layer.scores.detach(), scores * (1 - 0.1 * 0.5))


def test_weights_and_levels_never_travel() -> None:
    model = mask_layers(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), 0.5, "abs")
    assert set(weights_of(model)) == {"0.scores", "2.scores"}
    assert frozen_names(model) == {
        f"{name}.edges.{part}" for name in "02" for part in ("weight", "levels")
    }


def test_equal_seeds_give_equal_networks() -> None:
    def built(seed: int) -> dict[str, Tensor]:
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(seed)
            model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
            return mask_layers(model, 0.5, "abs").state_dict()

    first, same, other = built(1), built(1), built(2)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_an_order_moves_the_initial_scores_and_makes_no_new_ones() -> None:
    layer = masked(nn.Linear(3, 2))
    levels = layer.levels.clone()
    assert torch.equal(layer.scores.detach().flatten().sort().values, levels)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    layer.adopt(order)
    found = layer.scores.detach().flatten().clone()
    assert torch.equal(found[order], levels)
    assert torch.equal(layer.ranking(), order)
    assert torch.equal(layer.levels, levels)
    with torch.no_grad():
        layer.scores.mul_(-3)
    layer.adopt(order)
    assert torch.equal(layer.scores.detach().flatten(), found)


def test_ranking_breaks_ties_by_number() -> None:
    layer = masked(nn.Linear(4, 1))
    with torch.no_grad():
        layer.scores.copy_(torch.tensor([[1.0, 0, 1, 0]]))
    assert layer.ranking().tolist() == [1, 3, 0, 2]


def test_norms_neither_learn_nor_remember() -> None:
    norms = [nn.BatchNorm2d(4), nn.GroupNorm(2, 4, 1e-3), nn.LayerNorm((4, 8, 8), 1e-4)]
    layers = [nn.Conv2d(1, 4, 3, padding=1), *norms]
    model = mask_layers(nn.Sequential(*layers), 0.5, "abs")
    assert set(weights_of(model)) == {"0.scores"}
    assert [model[2].eps, model[3].eps] == [1e-3, 1e-4]
    x = torch.randn(6, 1, 8, 8)
    model.train()
    trained = model(x)
    model.eval()
    torch.testing.assert_close(model(x), trained)


def test_the_model_s_frozen_trunk_stays() -> None:
    trunk = freeze(nn.Linear(3, 3))
    model = mask_layers(nn.Sequential(trunk, nn.Linear(3, 2)), 0.5, "abs")
    assert model[0] is trunk
    assert list(masked_layers(model)) == ["1"]


@pytest.mark.parametrize(
    "other", [nn.GRU(3, 3), nn.Embedding(4, 3), nn.MultiheadAttention(4, 2), nn.PReLU()]
)
def test_models_that_learn_something_else_are_refused(other: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"other weights are 0\..*choose encoders"):
        mask_layers(nn.Sequential(other, nn.Linear(3, 3)), 0.5, "abs")


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match="weights are none"):
        mask_layers(nn.Sequential(nn.ReLU()), 0.5, "abs")
