from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.audit.membership import (
    by_prototype,
    calibrated_scores,
    candidates,
    figures,
    halves,
    judge,
    likelihood_scores,
    logit_of,
    losses,
    prototypes_of,
    roc,
    threshold_scores,
)
from motet.core import Batch, DataError, Dataset, Output


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_figures_by_hand() -> None:
    # 3 of the 4 pairs are in the right order; alarms at 0.9, 0.6, 0.4, 0.1.
    found = figures(torch.tensor([0.9, 0.4]), torch.tensor([0.6, 0.1]))
    assert found == {"auc": 0.75, "advantage": 0.5, "hits": 0.5}


@pytest.mark.parametrize(
    ("members", "others", "auc", "advantage", "hits"),
    [
        ([2.0, 3.0], [0.0, 1.0], 1.0, 1.0, 1.0),
        ([0.0, 1.0], [2.0, 3.0], 0.0, 0.0, 0.0),
        ([1.0, 1.0], [1.0, 1.0], 0.5, 0.0, 0.0),
        ([1.0, 0.0], [1.0, 0.0], 0.5, 0.0, 0.0),
    ],
)
def test_figures_at_the_ends_and_with_ties(
    members: list[float], others: list[float], auc: float, advantage: float, hits: float
) -> None:
    found = figures(torch.tensor(members), torch.tensor(others))
    assert found == {"auc": auc, "advantage": advantage, "hits": hits}


def test_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    members = torch.randint(0, 9, (40,), generator=rng()).float()
    others = torch.randint(0, 9, (40,), generator=rng(1)).float() - 1
    pairs = members[:, None] - others[None]
    share = float(((pairs > 0).double() + (pairs == 0).double() / 2).mean())
    assert figures(members, others)["auc"] == pytest.approx(share)


def test_a_hit_counts_up_to_one_false_alarm_in_a_hundred() -> None:
    others = torch.arange(200).double()
    # Above all others, above all but two, above all but three.
    members = torch.cat([torch.tensor([500.0, 197.5, 196.5]), torch.full((197,), -1.0)])
    assert figures(members, others)["hits"] == pytest.approx(2 / 200)


def test_the_curve_runs_from_corner_to_corner() -> None:
    alarms, hits = roc(torch.rand(7, generator=rng()), torch.rand(7, generator=rng(1)))
    assert (float(alarms[0]), float(hits[0])) == (0, 0)
    assert (float(alarms[-1]), float(hits[-1])) == (1, 1)
    assert bool((alarms.diff() >= 0).all() and (hits.diff() >= 0).all())


def test_intervals_hold_the_truth_and_shrink_with_rows() -> None:
    def drawn(count: int) -> Tensor:
        return torch.randn(count, generator=rng(count))

    few = judge(drawn(40) + 1, drawn(41)[:40], rng())
    many = judge(drawn(1000) + 1, drawn(1001)[:1000], rng())
    # Two normals a deviation apart: AUC = Phi(1 / sqrt 2) = 0.7602.
    low, high = many.intervals["auc"]
    assert low < 0.7602 < high
    assert high - low < (few.intervals["auc"][1] - few.intervals["auc"][0]) / 2
    assert many.rows == 1000
    assert many == judge(drawn(1000) + 1, drawn(1001)[:1000], rng())


@pytest.mark.parametrize(
    ("members", "others", "told"),
    [
        (torch.zeros(3), torch.zeros(2), "not 3 and 2"),
        (torch.zeros(0), torch.zeros(0), "not 0 and 0"),
        (torch.tensor([math.nan]), torch.zeros(1), "finite"),
        (torch.zeros(1), torch.tensor([math.inf]), "finite"),
    ],
)
def test_groups_must_be_equal_and_scores_numbers(
    members: Tensor, others: Tensor, told: str
) -> None:
    with pytest.raises(DataError, match=told):
        judge(members, others, rng())


class Known(nn.Module):
    """A model whose scores, or whose two embeddings, are its inputs."""

    def __init__(self, head: bool) -> None:
        super().__init__()
        self.head = head
        self.drop = nn.Dropout(0.9)

    def forward(self, batch: Batch) -> Output:
        inputs = {name: self.drop(value) for name, value in batch.inputs.items()}
        if self.head:
            return Output(logits=inputs["x"])
        return Output(features=inputs)


