"""The answers of a group: site -> value, in site-name order, with means and stacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor

from motet.core.errors import ConfigError, WireError
from motet.core.folding import By, Running, only_mean
from motet.core.tree import Tree, mean, part_like

# (key, site -> value, site -> weight, what the values are changes of) -> one value, by the recipe's
# rule for the key's kind. None as the last: what all sites had been sent.
Combine: TypeAlias = Callable[[str, Mapping[str, Any], Mapping[str, float], Any], Any]


@dataclass(frozen=True)
class Origin:
    """What an answer started from: the round of the question, and what the site was asked with."""

    round: int
    received: Tree = field(default_factory=dict)


class Replies(Mapping[str, Tree]):
    """Site name -> reply, sorted by name; ``failed`` holds why others did not answer.

    combine: how values become one; None for the plain weighted mean. hidden: key -> why single
    sites' values under it may not be read. origins: site -> what its answer started from.
    """

    def __init__(
        self,
        values: Mapping[str, Tree],
        failed: Mapping[str, str],
        *,
        combine: Combine | None = None,
        hidden: Mapping[str, str] | None = None,
        origins: Mapping[str, Origin] | None = None,
        averaged: Mapping[str, By] | None = None,
        means: Mapping[str, Running] | None = None,
    ) -> None:
        self._values = {name: values[name] for name in sorted(values)}
        self.failed = dict(sorted(failed.items()))
        self._combine = combine or plain_mean
        self._hidden = dict(hidden or {})
        self._origins = dict(origins or {})
        self._averaged = dict(averaged or {})
        self._means = dict(means or {})
        # Key -> why it cannot be read site by site.
        self._veils = {**{key: only_mean(key) for key in self._averaged}, **self._hidden}
        self._shown = self._values
        if self._veils:
            self._shown = {name: _Veiled(v, self._veils) for name, v in self._values.items()}

    def __getitem__(self, site: str) -> Tree:
        return self._shown[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def having(self, key: str) -> dict[str, Any]:
        """Site -> value of this key, for the sites whose reply has it."""
        if key in self._veils:
            raise ConfigError(self._veils[key])
        return {name: reply[key] for name, reply in self._values.items() if key in reply}

    @property
    def rounds(self) -> dict[str, int]:
        """Site -> the round in which it was asked."""
        return {name: self._origins[name].round for name in self._values}

    def mean(
        self,
        key: str,
        *,
        by: By = None,
        onto: Any = None,
        factors: Mapping[str, float] | None = None,
    ) -> Any:
        """Mean of this key over the sites that sent it, by the recipe's rule for its kind.

        by: key of a number in the reply that weighs it (such as "samples"), or site -> weight;
        None weighs all alike, or as the question said (``averaged``). In a tree of named groups,
        each leaf is averaged over the sites that sent that leaf. onto: for answers that did not
        all start from the same value: each counts as ``onto`` plus its change, which is what it
        sent less what its site had been sent under this key, times its factor (1 without).
        """
        if key in self._averaged:
            by = self._declared(key, by, onto)
            if len(self._means.get(key, ())):
                return self._means[key].value()
        have = {name: reply[key] for name, reply in self._values.items() if key in reply}
        if not have and key not in self._hidden:
            raise ConfigError(f"no reply has the key {key!r}; failed: {self.failed or 'none'}")
        if onto is not None:
            have = {
                name: moved(value, self._sent(name, key), onto, (factors or {}).get(name, 1.0))
                for name, value in have.items()
            }
        return self._combine(key, have, {name: self._weight(name, by) for name in have}, onto)

    def _declared(self, key: str, by: By, onto: Any) -> By:
        """What weighs the mean of a key that the question named; ConfigError for another mean."""
        declared = self._averaged[key]
        if onto is not None or (by is not None and by != declared):
            raise ConfigError(
                f"the question asked for the mean of {key!r} by {declared!r}, and no other can be "
                "had of it; leave it out of averaged="
            )
        return declared

    def _sent(self, site: str, key: str) -> Any:
        origin = self._origins.get(site)
        return None if origin is None else origin.received.get(key)

    def _weight(self, site: str, by: By) -> float:
        if by is None:
            return 1.0
        return float(self._values[site][by] if isinstance(by, str) else by[site])

    def stack(self, key: str) -> Tensor:
        """The tensors of this key over the sites that sent it: [sites, ...]."""
        return torch.stack(list(self.having(key).values()))


def together(parts: Sequence[Replies]) -> Replies:
    """The answers of several collections as one, put together by the rule of the last.

    A site's second answer is named "SITE (2)", and so on.
    """
    values: dict[str, Tree] = {}
    origins: dict[str, Origin] = {}
    failed: dict[str, str] = {}
    count: Counter[str] = Counter()
    for part in parts:
        failed |= part.failed
        for site, value in part._values.items():
            count[site] += 1
            name = site if count[site] == 1 else f"{site} ({count[site]})"
            values[name], origins[name] = value, part._origins[site]
    last = parts[-1] if parts else Replies({}, {})
    return Replies(values, failed, combine=last._combine, hidden=last._hidden, origins=origins)


def moved(value: Any, base: Any, onto: Any, factor: float) -> Any:
    """``onto`` + ``factor`` (``value`` - ``base``), leaf by leaf; counters as in ``value``.

    Just the value where it started from ``onto`` and counts whole. base, onto: a tree that has the
    value's names and shapes, beside others maybe. Raises ConfigError where one has not.
    """
    start, end = part_like(base, value), part_like(onto, value)
    if start is None or end is None:
        raise ConfigError("a mean of changes needs what the sites were sent under the same key")
    return _moved(value, start, end, factor)


def _moved(value: Any, base: Any, onto: Any, factor: float) -> Any:
    if isinstance(value, Mapping):
        return {name: _moved(value[name], base[name], onto[name], factor) for name in value}
    whole = factor == 1 and torch.equal(base, onto)
    return value if whole or not value.is_floating_point() else onto + factor * (value - base)


def plain_mean(
    key: str, values: Mapping[str, Any], weights: Mapping[str, float], sent: Any = None
) -> Any:
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
