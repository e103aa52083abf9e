"""What a model is worth on a test set: every metric that its modalities and labels allow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from motet.core.batch import Dataset
from motet.core.learner import evaluating
from motet.evaluate.retrieval import category_share, retrieval_metrics

Metrics = dict[str, tuple[float, int]]


def evaluate(model: nn.Module, data: Dataset, *, batch: int = 512) -> Metrics:
    """Metric -> (value, number of rows it is a mean over).

    With pictures and texts: recall at 1, 5, 10 both ways, their sum "rsum", and "cat@10" where
    the rows have labels. With a class head: "accuracy". All in percent.
    """
    prepare = getattr(model, "prepare", None)
    ready: Dataset = data if prepare is None else prepare(data)
    features, logits = _outputs(model, ready, batch)
    metrics: dict[str, float] = {}
    if "image" in features and "text" in features:
        metrics |= _retrieval(features["image"], features["text"], data)
    if logits is not None and data.labels is not None:
        metrics["accuracy"] = 100.0 * float((logits.argmax(dim=1) == data.labels).double().mean())
    return {name: (value, len(data)) for name, value in metrics.items()}


def _outputs(
    model: nn.Module, ready: Dataset, batch: int
) -> tuple[dict[str, Tensor], Tensor | None]:
    features: dict[str, list[Tensor]] = {}
    logits: list[Tensor] = []
    with evaluating(model), torch.no_grad():
        for rows in ready.batches(batch):
            output = model(rows)
            for name, value in output.features.items():
                features.setdefault(name, []).append(value)
            if output.logits is not None:
                logits.append(output.logits)
    joined = {name: torch.cat(parts) for name, parts in features.items()}
    return joined, torch.cat(logits) if logits else None


def _retrieval(image: Tensor, text: Tensor, data: Dataset) -> dict[str, float]:
    ids = data.about.get("image_id")
    if not isinstance(ids, Tensor):
        metrics = retrieval_metrics(image, text)
    else:
        # Captions of one picture are several rows with the same picture: it stands in the
        # gallery once.
        first = _first_of_each(ids)
        metrics = retrieval_metrics(image[first], text, image_ids=ids[first], text_ids=ids)
    if data.labels is not None:
        metrics["cat@10"] = category_share(image, text, data.labels)
    return metrics


def _first_of_each(ids: Tensor) -> Tensor:
    """Positions at which an id occurs for the first time, in order."""
    seen: dict[int, int] = {}
    for position, value in enumerate(ids.tolist()):
        seen.setdefault(value, position)
    return torch.tensor(list(seen.values()), dtype=torch.int64)
