"""What benchmarks make known to recipes is forgotten after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from motet.data import registry as data_registry
from motet.methods import registry as method_registry


@pytest.fixture(autouse=True)
def _registries() -> Iterator[None]:
    methods, data = dict(method_registry.METHODS), dict(data_registry._BY_NAME)
    yield
    for registry, before in ((method_registry.METHODS, methods), (data_registry._BY_NAME, data)):
        registry.clear()
        registry.update(before)
