"""Scores against their formulas, worked out another way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.audit.victims import pictures, rng

from motet.audit.scores import (
    chance,
    feature_mse,
    label_recovery,
    matched,
    psnr,
    ssim,
    ssim_window,
)


def test_psnr_is_of_each_picture_and_at_most_100() -> None:
    truth = torch.full((3, 1, 4, 4), 0.5)
    made = truth + torch.tensor([0.0, 0.1, 0.01]).reshape(3, 1, 1, 1)
    assert psnr(made, truth).tolist() == pytest.approx([100, 20, 40], abs=1e-3)


def by_hand(a: np.ndarray, b: np.ndarray, side: int) -> float:
    """SSIM window by window, with weighted moments about the window's own mean."""
    at = np.arange(side) - (side - 1) / 2
    line = np.exp(-(at**2) / (2 * 1.5**2))
    w = np.outer(line, line)
    w /= w.sum()
    found = []
    for i in range(a.shape[0] - side + 1):
        for j in range(a.shape[1] - side + 1):
            x, y = a[i : i + side, j : j + side], b[i : i + side, j : j + side]
            mx, my = (w * x).sum(), (w * y).sum()
            vx, vy = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum()
            both = (w * (x - mx) * (y - my)).sum()
            top = (2 * mx * my + 1e-4) * (2 * both + 9e-4)
            found.append(top / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return float(np.mean(found))


@pytest.mark.parametrize(("side", "window"), [(16, 11), (11, 11), (8, 7), (5, 5)])
def test_ssim_is_its_formula(side: int, window: int) -> None:
    a = torch.rand((2, 3, side, side), generator=rng(1)).double()
    b = (a + 0.3 * torch.randn(a.shape, generator=rng(2)).double()).clamp(0, 1)
    assert ssim_window(side, side) == window
    for i, value in enumerate(ssim(a, b).tolist()):
        channels = [by_hand(a[i, c].numpy(), b[i, c].numpy(), window) for c in range(3)]
        assert value == pytest.approx(np.mean(channels), abs=1e-9)


def test_ssim_of_equal_pictures_is_1() -> None:
    assert ssim(pictures(2), pictures(2)).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_a_narrow_picture_gets_a_narrow_window() -> None:
    assert ssim_window(6, 20) == 5
    assert ssim_window(28, 28) == 11


def test_pictures_are_matched_to_their_truths() -> None:
    truth = torch.rand((5, 1, 4, 4), generator=rng())
    order = torch.tensor([3, 0, 4, 1, 2])
    made = truth[order] + 0.05 * torch.rand(truth.shape, generator=rng(1))
    assert order[matched(made, truth)].tolist() == [0, 1, 2, 3, 4]


def test_the_match_is_the_best_of_all_and_not_a_greedy_one() -> None:
    truth = torch.tensor([0.0, 0.5]).reshape(2, 1, 1, 1)
    made = torch.tensor([0.45, 1.2]).reshape(2, 1, 1, 1)
    # Taking the closest pair first would leave 0 with 1.2.
    assert matched(made, truth).tolist() == [0, 1]


def test_one_picture_is_its_own_match() -> None:
    assert matched(pictures(1), pictures(1)).tolist() == [0]


def test_labels_count_as_often_as_they_occur() -> None:
    truth = torch.tensor([1, 1, 2, 3])
    assert label_recovery(torch.tensor([3, 1, 1, 2]), truth) == 1
    assert label_recovery(torch.tensor([1, 1, 1, 1]), truth) == 0.5
    assert label_recovery(torch.tensor([0, 0, 0, 0]), truth) == 0


def test_chance_is_of_the_mean_and_the_nearest_public_picture() -> None:
    public = torch.tensor([0.0, 0.4, 0.8]).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    truth = torch.tensor([0.5, 0.9]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    found = chance(truth, public)
    by_mean = [-20 * math.log10(0.1), -20 * math.log10(0.5)]
    assert found.mean == pytest.approx(np.mean(by_mean), abs=1e-3)
    assert found.nearest == pytest.approx(20, abs=1e-3)


def test_fmse_is_the_mean_error_of_features_per_picture() -> None:
    a, b = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    b[1] = 0
    made = feature_mse(lambda x: 2 * x.flatten(1), a, b)
    assert made.tolist() == [4, 0]
