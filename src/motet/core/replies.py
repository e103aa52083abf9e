"""The answers of a group: site -> value, in site-name order, with means and stacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor

from motet.core.errors import ConfigError, WireError
from motet.core.tree import Tree, mean

# (key, site -> value, site -> weight) -> one value, by the recipe's rule for the key's kind.
Combine: TypeAlias = Callable[[str, Mapping[str, Any], Mapping[str, float]], Any]


class Replies(Mapping[str, Tree]):
    """Site name -> reply, sorted by name; ``failed`` holds why others did not answer.

    combine: how values become one; None for the plain weighted mean. hidden: key -> why single
    sites' values under it may not be read.
    """

    def __init__(
        self,
        values: Mapping[str, Tree],
        failed: Mapping[str, str],
        *,
        combine: Combine | None = None,
        hidden: Mapping[str, str] | None = None,
    ) -> None:
        self._values = {name: values[name] for name in sorted(values)}
        self.failed = dict(sorted(failed.items()))
        self._combine = combine or plain_mean
        self._hidden = dict(hidden or {})
        self._shown = self._values
        if self._hidden:
            self._shown = {name: _Veiled(v, self._hidden) for name, v in self._values.items()}

    def __getitem__(self, site: str) -> Tree:
        return self._shown[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def having(self, key: str) -> dict[str, Any]:
        """Site -> value of this key, for the sites whose reply has it."""
        if key in self._hidden:
            raise ConfigError(self._hidden[key])
        return {name: reply[key] for name, reply in self._values.items() if key in reply}

    def mean(self, key: str, *, by: str | Mapping[str, float] | None = None) -> Any:
        """Mean of this key over the sites that sent it, by the recipe's rule for its kind.

        by: key of a number in the reply that weighs it (such as "samples"), or site -> weight;
        None weighs all alike. In a tree of named groups, each leaf is averaged over the sites
        that sent that leaf.
        """
        have = {name: reply[key] for name, reply in self._values.items() if key in reply}
        if not have and key not in self._hidden:
            raise ConfigError(f"no reply has the key {key!r}; failed: {self.failed or 'none'}")
        return self._combine(key, have, {name: self._weight(name, by) for name in have})

    def _weight(self, site: str, by: str | Mapping[str, float] | None) -> float:
        if by is None:
            return 1.0
        return float(self._values[site][by] if isinstance(by, str) else by[site])

    def stack(self, key: str) -> Tensor:
        """The tensors of this key over the sites that sent it: [sites, ...]."""
        return torch.stack(list(self.having(key).values()))


def plain_mean(key: str, values: Mapping[str, Any], weights: Mapping[str, float]) -> Any:
    """The weighted mean of these values; raises WireError that names the key."""
    try:
        return mean(list(values.values()), [weights[site] for site in values])
    except WireError as error:
        raise WireError(f"the mean of {key!r}: {error}") from None


class _Veiled(dict[str, Any]):
    """A reply some of whose keys must not be read, and say why."""

    def __init__(self, value: Tree, hidden: Mapping[str, str]) -> None:
        super().__init__({key: item for key, item in value.items() if key not in hidden})
        self._hidden = hidden

    def __missing__(self, key: str) -> NoReturn:
        raise ConfigError(self._hidden[key]) if key in self._hidden else KeyError(key)

    def __contains__(self, key: object) -> bool:
        if key in self._hidden:
            raise ConfigError(self._hidden[str(key)])
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default; raises ConfigError for what is hidden."""
        return super().get(key, default) if key in self else default
