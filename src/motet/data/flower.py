"""Partitioners of flwr-datasets, for those who have one that Motet lacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from motet.core.batch import Column
from motet.core.errors import ConfigError


def from_flwr(partitioner: Any, labels: Column, column: str = "label") -> list[Tensor]:
    """Row positions from a fresh partitioner of flwr-datasets (extra ``flower``).

    labels: what it partitions by; ``column`` is the name it was told (its ``partition_by``). Some
    of them leave rows out, and say so in a warning.
    """
    try:
        from datasets import Dataset as HFDataset
    except ImportError:
        raise ConfigError("from_flwr needs flwr-datasets: pip install 'motet[flower]'") from None
    values = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    partitioner.dataset = HFDataset.from_dict({column: values, "motet_row": range(len(values))})
    parts = [partitioner.load_partition(site) for site in range(partitioner.num_partitions)]
    rows = [np.sort(np.asarray(part["motet_row"], dtype=np.int64)) for part in parts]
    return [torch.from_numpy(row) for row in rows]
