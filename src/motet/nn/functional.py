"""Pure functions on tensors that several methods share: contrasts, ensembles, distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def inter_contrast(z: Tensor, other: Tensor, index: Tensor, tau: float = 0.5) -> Tensor:
    """Inter-modal contrast: each embedding against all global rows of the other modality.

    z: [b, d] local embeddings. other: [P, d] global representations of the other modality,
    constants. index: int64 [b], the public position of each row of ``z``. Returns the mean of
    -log softmax(z . other / tau) at the own row. CreamFL, section 3.2, inter-modal contrast.
    """
    return F.cross_entropy(z @ other.detach().T / tau, index)


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
    local: Tensor, other: Tensor, *, temperature: float = 1.0, block: int = 512
) -> Tensor:
    """How well each local row finds its partner among all global rows of the other modality.

    local, other: [P, d]. Returns [P]: log softmax_j(local_k . other_j / temperature) at j = k,
    over all P. Works on ``block`` rows at a time: no P x P matrix is ever held.
    CreamFL, section 3.3; code's form (the sum includes j = k).
    """
    count = len(local)
    scores = local.new_empty(count)
    logits = local.new_empty(min(block, count), count)
    partner = other.T
    for start in range(0, count, block):
        rows = local[start : start + block]
        part = logits[: len(rows)]
        torch.mm(rows, partner, out=part)
        if temperature != 1.0:
            part.div_(temperature)
        own = part.diagonal(offset=start).clone()
        scores[start : start + len(rows)] = own - _logsumexp_(part)
    return scores


def _logsumexp_(logits: Tensor) -> Tensor:
    """Row-wise log-sum-exp that uses up its argument: [n, m] -> [n]."""
    top = logits.amax(dim=1, keepdim=True)
    return logits.sub_(top).exp_().sum(dim=1).log_() + top.squeeze(1)


def gca_weights(scores: Tensor) -> Tensor:
    """Softmax over clients of their scores: [clients, P] -> [clients, P], columns sum to 1."""
    return scores.softmax(dim=0)


def gca(
    locals_: Sequence[Tensor], other: Tensor, *, temperature: float = 1.0, block: int = 512
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
