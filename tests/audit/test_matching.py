"""Distances, projections, and the book-keeping of candidates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.audit.victims import convolutions, pictures, rng, upload

from motet.audit.defences import clip, sparsify
from motet.audit.matching import (
    Match,
    cosine_distance,
    on_sphere,
    project_l1,
    squared_distance,
    total_variation,
)
from motet.audit.upload import Local, upload_of

A = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([2.0])}
B = {"a": torch.tensor([[2.0, 1.0]]), "b": torch.tensor([-2.0])}
LABEL = torch.tensor([2])


def gap(match: Match, picture: torch.Tensor) -> float:
    return float(match(picture, LABEL).detach())


def test_the_cosine_is_of_all_parameters_as_one_vector() -> None:
    assert float(cosine_distance(A, B)) == pytest.approx(1 - (2 + 2 - 4) / 9)
    assert float(cosine_distance(A, A)) == pytest.approx(0, abs=1e-6)
    # The mean of both tensors' cosines would be 1 - (0.8 - 1) / 2 = 1.1.
    assert float(cosine_distance(A, B)) == pytest.approx(1.0)
    assert float(cosine_distance(A, {"a": torch.zeros(1, 2), "b": torch.zeros(1)})) == 1


def test_the_squared_distance_is_summed_over_all_parameters() -> None:
    assert float(squared_distance(A, B)) == 1 + 1 + 16


def test_total_variation_is_the_mean_step_across_plus_down() -> None:
    picture = torch.tensor([[0.0, 1.0], [0.5, 0.5]])[None, None]
    assert float(total_variation(picture)) == pytest.approx((1 + 0) / 2 + (0.5 + 0.5) / 2)


@pytest.mark.parametrize("radius", [0.5, 2.0, 100.0])
def test_the_l1_projection_is_the_nearest_point_of_the_ball(radius: float) -> None:
    rows = 2 * torch.randn((3, 6), generator=rng())
    made = project_l1(rows, radius)
    assert bool((made.abs().sum(dim=1) <= radius + 1e-4).all())
    inside = rows.abs().sum(dim=1) <= radius
    assert torch.equal(made[inside], rows[inside])
    for seed in range(200):
        other = torch.randn((3, 6), generator=rng(seed))
        other = radius * other / other.abs().sum(dim=1, keepdim=True).clamp(min=1)
        gaps = (rows - other).norm(dim=1) - (rows - made).norm(dim=1)
        assert bool((gaps >= -1e-5).all())


def test_the_l1_projection_is_row_by_row() -> None:
    rows = torch.tensor([[3.0, 1.0], [0.1, 0.2]])
    assert project_l1(rows, 2.0).tolist() == [[2.0, 0.0], pytest.approx([0.1, 0.2])]


def test_every_row_is_put_on_its_own_sphere() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    made = on_sphere(rows, torch.tensor([[1.0], [5.0]]))
    torch.testing.assert_close(made, torch.tensor([[0.6, 0.8], [0.0, 5.0]]))


def test_the_truth_is_at_distance_0_and_others_are_not() -> None:
    match = Match(upload(), 10, "cosine", None)
    assert gap(match, pictures(1)) == pytest.approx(0, abs=1e-5)
    assert gap(match, pictures(1, seed=3)) > 0.01


@pytest.mark.parametrize("measure", ["cosine", "squared"])
def test_masks_and_bounds_are_mirrored(measure: str) -> None:
    for seen in (sparsify(upload(), 90), clip(upload(), 0.1)):
        match = Match(seen, 10, measure, None)  # type: ignore[arg-type]
        assert gap(match, pictures(1)) == pytest.approx(0, abs=1e-5)
        unaware = Match(replace(seen, defence=None), 10, measure, None)  # type: ignore[arg-type]
        if measure == "squared" or seen.defence.name == "sparsification":  # type: ignore[union-attr]
            assert gap(unaware, pictures(1)) > 1e-3


def test_the_best_candidate_is_kept_and_not_the_last() -> None:
    match = Match(upload(), 10, "cosine", pictures(1))
    tries = [pictures(1, seed=3), pictures(1) + 0.02, pictures(1, seed=4)]
    distances = [gap(match, picture) for picture in tries]
    found = match.outcome()
    assert torch.equal(found.pictures, tries[1].clamp(0, 1))
    assert found.distance == min(distances)
    assert [point.distance for point in found.history] == distances
    assert found.history[1].psnr == found.history[2].psnr
    assert found.history[0].psnr < found.history[1].psnr  # type: ignore[operator]


def test_candidates_are_counted_by_the_gradients_that_they_take() -> None:
    local = Local(0.1, 3, 1)
    seen = upload_of(convolutions(), pictures(2), torch.tensor([0, 1]), local=local)
    match = Match(seen, 10, "cosine", None)
    assert match.left == 3
    match(pictures(2), torch.tensor([0, 1]))
    assert match.left == 2
    assert match.outcome().evaluations == 3


def test_the_model_handed_over_is_not_touched() -> None:
    seen = upload()
    seen.model.train()
    seen.model.requires_grad_(False)
    Match(seen, 10, "cosine", None)(pictures(1), LABEL)
    assert seen.model.training
    assert not any(value.requires_grad for value in seen.model.parameters())


def test_a_candidate_that_overflows_is_never_the_best() -> None:
    match = Match(upload(), 10, "squared", None)
    match(torch.full((1, 1, 8, 8), torch.nan), LABEL)
    match(pictures(1, seed=3), LABEL)
    assert torch.equal(match.outcome().pictures, pictures(1, seed=3))
    worst = Match(upload(), 10, "squared", None)
    worst(torch.full((1, 1, 8, 8), torch.nan), LABEL)
    assert bool(worst.outcome().pictures.isfinite().all())
