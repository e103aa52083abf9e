"""Partitioners of flwr-datasets, adapted."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch

from motet.core import ConfigError
from motet.data import from_flwr


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "datasets":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'motet\[flower\]'"):
        from_flwr(object(), ("a", "b"))


def test_partitioners_of_flwr_datasets_can_be_used() -> None:
    flwr = pytest.importorskip("flwr_datasets.partitioner")
    labels = torch.arange(60) % 3
    parts = from_flwr(
        flwr.PathologicalPartitioner(3, "label", 1, "first-deterministic", seed=1), labels
    )
    assert torch.equal(torch.cat(parts).sort()[0], torch.arange(60))
    assert [len(set(labels[part].tolist())) for part in parts] == [1, 1, 1]
    named = from_flwr(flwr.NaturalIdPartitioner("style"), ("b", "a", "b"), "style")
    assert sorted(part.tolist() for part in named) == [[0, 2], [1]]
