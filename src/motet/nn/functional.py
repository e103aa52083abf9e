"""Pure functions on tensors that several methods share: contrasts, ensembles, distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Public rows up to which a batch's similarities are one matrix.
COLUMNS = 4096


def inter_contrast(z: Tensor, other: Tensor, index: Tensor, tau: float = 0.5) -> Tensor:
    """Inter-modal contrast: each embedding against all global rows of the other modality.

    z: [b, d] local embeddings. other: [P, d] global representations of the other modality,
    constants. index: int64 [b], the public position of each row of ``z``. Returns the mean of
    -log softmax(z . other / tau) at the own row. CreamFL, section 3.2, inter-modal contrast.

    No b x P matrix is held where P is large, neither forwards nor backwards.
    """
    other = other.detach()
    if len(other) <= COLUMNS:
        return F.cross_entropy(z @ other.T / tau, index)
    own = (z * other[index]).sum(dim=1) / tau
    lse: Tensor = _LogNormaliser.apply(z, other, tau)  # type: ignore[no-untyped-call]
    return (lse - own).mean()


class _LogNormaliser(torch.autograd.Function):
    """log sum_j exp(z . other_j / tau) of each row: [b, d] and [P, d] -> [b]; other is constant.

    Its gradient, the mean of the other rows under the softmax, comes out of the same pass.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, other: Tensor, tau: float) -> Tensor:
        top = z.new_full((len(z), 1), -torch.inf)
        total, mean = torch.zeros_like(top), torch.zeros_like(z)
        buffer = z.new_empty(len(z), COLUMNS)
        for columns in other.split(COLUMNS):
            logits = torch.mm(z, columns.T, out=buffer[:, : len(columns)]).div_(tau)
            top, shrink = _raised(top, logits)
            exps = logits.sub_(top).exp_()
            total = total * shrink + exps.sum(dim=1, keepdim=True)
            mean.mul_(shrink).addmm_(exps, columns)
        ctx.save_for_backward(mean.div_(total * tau))
        return (total.log_() + top).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return grad.unsqueeze(1) * slope, None, None


