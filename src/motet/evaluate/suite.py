"""What a model is worth on a test set: every metric that its modalities and labels allow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from motet.core.batch import Dataset
from motet.core.passing import PASS_OVER
from motet.evaluate.retrieval import category_share, retrieval_metrics

Metrics = dict[str, tuple[float, int]]
# What retrieval goes between.
PAIR = ("image", "text")


def evaluate(model: nn.Module, data: Dataset, *, batch: int = 512) -> Metrics:
    """Metric -> (value, number of rows it is a mean over).

    With pictures and texts: recall at 1, 5, 10 both ways, their sum "rsum", and "cat@10" where
    the rows have labels, over the rows that have both. With a class head: "accuracy", over the
    rows that have anything. All in percent; a metric without any row is left out.
    """
    prepare = getattr(model, "prepare", None)
    ready: Dataset = data if prepare is None else prepare(data)
    found = PASS_OVER.get()(model, ready, PAIR, batch)
    features, logits = found.features, found.logits
    metrics: Metrics = {}
    if features:
        rows = (data.present["image"] & data.present["text"]).nonzero().flatten()
        if len(rows):
            values = _retrieval(features["image"][rows], features["text"][rows], data, rows)
            metrics |= {name: (value, len(rows)) for name, value in values.items()}
    if logits is not None and data.labels is not None:
        seen = torch.stack([data.present[name] for name in found.names]).any(dim=0)
        seen &= data.labels >= 0
        right = (logits.argmax(dim=1) == data.labels)[seen]
        if len(right):
            metrics["accuracy"] = (100.0 * float(right.double().mean()), len(right))
    return metrics


def _retrieval(image: Tensor, text: Tensor, data: Dataset, rows: Tensor) -> dict[str, float]:
    """Metrics of these rows of the data: image, text [n, d]; rows int64 [n]."""
    ids = data.about.get("image_id")
    if not isinstance(ids, Tensor):
        metrics = retrieval_metrics(image, text)
    else:
        # Captions of one picture are several rows with the same picture: it stands in the
        # gallery once.
        own = ids[rows]
        first = _first_of_each(own)
        metrics = retrieval_metrics(image[first], text, image_ids=own[first], text_ids=own)
    if data.labels is not None:
        metrics["cat@10"] = category_share(image, text, data.labels[rows])
    return metrics


def _first_of_each(ids: Tensor) -> Tensor:
    """Positions at which an id occurs for the first time, in order."""
    seen: dict[int, int] = {}
    for position, value in enumerate(ids.tolist()):
        seen.setdefault(value, position)
    return torch.tensor(list(seen.values()), dtype=torch.int64)
