"""Retrieval between two galleries of unit embeddings: ranks, recall, rsum, category share."""

from __future__ import annotations

import torch
from torch import Tensor

CUTS = (1, 5, 10)
# Scores that are held at once, 64 MB.
WHOLE = 1 << 24


def best_ranks(
    queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor, *, block: int = 1024
) -> Tensor:
    """0-based rank of each query's best positive, by counting: int64 [q].

    queries: [q, d]. gallery: [g, d]. A gallery row is a positive of the queries that have its id.
    A query without any positive has rank g. Of equal scores the positive counts as the last,
    so a model that maps all to one point earns nothing, and neither does one that yields NaN.
    """
    ranks = torch.empty(len(queries), dtype=torch.int64)
    for start in range(0, len(queries), block):
        positive = query_ids[start : start + block, None] == gallery_ids[None, :]
        ranks[start : start + block] = _ranks(queries[start : start + block] @ gallery.T, positive)
    return ranks


def _ranks(scores: Tensor, positive: Tensor) -> Tensor:
    """The rank of each row's best positive: scores, positive [q, g] -> int64 [q]."""
    best = scores.masked_fill(~positive, -torch.inf).amax(dim=1, keepdim=True)
    return (~(scores < best) & ~positive).sum(dim=1)


def recall(ranks: Tensor, cut: int) -> float:
    """Share of queries, in percent, whose best positive is among the first ``cut``."""
    return 100.0 * float((ranks < cut).double().mean())


def retrieval_metrics(
    image: Tensor, text: Tensor, *, image_ids: Tensor | None = None, text_ids: Tensor | None = None
) -> dict[str, float]:
    """Recall at 1, 5 and 10 in both directions and their sum, in percent.

    image: [n, d], one row per picture. text: [m, d], one per caption. ids: int64, equal where
    picture and caption belong together; without them row k belongs to row k. An image query is a
    hit when ANY of its captions is in the top k.
    """
    left = torch.arange(len(image)) if image_ids is None else image_ids
    right = torch.arange(len(text)) if text_ids is None else text_ids
    if len(image) * len(text) <= WHOLE:
        # One product serves both directions.
        scores, positive = image @ text.T, left[:, None] == right[None, :]
        i2t, t2i = _ranks(scores, positive), _ranks(scores.T, positive.T)
    else:
        i2t = best_ranks(image, text, left, right)
        t2i = best_ranks(text, image, right, left)
    metrics: dict[str, float] = {}
    for name, ranks in (("i2t", i2t), ("t2i", t2i)):
        for cut in CUTS:
            metrics[f"{name}_r{cut}"] = recall(ranks, cut)
    metrics["rsum"] = sum(metrics.values())
    return metrics


def folded_metrics(
    image: Tensor, text: Tensor, image_ids: Tensor, text_ids: Tensor, *, fold: int = 1000
) -> dict[str, float]:
    """The "1K" protocol: mean of ``retrieval_metrics`` over disjoint folds of ``fold`` pictures.

    Folds follow the order of the pictures; pictures left over at the end are not used.
    Raises ValueError when there are fewer pictures than one fold.
    """
    if len(image) < fold:
        raise ValueError(f"{len(image)} pictures do not fill one fold of {fold}")
    parts: list[dict[str, float]] = []
    for start in range(0, len(image) - fold + 1, fold):
        ids = image_ids[start : start + fold]
        texts = torch.isin(text_ids, ids)
        parts.append(
            retrieval_metrics(
                image[start : start + fold],
                text[texts],
                image_ids=ids,
                text_ids=text_ids[texts],
            )
        )
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def category_share(image: Tensor, text: Tensor, labels: Tensor, *, cut: int = 10) -> float:
    """Share, in percent, of the first ``cut`` results that have the query's label, both ways.

    image, text: [n, d], row k of one belongs to row k of the other. labels: int64 [n].
    """
    depth = min(cut, len(image))
    scores = image @ text.T
    top = torch.stack([both.topk(depth, dim=1).indices for both in (scores, scores.T)])
    return 100.0 * float((labels[top] == labels[:, None]).double().mean())
