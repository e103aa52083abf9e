"""The answers of a group: site -> value, in site-name order, with means and stacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from motet.core.errors import ConfigError
from motet.core.tree import Tree, mean


class Replies(Mapping[str, Tree]):
    """Site name -> reply, sorted by name; ``failed`` holds why others did not answer."""

    def __init__(self, values: Mapping[str, Tree], failed: Mapping[str, str]) -> None:
        self._values = {name: values[name] for name in sorted(values)}
        self.failed = dict(sorted(failed.items()))

    def __getitem__(self, site: str) -> Tree:
        return self._values[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def having(self, key: str) -> dict[str, Any]:
        """Site -> value of this key, for the sites whose reply has it."""
        return {name: reply[key] for name, reply in self.items() if key in reply}

    def mean(self, key: str, *, by: str | None = None) -> Any:
        """Mean of this key over the sites that sent it.

        by: key of a number in the reply that weighs it (such as "samples"); None weighs all alike.
        In a tree of named groups, each leaf is averaged over the sites that sent that leaf.
        """
        have = self.having(key)
        if not have:
            raise ConfigError(f"no reply has the key {key!r}; failed: {self.failed or 'none'}")
        weights = [1.0 if by is None else float(self[name][by]) for name in have]
        return mean(list(have.values()), weights)

    def stack(self, key: str) -> Tensor:
        """The tensors of this key over the sites that sent it: [sites, ...]."""
        return torch.stack(list(self.having(key).values()))
