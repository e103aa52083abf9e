"""What all tests share: one thread, no network, and a watch over the global generators."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Before anything imports the packages that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"

import numpy as np
import pytest
import torch
from hypothesis import settings

# Machines are slow at times, and a test must not fail for that; nor differ from run to run.
settings.register_profile("motet", deadline=None, derandomize=True)
settings.load_profile("motet")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Several processes share the cores, and sums must not depend on how many there are."""
    torch.set_num_threads(1)


@pytest.fixture
def rng_untouched() -> Iterator[None]:
    """Fails a test that draws from, or seeds, a global generator of torch or NumPy."""
    before = _global_generators()
    yield
    after = _global_generators()
    moved = [name for name, state in before.items() if after[name] != state]
    assert not moved, f"the global generator of {', '.join(moved)} was used"


def _global_generators() -> dict[str, object]:
    # Looked at, never drawn from.
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (kind, np.asarray(keys).tobytes(), *rest),
    }
