"""What a part of a message IS: the declaration by which protection and accounting go."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """The kind of one key of a payload; raw data is a kind too, and is refused."""

    WEIGHTS = "weights"
    CONTROL = "control"
    GRADIENTS = "gradients"
    REPRESENTATIONS = "representations"
    LOGITS = "logits"
    VOTES = "votes"
    SKETCH = "sketch"
    ACTIVATIONS = "activations"
    SYNTHETIC = "synthetic"
    LABELS = "labels"
    METRIC = "metric"
    RAW = "raw"
