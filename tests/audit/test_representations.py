from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from motet.audit.representations import (
    RIDGES,
    WIDTHS,
    fit,
    mean_picture,
    nearest_pictures,
    nearest_texts,
    overlap,
    pictures_from,
    ranks_among,
)
from motet.core import DataError


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, seed: int = 0) -> Tensor:
    """Pictures [n, 1, 4, 4] in 0..1 that vary in three ways."""
    codes = torch.rand(count, 3, generator=rng(seed))
    basis = torch.rand(3, 16, generator=rng(99))
    return (codes @ basis / 3).view(count, 1, 4, 4)


def sent_for(pictures: Tensor) -> Tensor:
    """What a site sends: unit vectors of a fixed curved map of the pictures."""
    weights = torch.randn(16, 12, generator=rng(5)) / 2
    return F.normalize((pictures.flatten(1) @ weights).tanh(), dim=1)


def squared(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean())


@pytest.mark.usefixtures("rng_untouched")
def test_pictures_come_back_from_what_was_sent_for_them() -> None:
    known, truth = pictures(120), pictures(30, 1)
    made = pictures_from(sent_for(known), known, sent_for(truth))
    assert made.shape == truth.shape
    assert 0 <= float(made.min()) <= float(made.max()) <= 1
    guess = squared(mean_picture(known, 30), truth)
    assert squared(made, truth) < guess / 20
    assert squared(made, truth) < squared(
        nearest_pictures(sent_for(known), known, sent_for(truth)), truth
    )


def test_representations_of_nothing_give_the_mean_picture() -> None:
    known, truth = pictures(120), pictures(30, 1)
    nothing = torch.randn(150, 12, generator=rng(3))
    made = pictures_from(nothing[:120], known, nothing[120:])
    # Left-out rows choose the strongest ridge, since there is nothing to learn.
    assert squared(made, truth) > 0.7 * squared(mean_picture(known, 30), truth)


def test_the_regression_is_the_kernels_closed_form() -> None:
    x = torch.randn(12, 2, generator=rng())
    y = x.sin().sum(dim=1, keepdim=True)
    found = fit(x, y)
    kernel = torch.exp(-torch.cdist(x, x).square() / (found.width * found.unit)).double()
    weights = torch.linalg.solve(
        kernel + found.ridge * torch.eye(12, dtype=torch.float64), (y - y.mean(0)).double()
    )
    at = torch.randn(3, 2, generator=rng(1))
    cross = torch.exp(-torch.cdist(at, x).square() / (found.width * found.unit)).double()
    assert torch.allclose(found(at).double(), cross @ weights + y.mean(), atol=1e-4)


def test_the_ridge_follows_the_noise() -> None:
    x = torch.linspace(-2, 2, 60)[:, None]
    clean = fit(x, x.sin())
    noisy = fit(x, x.sin() + 2 * torch.randn(60, 1, generator=rng(4)))
    assert clean.ridge < noisy.ridge


def test_width_and_ridge_predict_left_out_rows_best() -> None:
    x = torch.randn(14, 2, generator=rng())
    y = x.sin().sum(dim=1) + torch.randn(14, generator=rng(2)) / 3
    found = fit(x, y[:, None])

    def error(width: float, ridge: float) -> float:
        kernel = torch.exp(-torch.cdist(x, x).square() / (width * found.unit)).double()
        total = 0.0
        for i in range(14):
            kept = torch.arange(14) != i
            regular = kernel[kept][:, kept] + ridge * torch.eye(13, dtype=torch.float64)
            weights = torch.linalg.solve(regular, (y - y.mean())[kept].double())
            total += float(kernel[i, kept] @ weights + y.mean() - y[i]) ** 2
        return total

    options = [(width, ridge) for width in WIDTHS for ridge in RIDGES]
    assert (found.width, found.ridge) == min(options, key=lambda option: error(*option))


def test_too_little_to_learn_from_is_said() -> None:
    with pytest.raises(DataError, match="not from 9 for 9 rows"):
        fit(torch.zeros(9, 2), torch.zeros(9, 2))
    with pytest.raises(DataError, match="not from 12 for 11 rows"):
        fit(torch.zeros(12, 2), torch.zeros(11, 2))


def test_equal_rows_are_no_error() -> None:
    found = fit(torch.ones(10, 2), torch.arange(10.0)[:, None])
    assert float(found(torch.ones(1, 2))) == pytest.approx(4.5)


def test_texts_are_recognised_among_candidates() -> None:
    features, candidates = (torch.rand(n, 16, generator=rng(n)) for n in (200, 40))
    weights = torch.randn(16, 12, generator=rng(5))

    def sent(rows: Tensor) -> Tensor:
        return F.normalize(rows @ weights, dim=1)

    ranks = ranks_among(sent(features), features, sent(candidates[:25]), candidates)
    assert ranks.shape == (25,)
    assert float((ranks == 1).float().mean()) > 0.9
    blind = ranks_among(
        torch.randn(200, 12, generator=rng(8)), features, sent(candidates[:25]), candidates
    )
    assert float(blind.float().mean()) > 10


def test_of_equals_the_right_one_is_last() -> None:
    features = torch.rand(30, 4, generator=rng())
    ranks = ranks_among(torch.ones(30, 3), features, torch.ones(2, 3), features[:5])
    assert ranks.tolist() == [5, 5]


def test_nearest_known_rows() -> None:
    known = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    unknown = torch.tensor([[0.9, 0.8], [0.1, 0.0], [2.0, 2.0]])
    assert nearest_texts(known, ["a", "b"], unknown) == ["b", "a", "b"]
    shown = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    found = nearest_pictures(known, shown, unknown)
    assert found.mean(dim=(1, 2, 3)).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "other", "share"),
    [("A cat, sleeping", "a cat", 2 / 3), ("cat", "dog", 0), ("", "", 0), ("Sun!", "sun", 1)],
)
def test_overlap_is_the_share_of_common_words(text: str, other: str, share: float) -> None:
    assert overlap(text, other) == pytest.approx(share)
