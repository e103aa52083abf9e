"""The pure functions against their definitions, written out plainly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from motet.nn import functional as M


def unit(rows: int, width: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=rng, dtype=torch.float64), dim=1)


def test_inter_contrast_takes_all_public_rows_as_negatives() -> None:
    z, other = unit(3, 8), unit(10, 8, 1)
    index = torch.tensor([7, 0, 4])
    wanted = 0.0
    for row, own in zip(z, index, strict=True):
        scores = [math.exp(float(row @ other[j]) / 0.5) for j in range(10)]
        wanted -= math.log(scores[own] / sum(scores))
    assert float(M.inter_contrast(z, other, index, 0.5)) == pytest.approx(wanted / 3)


def test_inter_contrast_does_not_move_the_global_rows() -> None:
    z = unit(3, 8).requires_grad_()
    other = unit(10, 8, 1).requires_grad_()
    M.inter_contrast(z, other, torch.arange(3)).backward()
    assert z.grad is not None
    assert other.grad is None


def test_intra_contrast_is_the_two_way_softmax() -> None:
    z, same, before = unit(5, 8), unit(5, 8, 1), unit(5, 8, 2)
    wanted = 0.0
    for a, b, c in zip(z, same, before, strict=True):
        towards, away = math.exp(float(a @ b) / 0.5), math.exp(float(a @ c) / 0.5)
        wanted -= math.log(towards / (towards + away))
    assert float(M.intra_contrast(z, same, before, 0.5)) == pytest.approx(wanted / 5)


def test_intra_contrast_of_equal_rows_is_log_two() -> None:
    z = unit(4, 8)
    assert float(M.intra_contrast(z, z, z)) == pytest.approx(math.log(2))


def test_intra_contrast_pulls_towards_global_and_away_from_before() -> None:
    z = unit(1, 8).requires_grad_()
    same, before = unit(1, 8, 1), unit(1, 8, 2)
    M.intra_contrast(z, same, before).backward()
    step = z.detach() - z.grad
    assert float(step @ same.T) > float(z.detach() @ same.T)
    assert float(step @ before.T) < float(z.detach() @ before.T)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(2, 40),
    block=st.integers(1, 50),
    temperature=st.sampled_from([1.0, 0.1, 0.01]),
)
def test_gca_scores_equal_the_dense_form(rows: int, block: int, temperature: float) -> None:
    local, other = unit(rows, 6), unit(rows, 6, 1)
    dense = (local @ other.T / temperature).log_softmax(dim=1).diagonal()
    scores = M.gca_scores(local, other, temperature=temperature, block=block)
    torch.testing.assert_close(scores, dense)


def test_gca_scores_do_not_change_their_inputs() -> None:
    local, other = unit(9, 6), unit(9, 6, 1)
    copies = local.clone(), other.clone()
    M.gca_scores(local, other, temperature=0.5, block=4)
    assert torch.equal(local, copies[0])
    assert torch.equal(other, copies[1])


def test_gca_weights_sum_to_one_over_clients() -> None:
    weights = M.gca_weights(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(7))


def test_gca_of_one_client_is_that_client() -> None:
    z = unit(6, 4)
    aggregate, weights = M.gca([z], unit(6, 4, 1))
    torch.testing.assert_close(aggregate, z)
    assert torch.equal(weights, torch.ones_like(weights))


def test_gca_of_equal_clients_is_the_mean() -> None:
    z = unit(6, 4)
    aggregate, weights = M.gca([z, z, z], unit(6, 4, 1))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 3))
    torch.testing.assert_close(aggregate, z)


def test_gca_does_not_renormalise() -> None:
    aggregate, _ = M.gca([unit(6, 4), unit(6, 4, 1)], unit(6, 4, 2))
    assert float(aggregate.norm(dim=1).max()) < 1


def test_gca_trusts_a_client_with_permuted_rows_less() -> None:
    other = unit(60, 32)
    honest = [F.normalize(other + 0.5 * unit(60, 32, s), dim=1) for s in range(1, 5)]
    liar = honest[0].roll(1, dims=0)
    aggregate, weights = M.gca([liar, *honest], other)
    assert float(weights[0].mean()) < 0.7 * float(weights[1:].mean())
    mean = torch.stack([liar, *honest]).mean(dim=0)
    truth = torch.stack(honest).mean(dim=0)
    near = F.cosine_similarity(aggregate, truth).mean()
    assert float(near) > float(F.cosine_similarity(mean, truth).mean())


def test_a_lower_temperature_makes_gca_sharper() -> None:
    other = unit(30, 16)
    clients = [other, unit(30, 16, 3)]
    _, soft = M.gca(clients, other, temperature=1.0)
    _, sharp = M.gca(clients, other, temperature=0.1)
    assert float(sharp[0].mean()) > float(soft[0].mean()) > 0.5


def test_squared_distance_sums_over_d_and_averages_over_rows() -> None:
    z, target = torch.zeros(4, 10), torch.ones(4, 10)
    assert float(M.squared_distance(z, target)) == 10.0


def test_squared_distance_leaves_out_rows_of_weight_zero() -> None:
    z, target = torch.zeros(4, 10), torch.ones(4, 10)
    weight = torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert float(M.squared_distance(z, target, weight)) == 5.0


def test_info_nce_is_symmetric_and_lowest_for_matching_pairs() -> None:
    u, v = unit(6, 8), unit(6, 8, 1)
    assert float(M.info_nce(u, v)) == pytest.approx(float(M.info_nce(v, u)))
    assert float(M.info_nce(u, u)) < float(M.info_nce(u, v))


def test_pairwise_soft_contrast_is_the_sum_over_all_pairs_both_ways() -> None:
    u, v = unit(4, 6), unit(4, 6, 1)
    a, b = torch.tensor(15.0), torch.tensor(14.0)
    wanted = 0.0
    for i in range(4):
        for j in range(4):
            distance = math.sqrt(float(((u[i] - v[j]) ** 2).sum()) + 1e-6)
            score = 14.0 - 15.0 * distance
            match = 1 if i == j else -1
            wanted += 2 * math.log1p(math.exp(-2 * match * score))
    assert float(M.pairwise_soft_contrast(u, v, a, b)) == pytest.approx(wanted)


def test_pairwise_soft_contrast_has_a_finite_gradient_where_a_pair_coincides() -> None:
    u = unit(4, 6).requires_grad_()
    M.pairwise_soft_contrast(u, u.detach(), torch.tensor(15.0), torch.tensor(15.0)).backward()
    assert bool(torch.isfinite(u.grad).all())


def test_shifted_cross_entropy_lowers_the_true_class_alone() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1])
    shifted = logits.clone()
    shifted[torch.arange(5), labels] -= 4
    wanted = F.cross_entropy(shifted, labels)
    torch.testing.assert_close(M.shifted_cross_entropy(logits, labels, 4.0), wanted)
    torch.testing.assert_close(
        M.shifted_cross_entropy(logits, labels, 0.0), F.cross_entropy(logits, labels)
    )


def test_class_separation_is_lowest_for_orthogonal_classes() -> None:
    apart = 3 * torch.eye(4)
    together = torch.ones(4, 4)
    assert float(M.class_separation(apart)) < float(M.class_separation(together))


def test_class_separation_does_not_change_the_weight() -> None:
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    copy = weight.clone()
    M.class_separation(weight)
    assert torch.equal(weight, copy)


def test_variance_weights_favour_spread_rows_and_sum_to_one() -> None:
    flat, spread = torch.full((2, 4), 0.5), torch.tensor([[1.0, 0, 0, 0]] * 2)
    weights = M.variance_weights([flat + 1e-3 * spread, spread])
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(2))
    assert float(weights[1].min()) > 0.9


def test_disagreement_weights_favour_who_is_far_from_the_consensus() -> None:
    consensus = unit(5, 8)
    weights = M.disagreement_weights([consensus, unit(5, 8, 1)], consensus)
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(5, dtype=torch.float64))
    assert float(weights[1].min()) > 0.99


def test_disagreement_weights_of_full_agreement_are_equal() -> None:
    consensus = unit(5, 8)
    weights = M.disagreement_weights([consensus, consensus], consensus)
    torch.testing.assert_close(weights, torch.full_like(weights, 0.5))


def test_retrieval_confidence_works_in_blocks() -> None:
    z = unit(6, 16)
    right, entropy = M.retrieval_confidence(z, z, batch=4, tau=0.1)
    assert bool(right.all())
    # Two competitors in the last block leave less to be unsure of than four.
    assert float(entropy[4:].max()) <= math.log(2)
    wrong, _ = M.retrieval_confidence(z, z.roll(1, dims=0), batch=6, tau=0.1)
    assert not bool(wrong.any())


def test_selective_ensemble_takes_the_right_clients_and_the_surer_more() -> None:
    clients = [torch.full((3, 2), float(c)) for c in range(3)]
    right = torch.tensor([[True, False, True], [True, False, True], [False, False, True]])
    entropy = torch.tensor([[1.0, 1, 1], [0.5, 1, 1], [0.1, 1, 1]])
    rows, known = M.selective_ensemble(clients, right, entropy)
    assert known.tolist() == [True, False, True]
    share = math.exp(2) / (math.exp(1) + math.exp(2))
    assert float(rows[0, 0]) == pytest.approx(share)
    assert rows[1].tolist() == [0.0, 0.0]
    assert float(rows[2, 0]) == pytest.approx(1.0)


def many(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Has the contrast work in blocks of so many public rows."""
    monkeypatch.setattr(M, "COLUMNS", columns)