def _raised(top: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row so far, [n, 1], and what a sum of exponentials shrinks by."""
    raised = torch.maximum(top, logits.amax(dim=1, keepdim=True))
    return raised, (top - raised).exp_()


def intra_contrast(z: Tensor, same: Tensor, previous: Tensor, tau: float = 0.5) -> Tensor:
    """Intra-modal contrast: towards the global row of the same modality, away from the old self.

    z, same, previous: [b, d], row by row; the latter two are constants. Returns the mean over b.
    CreamFL, section 3.2, intra-modal contrast.
    """
    towards = (z * same.detach()).sum(dim=-1)
    away = (z * previous.detach()).sum(dim=-1)
    # -log(e^t / (e^t + e^a)) = softplus(a - t)
    return F.softplus((away - towards) / tau).mean()


def gca_scores(
    local: Tensor, other: Tensor, *, temperature: float = 1.0, block: int = 1024
) -> Tensor:
    """How well each local row finds its partner among all global rows of the other modality.

    local, other: [P, d]. Returns [P]: log softmax_j(local_k . other_j / temperature) at j = k,
    over all P. Works on ``block`` rows by 2 ``block`` columns at a time: no P x P matrix is ever
    held, nor one that leaves the cache. CreamFL, section 3.3; code's form (the sum includes j = k).
    """
    scores = local.new_empty(len(local))
    buffer = local.new_empty(block * 2 * block)
    for start in range(0, len(local), block):
        rows = local[start : start + block]
        top, total = rows.new_full((len(rows), 1), -torch.inf), rows.new_zeros(len(rows))
        for left in range(0, len(other), 2 * block):
            columns = other[left : left + 2 * block]
            logits = buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
            torch.mm(rows, columns.T, out=logits)
            if temperature != 1.0:
                logits.div_(temperature)
            if left <= start < left + 2 * block:
                scores[start : start + block] = logits.diagonal(offset=start - left)
            top, shrink = _raised(top, logits)
            total.mul_(shrink.squeeze(1)).add_(logits.sub_(top).exp_().sum(dim=1))
        scores[start : start + block] -= total.log_() + top.squeeze(1)
    return scores


def gca_weights(scores: Tensor) -> Tensor:
    """Softmax over clients of their scores: [clients, P] -> [clients, P], columns sum to 1."""
    return scores.softmax(dim=0)


def gca(
    locals_: Sequence[Tensor], other: Tensor, *, temperature: float = 1.0, block: int = 1024
) -> tuple[Tensor, Tensor]:
    """Global-local contrastive aggregation of one modality.

    locals_: clients' representations, each [P, d]. other: [P, d], the global representations of
    the other modality. Returns (aggregate [P, d], weights [clients, P]). The aggregate is not
    renormalised. CreamFL, section 3.3.
    """
    scores = [gca_scores(z, other, temperature=temperature, block=block) for z in locals_]
    weights = gca_weights(torch.stack(scores))
    return weighted_rows(locals_, weights), weights


def weighted_rows(locals_: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Sum over clients of weight times row: [clients][P, d] and [clients, P] -> [P, d]."""
    total = torch.zeros_like(locals_[0])
    for z, weight in zip(locals_, weights, strict=True):
        total.addcmul_(z, weight.unsqueeze(1))
    return total


def squared_distance(z: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Distillation: squared L2 norm, summed over d and averaged over rows; target is constant.

    z, target: [b, d]. weight: [b], multiplies each row's distance (rows without a target have
    0). CreamFL, L_KD in the form that is summed over d.
    """
    distance = (z - target.detach()).square().sum(dim=-1)
    return distance.mean() if weight is None else (weight * distance).mean()


def info_nce(u: Tensor, v: Tensor, tau: float = 0.1) -> Tensor:
    """Symmetric InfoNCE over the pairs of a batch: mean of both directions' cross-entropies.

    u, v: [b, d], row k of one belongs to row k of the other.
    """
    logits = u @ v.T / tau
    target = torch.arange(len(u), device=u.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def pairwise_soft_contrast(u: Tensor, v: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The paper's task loss: soft contrastive loss over all pairs of a batch, both directions.

    u, v: [b, d] unit norm. scale, shift: learnable scalars (both start at 15). With
    dist_ij = sqrt(|u_i - v_j|^2 + 1e-6), s_ij = shift - scale * dist_ij and m_ij = +1 where i = j,
    else -1, returns the SUM over all b^2 pairs, in both directions, of -log sigmoid(2 m_ij s_ij).
    """
    # Subtracting rows is exact where |u|^2 + |v|^2 - 2 u.v loses the small distances.
    gaps = (u.unsqueeze(1) - v.unsqueeze(0)).square().sum(dim=-1)
    scores = shift - scale * (gaps + 1e-6).sqrt()
    match = 2 * torch.eye(len(u), dtype=u.dtype, device=u.device) - 1
    return -2 * F.logsigmoid(2 * match * scores).sum()


def shifted_cross_entropy(logits: Tensor, labels: Tensor, margin: float = 4.0) -> Tensor:
    """Cross-entropy after lowering the true class's logit by ``margin``: mean over [b, C].

    The private loss of the official code's image and text clients.
    """
    if not margin:
        return F.cross_entropy(logits, labels)
    onehot = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return F.cross_entropy(logits - margin * onehot, labels)


def class_separation(weight: Tensor) -> Tensor:
    """Keeps class vectors apart: cross-entropy of relu(W) relu(W)^T against the identity.

    weight: [C, d]. The other private loss term of the official code (times 0.5 there).
    """
    positive = weight.relu()
    return F.cross_entropy(positive @ positive.T, torch.arange(len(weight), device=weight.device))


def variance_weights(locals_: Sequence[Tensor]) -> Tensor:
    """Each row's weight by the variance of its components: [clients][P, d] -> [clients, P].

    Columns sum to 1. The confidence of FedET (Cho et al., IJCAI 2022) for representations.
    """
    spread = torch.stack([z.var(dim=-1, unbiased=False) for z in locals_])
    return spread / spread.sum(dim=0).clamp(min=torch.finfo(spread.dtype).tiny)


def disagreement_weights(locals_: Sequence[Tensor], consensus: Tensor) -> Tensor:
    """Weights that favour clients far from the consensus: [clients][P, d] -> [clients, P].

    1 - cosine to the consensus, columns summing to 1 (equal shares where all agree exactly).
    """
    gaps = torch.stack([1 - F.cosine_similarity(z, consensus, dim=-1) for z in locals_])
    gaps = gaps.clamp(min=1e-12)
    return gaps / gaps.sum(dim=0)


def retrieval_confidence(z: Tensor, other: Tensor, *, batch: int, tau: float) -> tuple[Tensor, ...]:
    """Whether each row finds its partner first, and how unsure it is, among ``batch`` rows.

    z, other: [P, d], taken in blocks of ``batch`` rows in order. Returns (right bool [P], entropy
    [P] of the block's softmax of z . other / tau). FedGEMS (Cheng et al., arXiv 2110.11027) for
    retrieval.
    """
    right: list[Tensor] = []
    entropy: list[Tensor] = []
    for rows, partners in zip(z.split(batch), other.split(batch), strict=True):
        logits = rows @ partners.T / tau
        right.append(logits.argmax(dim=1) == torch.arange(len(rows), device=z.device))
        entropy.append(torch.special.entr(logits.softmax(dim=1)).sum(dim=1))
    return torch.cat(right), torch.cat(entropy)


def selective_ensemble(
    locals_: Sequence[Tensor], right: Tensor, entropy: Tensor
) -> tuple[Tensor, Tensor]:
    """Ensemble over the clients that are right, weighted by a softmax of 1 / entropy.

    locals_: [clients][P, d]. right: bool [clients, P]. entropy: [clients, P]. Returns (rows
    [P, d], known bool [P]); where no client is right the row is 0 and not known. FedGEMS.
    """
    sureness = 1 / entropy.clamp(min=1e-6)
    weights = sureness.masked_fill(~right, -torch.inf).softmax(dim=0).nan_to_num(0.0)
    return weighted_rows(locals_, weights), right.any(dim=0)