def test_losses_are_each_rows_own_and_without_dropout() -> None:
    x = torch.randn(5, 3, generator=rng())
    labels = torch.tensor([0, 1, 2, 0, 1])
    model = Known(head=True).train()
    found = losses(model, Dataset({"x": x}, labels=labels), batch=2)
    assert torch.allclose(found, F.cross_entropy(x, labels, reduction="none"))
    assert model.training


def test_pairs_without_a_head_are_judged_by_their_distance() -> None:
    a, b = torch.randn(4, 3, generator=rng()), torch.randn(4, 3, generator=rng(1))
    data = Dataset({"a": a, "b": b}, labels=torch.zeros(4, dtype=torch.int64))
    assert torch.allclose(losses(Known(head=False), data), 1 - F.cosine_similarity(a, b))
    with pytest.raises(DataError, match="no loss to go by"):
        losses(Known(head=False), Dataset({"a": a}))


def test_smaller_losses_are_likelier_members() -> None:
    loss = torch.tensor([0.1, 2.0])
    references = torch.tensor([[0.2, 5.0], [0.4, 3.0]])
    assert threshold_scores(loss).tolist() == pytest.approx([-0.1, -2.0])
    # The hard row lies far below what others make of it: calibrated, it comes first.
    assert calibrated_scores(loss, references).tolist() == pytest.approx([0.2, 2.0])


def test_likelihoods_are_deviations_of_the_confidence() -> None:
    chances = torch.tensor([0.9, 0.5])
    assert logit_of(-chances.log()).tolist() == pytest.approx([math.log(9), 0.0], abs=1e-5)
    known = torch.tensor([[0.2, 0.6], [0.4, 0.8], [0.6, 0.7]])
    found = likelihood_scores(-chances.log(), -known.log())
    logits = torch.logit(known)
    spread = (logits - logits.mean(0)).square().sum() / 4
    expected = (torch.logit(chances) - logits.mean(0)) / spread.sqrt()
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    sure = likelihood_scores(torch.tensor([0.0, 100.0]), torch.tensor([[0.0, 50.0], [0.0, 60.0]]))
    assert bool(torch.isfinite(sure).all())


def test_prototypes_are_unit_means_and_unlabelled_rows_do_not_count() -> None:
    values = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 1.0], [9.0, 9.0]])
    found = prototypes_of(values, torch.tensor([0, 0, 1, -100]), 3)
    half = math.sqrt(0.5)
    assert torch.allclose(found, torch.tensor([[half, half], [0.0, 1.0], [0.0, 0.0]]))
    loss = by_prototype(torch.tensor([[0.0, 5.0]]), torch.tensor([1]), found, tau=1.0)
    expected = -math.log(math.e / (math.e + math.exp(half) + 1))
    assert loss.tolist() == pytest.approx([expected])


def dataset(count: int = 20, per: int = 1) -> Dataset:
    units = torch.arange(count) // per
    names = tuple(f"u{int(unit)}" for unit in units)
    return Dataset({"x": torch.arange(count).float()[:, None]}, about={"unit": names})


def units(data: Dataset) -> set[str]:
    return set(data.about["unit"])  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", [None, "unit"])
def test_halves_are_equal_disjoint_and_random(unit: str | None) -> None:
    data = dataset(21, 3)
    first, second = halves(data, rng(), unit)
    assert not set(first.rows.tolist()) & set(second.rows.tolist())
    if unit is None:
        assert len(first) == len(second) == 10
    else:
        assert not units(first) & units(second)
        assert len(units(first)) == len(units(second)) == 3
        assert len(first) == len(second) == 9
    again, _ = halves(data, rng(), unit)
    other, _ = halves(data, rng(1), unit)
    assert again.rows.tolist() == first.rows.tolist() != other.rows.tolist()


def test_candidates_are_as_many_of_each_and_one_per_unit() -> None:
    first, second = candidates(dataset(12, 3), dataset(10, 1), rng(), "unit")
    assert len(first) == len(second) == 4
    assert len(units(first)) == 4
    one, two = candidates(dataset(12, 3), dataset(10, 1), rng())
    assert len(one) == len(two) == 10
