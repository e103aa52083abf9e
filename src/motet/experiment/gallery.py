"""Retrieval pictures: what a model finds for some captions, for the report."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from motet.core.batch import Dataset
from motet.core.errors import DataError
from motet.core.learner import evaluating
from motet.models.base import MultimodalModel

Plain = dict[str, Any]
EDGE = 96
SMALL = 64


def choose_queries(test: Dataset, count: int = 6) -> list[int]:
    """Positions of at most ``count`` rows with picture and text, spread over labels and rows.

    Depends on the data alone, so that no model's success can choose its own examples.
    """
    both = _both(test).tolist()
    if not both or count < 1:
        return []
    if test.labels is None:
        return _spread(both, count)
    first: dict[int, int] = {}
    for row in both:
        first.setdefault(int(test.labels[row]), row)
    chosen = _spread([first[label] for label in sorted(first)], count)
    rest = [row for row in both if row not in chosen]
    return chosen + _spread(rest, count - len(chosen))


def snapshot(
    model: MultimodalModel, test: Dataset, *, queries: Sequence[int], depth: int = 5
) -> list[Plain]:
    """What the model's picture search puts first for the captions at these positions.

    Per query: "query" its position, "place" of the right picture (1 is best), "of" how many
    pictures, and "found", the first ``depth`` as {"row", "right", "same"}: position, whether it
    is the picture of this caption, whether it has the caption's label. Of equal scores the right
    picture counts as the last, as in the metrics. Raises DataError for a query without picture
    or text.
    """
    gallery = _gallery(test)
    both = set(_both(test).tolist())
    for row in queries:
        if row not in both:
            raise DataError(f"row {row} cannot be searched for: it lacks its picture or its text")
    if not queries:
        return []
    at = torch.tensor(list(queries), dtype=torch.int64)
    texts = _encode(model, test.only(["text"]).take(at), "text")
    images = _encode(model, test.only(["image"]).take(gallery), "image")
    scores = texts @ images.T
    ids = _ids(test)
    return [
        _found(scores[i], ids[gallery] == ids[row], row, gallery, test.labels, depth)
        for i, row in enumerate(queries)
    ]


def gallery_json(stages: Mapping[str, Sequence[Plain]], test: Dataset) -> bytes:
    """The snapshots of several stages with every picture that they show, once, as a data URL."""
    shown: set[int] = set()
    for found in stages.values():
        for query in found:
            shown |= {query["query"], *(item["row"] for item in query["found"])}
    pictures = {str(row): _described(test, row) for row in sorted(shown)}
    content = {"pictures": pictures, "stages": {name: list(stages[name]) for name in stages}}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _found(
    scores: Tensor, right: Tensor, row: int, gallery: Tensor, labels: Tensor | None, depth: int
) -> Plain:
    """One query's result: scores, right [g] over the gallery."""
    # As in the metrics: a score that is no number earns nothing, and of equals the right one
    # comes last, since stable sorting keeps it behind the wrong ones.
    worst = torch.where(right, -torch.inf, torch.inf)
    scores = torch.where(scores.isnan(), worst, scores)
    behind = right.to(torch.int8).argsort(stable=True)
    order = behind[scores[behind].argsort(descending=True, stable=True)]
    found = []
    for position in order[:depth].tolist():
        other = int(gallery[position])
        same = labels is not None and bool(labels[other] == labels[row])
        found.append({"row": other, "right": bool(right[position]), "same": same})
    place = int(right[order].nonzero()[0]) + 1
    return {"query": row, "place": place, "of": len(gallery), "found": found}


def _both(test: Dataset) -> Tensor:
    if not {"image", "text"} <= set(test.columns):
        raise DataError("retrieval pictures need a test set of images and texts")
    return (test.present["image"] & test.present["text"]).nonzero().flatten()


def _ids(test: Dataset) -> Tensor:
    """Equal for rows of one picture: int64 [n]."""
    ids = test.about.get("image_id")
    return ids if isinstance(ids, Tensor) else torch.arange(len(test))


def _gallery(test: Dataset) -> Tensor:
    """Positions of the pictures to choose from, each picture once."""
    ids = _ids(test).tolist()
    first: dict[int, int] = {}
    for row in _both(test).tolist():
        first.setdefault(ids[row], row)
    return torch.tensor(list(first.values()), dtype=torch.int64)


def _spread(rows: Sequence[int], count: int) -> list[int]:
    """``count`` of the rows at even distances, or all when there are fewer."""
    if len(rows) <= count:
        return list(rows)
    return [rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count)]


def _encode(model: MultimodalModel, data: Dataset, modality: str) -> Tensor:
    """Unit embeddings [n, d] in eval mode."""
    with evaluating(model), torch.no_grad():
        ready = model.prepare(data)
        return torch.cat([model(batch).features[modality] for batch in ready.batches(512)])


def _described(test: Dataset, row: int) -> Plain:
    column = test.columns["image"]
    texts = test.columns["text"]
    label = None if test.labels is None else int(test.labels[row])
    named = label is not None and 0 <= label < len(test.classes)
    return {
        "caption": texts[row] if isinstance(texts, tuple) else "",
        "label": test.classes[label] if named and label is not None else "",
        "data": _data_url(column[row]) if isinstance(column, Tensor) else "",
    }


def _data_url(picture: Tensor) -> str:
    """A picture, uint8 [3, H, W], as a small file inside a URL: exact when it is small itself."""
    from PIL import Image

    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    exact = max(image.size) <= SMALL
    image.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if exact:
        image.save(file, "WEBP", lossless=True, method=6)
    else:
        image.save(file, "WEBP", quality=80, method=6)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