@pytest.mark.parametrize("columns", [1, 4, 9])
@pytest.mark.parametrize("tau", [0.5, 0.01])
def test_inter_contrast_in_blocks_equals_the_dense_form(
    monkeypatch: pytest.MonkeyPatch, columns: int, tau: float
) -> None:
    index = torch.tensor([9, 0, 4, 4])
    found = []
    for size in (10, columns):
        many(monkeypatch, size)
        z = unit(4, 8).requires_grad_()
        value = M.inter_contrast(z, 3 * unit(10, 8, 1), index, tau)
        (2 * value).backward()
        found.append((value.detach(), z.grad))
    torch.testing.assert_close(found[0], found[1])


def test_inter_contrast_in_blocks_has_the_slope_of_its_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many(monkeypatch, 3)
    other, index = unit(7, 4, 1).double(), torch.tensor([6, 0, 2])
    z = unit(3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: M.inter_contrast(x, other, index, 0.5), z)


def test_no_margin_is_plain_cross_entropy_to_the_bit() -> None:
    logits, labels = 5 * unit(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    onehot = F.one_hot(labels, 4).float()
    plain = F.cross_entropy(logits - 0.0 * onehot, labels)
    assert torch.equal(M.shifted_cross_entropy(logits, labels, 0.0), plain)
