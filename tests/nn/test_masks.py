from __future__ import annotations

import pytest
import torch
from torch import nn

from motet.core import load, weights_of
from motet.nn.masks import Mask, add_masks, all_but_masks, distance, masks_of, mean_size

X = torch.eye(3)


def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(2)
        return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def masked(prune: float = 0.0) -> tuple[nn.Sequential, list[torch.Tensor]]:
    made = model()
    add_masks(made, prune)
    return made, masks_of(made)


def test_masks_of_one_change_nothing() -> None:
    made, masks = masked(0.5)
    assert [mask.shape for mask in masks] == [(4, 3), (2, 4)]
    assert torch.equal(made(X), model()(X))
    assert torch.equal(made.eval()(X), model()(X))


def test_a_mask_multiplies_weights_and_not_biases() -> None:
    made, masks = masked()
    with torch.no_grad():
        for mask in masks:
            mask.zero_()
    assert torch.equal(made[0](X), model()[0].bias.expand(3, 4))
    with torch.no_grad():
        masks[0].fill_(2.0)
    plain = model()[0]
    assert torch.allclose(made[0](X), 2 * X @ plain.weight.T + plain.bias)


def test_small_entries_count_as_zero_in_evaluation_alone() -> None:
    mask = Mask(torch.ones(4), prune=0.1)
    with torch.no_grad():
        mask.mask.copy_(torch.tensor([0.1, 0.09, -0.09, -0.2]))
    assert mask(torch.ones(4)).tolist() == pytest.approx([0.1, 0.09, -0.09, -0.2])
    assert mask.eval()(torch.ones(4)).tolist() == pytest.approx([0.1, 0.0, 0.0, -0.2])
    # What was pruned can still come back.
    assert mask.mask.tolist() == pytest.approx([0.1, 0.09, -0.09, -0.2])


def test_weights_and_masks_are_both_trained() -> None:
    made, masks = masked()
    made(X).square().sum().backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in masks)
    names = [name for name, value in made.named_parameters() if value.grad is None]
    assert names == []


def test_a_frozen_weight_gets_no_mask() -> None:
    made = model()
    made[0].requires_grad_(False)
    assert [mask.shape for mask in masks_of(add_masks(made))] == [(2, 4)]


def test_all_but_masks_is_the_model_without_them() -> None:
    made, masks = masked()
    before = weights_of(made, all_but_masks(made))
    assert sorted(value.numel() for value in before.values()) == sorted(
        value.numel() for value in model().parameters()
    )
    with torch.no_grad():
        for mask in masks:
            mask.fill_(3.0)
    after = weights_of(made, all_but_masks(made))
    assert all(torch.equal(before[name], after[name]) for name in before)
    load(made, before, partial=True)
    assert all(bool((mask == 3.0).all()) for mask in masks)


def test_the_mean_size_is_over_all_entries() -> None:
    masks = [torch.tensor([[1.0, -3.0]]), torch.tensor([[0.5], [0.5], [0.0]])]
    assert float(mean_size(masks)) == pytest.approx(1.0)
    assert float(mean_size([])) == 0.0
    leaf = torch.full((2, 5), -2.0, requires_grad=True)
    mean_size([leaf]).backward()
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, torch.full((2, 5), -0.1))


def test_the_distance_is_a_sum_of_norms() -> None:
    made = nn.Linear(2, 1)
    received = {name: value.detach().clone() for name, value in made.named_parameters()}
    at_rest = distance(made, received)
    at_rest.backward()
    assert at_rest.item() == 0.0
    assert made.weight.grad is not None
    assert made.weight.grad.tolist() == [[0.0, 0.0]]
    with torch.no_grad():
        made.weight += torch.tensor([[3.0, 4.0]])
        made.bias += 2.0
    made.zero_grad()
    moved = distance(made, received)
    moved.backward()
    assert moved.item() == pytest.approx(7.0)
    assert made.weight.grad.tolist() == [pytest.approx([0.6, 0.8])]
