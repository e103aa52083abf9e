"""Bristle's integrator: output layers of peers, weighed class by class by what they achieve.

Verbraeken, de Vos, Pouwelse, arXiv 2110.11006. An output layer is a matrix [H, C]: column c holds
the weights of class c. k are the familiar classes, those that the receiver has rows of; all others
are foreign to it.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from motet.nn import robust

Rule: TypeAlias = Literal["none", "mean", "median", "trimmed-mean", "krum"]


def prioritised(
    distances: Tensor, budget: int, explore: float, rng: torch.Generator
) -> list[Tensor]:
    """Positions of the peers worth testing, drawn from the near, middle and far thirds.

    distances: [P], of each peer's layer from one's own. Of the budget, shares of (1 - a)^2,
    2a - 2a^2 and a^2, rounded, go to the thirds; one that has fewer peers gives all of them.
    Returns three int64 tensors of sorted positions.
    """
    order = distances.argsort(stable=True)
    shares = ((1 - explore) ** 2, 2 * explore - 2 * explore**2, explore**2)
    found: list[Tensor] = []
    for third, share in zip(torch.tensor_split(order, 3), shares, strict=True):
        drawn = torch.randperm(len(third), generator=rng)[: round(share * budget)]
        found.append(third[drawn].sort().values)
    return found


def class_f1(logits: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """F1 score of each class, with the argmax over ALL columns: float64 [..., k].

    logits: [..., n, C]. labels: int64 [n]. classes: int64 [k]. A class that is neither there nor
    predicted has 0.
    """
    said = logits.argmax(dim=-1).unsqueeze(-1) == classes
    true = labels.unsqueeze(-1) == classes
    right = (said & true).sum(dim=-2).double()
    either = (said.sum(dim=-2) + true.sum(dim=-2)).double()
    return torch.where(either > 0, 2 * right / either.clamp(min=1), 0.0)


def best_classes(f1: Tensor, shared: Tensor) -> Tensor:
    """Which familiar classes a peer is judged by: as many as it shares, those it does best.

    f1: [P, k]. shared: int64 [P], how many classes each has in common with the receiver. Returns
    bool [P, k]; of equal classes the first ones.
    """
    order = f1.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return rank < shared.unsqueeze(1)


def scores(own: Tensor, peers: Tensor) -> Tensor:
    """How much better or worse than oneself a peer is at a class: [P, k].

    own: F1 of the receiver, [k]. peers: [P, k]. With D = 10 |own - peer|: D^(3 + own) where the
    peer is better, -D^(4 + own) where it is not, so that a fall counts for more than a rise.
    """
    gap = 10 * (own - peers).abs()
    return torch.where(peers > own, gap ** (3 + own), -(gap ** (4 + own)))


def certainty(peers: Tensor, chosen: Tensor) -> Tensor:
    """Mean minus standard deviation of F1 over the chosen classes, at least 0: [P].

    peers: [P, k]. chosen: bool [P, k]. 0 for a peer that shares no class.
    """
    count = chosen.sum(dim=1, keepdim=True).clamp(min=1)
    mean = (peers * chosen).sum(dim=1, keepdim=True) / count
    variance = ((peers - mean).square() * chosen).sum(dim=1, keepdim=True) / count
    return (mean - variance.sqrt()).clamp(min=0).squeeze(1)


def trust(score: Tensor) -> Tensor:
    """The weight of a score: 0 from about -41 down, 1 at 0 (as good as oneself), at most 6."""
    return (10 * torch.sigmoid(score / 100) - 4).clamp(min=0)


def peer_weights(own: Tensor, peers: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the peers' familiar columns [P, k] and of their foreign columns [P].

    own: F1 of the receiver by familiar class, [k]. peers: [P, k]. shared: int64 [P]. One's own
    layer has weight 1. Foreign columns cannot be tested: they count as far as the peer is good at
    the shared classes, with the scores not bounded from below.
    """
    chosen = best_classes(peers, shared)
    score = scores(own, peers) * chosen
    sure = certainty(peers, chosen)
    # The paper bounds these scores from below by -100, where the weight has long been 0.
    familiar = sure.unsqueeze(1) * trust(score) * chosen
    return familiar, sure * trust(score.sum(dim=1))


def merged(start: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """(start + sum of weight * other) / (1 + sum of weights), column by column: [H, columns].

    start: [H, columns]. others: [P, H, columns]. weights: [P, columns] or [P, 1].
    """
    wide = weights.to(start.dtype)
    total = start + (wide.unsqueeze(1) * others).sum(dim=0)
    return total / (1 + wide.sum(dim=0))


def integrated(
    own: Tensor, others: Tensor, features: Tensor, labels: Tensor, shared: Tensor, familiar: Tensor
) -> Tensor:
    """The consolidated layer after one iteration, before it is centred: [H, C].

    own: [H, C], familiar columns as just trained and foreign ones as they were. others: [P, H, C],
    all finite. features [n, H] and labels [n]: the receiver's test rows. shared: int64 [P].
    familiar: int64 [k].
    """
    f1 = class_f1(features @ torch.cat([own.unsqueeze(0), others]), labels, familiar)
    by_class, by_peer = peer_weights(f1[0], f1[1:], shared)
    result = merged(own, others, by_peer.unsqueeze(1))
    result[:, familiar] = merged(own[:, familiar], others[:, :, familiar], by_class)
    return result


def centred(layer: Tensor) -> Tensor:
    """Every column minus its own mean: [H, C]."""
    return layer - layer.mean(dim=0)


def by_rule(rule: Rule, layers: Tensor, byzantine: int) -> Tensor:
    """One layer [H, C] of all, one's own among them, by a rule that looks at no rows.

    layers: [P + 1, H, C], one's own first. byzantine: how many dishonest peers trimmed mean and
    Krum are to stand. none: one's own.
    """
    if rule == "none":
        return layers[0]
    flat = layers.flatten(1)
    if rule == "median":
        return robust.median(flat).view_as(layers[0])
    if rule == "trimmed-mean":
        return robust.trimmed_mean(flat, byzantine).view_as(layers[0])
    if rule == "krum":
        return robust.krum(flat, byzantine).view_as(layers[0])
    return layers.mean(dim=0)


def held_out(labels: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Which rows are kept for tests: of every class ``count``, but at most half; bool [n].

    labels: int64 [n], -100 for a row without one. A class of one row has no test.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels[labels >= 0].unique():
        rows = (labels == label).nonzero().flatten()
        drawn = torch.randperm(len(rows), generator=rng)[: min(count, len(rows) // 2)]
        held[rows[drawn]] = True
    return held


def noise(like: Tensor, rng: torch.Generator) -> Tensor:
    """An attacker's layer [H, C]: uniform in 0..0.5, negative for the first half of the classes."""
    made = 0.5 * torch.rand(like.shape, generator=rng)
    made[:, : like.shape[1] // 2] *= -1
    return made.to(like)
