"""How much privacy is spent: counts of equal mechanisms, and the epsilon of their composition."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np

from motet.core.errors import ConfigError
from motet.core.tree import Tree
from motet.nn.private import response_chance

Kind: TypeAlias = Literal["rdp", "pld"]
Sampling: TypeAlias = Literal["fixed", "poisson"]
Orders: TypeAlias = tuple[float, ...]
# The orders of the reference values; dp-accounting's own, taken by default, have fractions too.
WHOLE_ORDERS: Orders = (*(float(order) for order in range(2, 65)), 128.0, 256.0, 512.0)


@dataclass(frozen=True)
class Gaussian:
    """One noised release: noise multiplier, and the chance with which a unit was drawn for it.

    fixed: a fixed number of units was drawn without replacement; else each by its own chance.
    """

    noise: float
    chance: float = 1.0
    fixed: bool = False


@dataclass(frozen=True)
class Response:
    """One vote by randomised response among ``choices``."""

    epsilon: float
    choices: int


Mechanism: TypeAlias = Gaussian | Response


class Accountant:
    """Counts what was released; its whole state is a plain tree.

    kind: "rdp" (Renyi orders) or "pld" (privacy loss distributions, tighter and slower), both of
    dp-accounting. orders: of "rdp" alone; None for dp-accounting's.
    """

    def __init__(self, kind: Kind = "rdp", orders: Sequence[float] | None = None) -> None:
        self.kind: Kind = kind
        self.orders: Orders | None = None if orders is None else tuple(orders)
        self._counts: dict[Mechanism, int] = {}
        # Releases of one sample of units are one mechanism: the sample is drawn once for all.
        self._sample: str = ""
        self._drawn: Gaussian | None = None

    def add(self, mechanism: Mechanism, times: int = 1, *, sample: str = "") -> None:
        """Counts so many releases.

        sample: names the draw of units that a sampled release goes back to. Those of one name that
        follow each other are taken as releases of one sample, which is never too little.
        """
        if not isinstance(mechanism, Gaussian) or mechanism.chance >= 1 or not sample:
            self._count(mechanism, times)
            return
        joint = _joint(mechanism, times)
        if self._drawn is not None:
            if self._sample == sample:
                joint = _both(self._drawn, joint)
            else:
                self._count(self._drawn, 1)
        self._sample, self._drawn = sample, joint

    def _count(self, mechanism: Mechanism, times: int) -> None:
        if times < 0:
            raise ValueError(f"a mechanism is used 0 times or more, not {times}")
        if times:
            self._counts[mechanism] = self._counts.get(mechanism, 0) + times

    def after(self, mechanism: Mechanism, times: int = 1, *, sample: str = "") -> Accountant:
        """What there would be after these releases; this accountant stays as it is."""
        found = Accountant.of(self.tree(), self.kind, self.orders)
        found.add(mechanism, times, sample=sample)
        return found

    def epsilon(self, delta: float) -> float:
        """The epsilon of all releases together at this delta; infinite for one without noise."""
        return self.bound(delta)[0]

    def bound(self, delta: float) -> tuple[float, str]:
        """Epsilon, and in words which bound it is."""
        if not 0 < delta < 1:
            raise ConfigError(f"delta must lie between 0 and 1, not {delta:g}")
        counts = dict(self._counts)
        if self._drawn is not None:
            counts[self._drawn] = counts.get(self._drawn, 0) + 1
        return _bound(tuple(sorted(counts.items(), key=repr)), delta, self.kind, self.orders)

    def tree(self) -> Tree:
        """The counts, to be kept."""
        return {
            "counts": [[*_plain(mechanism), times] for mechanism, times in self._counts.items()],
            "sample": self._sample,
            "drawn": None if self._drawn is None else _plain(self._drawn),
        }

    @classmethod
    def of(
        cls, tree: Tree | None, kind: Kind = "rdp", orders: Sequence[float] | None = None
    ) -> Accountant:
        """The accountant whose ``tree`` this is; a new one without any."""
        found = cls(kind, orders)
        for *mechanism, times in (tree or {}).get("counts", []):
            found._count(_mechanism(mechanism), int(times))
        drawn = (tree or {}).get("drawn")
        if drawn is not None:
            made = _mechanism(drawn)
            assert isinstance(made, Gaussian)
            found._sample, found._drawn = str((tree or {})["sample"]), made
        return found


def _plain(mechanism: Mechanism) -> list[Any]:
    name = "gaussian" if isinstance(mechanism, Gaussian) else "response"
    return [name, *astuple(mechanism)]


def _mechanism(plain: Sequence[Any]) -> Mechanism:
    name, *values = plain
    if name == "gaussian":
        return Gaussian(float(values[0]), float(values[1]), bool(values[2]))
    return Response(float(values[0]), int(values[1]))


def _joint(mechanism: Gaussian, times: int) -> Gaussian:
    """So many releases of one sample as one."""
    return replace(mechanism, noise=mechanism.noise / math.sqrt(times))


def _both(a: Gaussian, b: Gaussian) -> Gaussian:
    """Two releases of one sample as one, at the larger chance of the two."""
    noise = (a.noise**-2 + b.noise**-2) ** -0.5 if a.noise and b.noise else 0.0
    return Gaussian(noise, max(a.chance, b.chance), a.fixed or b.fixed)


def gaussian_epsilon(
    noise: float,
    chance: float,
    times: int,
    delta: float,
    kind: Kind = "rdp",
    sampling: Sampling = "poisson",
    orders: Sequence[float] | None = None,
) -> float:
    """Epsilon of ``times`` noised sums with this multiplier, each over a sample of its own.

    chance: with which a unit is drawn. sampling: "poisson", each unit by itself; "fixed", so many
    of all without replacement, whose bound is the smaller one of ``fixed_bounds``.
    """
    accountant = Accountant(kind, orders)
    accountant.add(Gaussian(noise, chance, sampling == "fixed"), times)
    return accountant.epsilon(delta)


def noise_for(
    epsilon: float,
    chance: float,
    times: int,
    delta: float,
    kind: Kind = "rdp",
    sampling: Sampling = "poisson",
    orders: Sequence[float] | None = None,
) -> float:
    """The least noise multiplier, to one part in 10,000, that spends at most ``epsilon``.

    Raises ConfigError where even a multiplier of 10,000 spends more.
    """

    def spent(noise: float) -> float:
        return gaussian_epsilon(noise, chance, times, delta, kind, sampling, orders)

    # From 1 on, since a tiny noise is slow to count and never meant.
    high = 1.0
    while spent(high) > epsilon:
        high *= 2
        if high > 1e4:
            raise ConfigError(
                f"no noise keeps epsilon at {epsilon:g} with delta={delta:g} and {times} releases; "
                "allow a larger epsilon or delta, or fewer rounds"
            )
    low = high / 2
    while spent(low) <= epsilon and low > 1e-2:
        low, high = low / 2, low
    while high > low * 1.0001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    return high


def default_delta(count: int) -> float:
    """The usual delta for so many units, count^-1.1; ConfigError for fewer than 2."""
    if count < 2:
        raise ConfigError(
            f"there is no usual delta for {count} units of privacy; give protect.privacy.delta"
        )
    return float(count**-1.1)


Counts: TypeAlias = tuple[tuple[Mechanism, int], ...]


@lru_cache(maxsize=4096)
def _bound(counts: Counts, delta: float, kind: Kind, orders: Orders | None) -> tuple[float, str]:
    spent = [(mechanism, times) for mechanism, times in counts if _costs(mechanism)]
    if not spent:
        return 0.0, "nothing was released"
    if any(isinstance(mechanism, Gaussian) and not mechanism.noise for mechanism, _ in spent):
        return math.inf, "a release without noise has no epsilon"
    if not any(isinstance(mechanism, Gaussian) for mechanism, _ in spent):
        # Epsilons of delta 0 also simply add up.
        pure = sum(m.epsilon * times for m, times in spent if isinstance(m, Response))
        found = _composed(tuple(spent), delta, kind, orders)
        return min((pure, "sum of the votes' epsilons"), (found, _name(kind)))
    return fixed_bounds(tuple(spent), delta, kind, orders)


def _costs(mechanism: Mechanism) -> bool:
    return isinstance(mechanism, Response) or mechanism.chance > 0


def _name(kind: Kind) -> str:
    return "Renyi orders" if kind == "rdp" else "privacy loss distributions"


def fixed_bounds(
    counts: Counts, delta: float, kind: Kind, orders: Orders | None = None
) -> tuple[float, str]:
    """The smaller one of the bounds for samples of a fixed size, and in words which it is.

    One ignores the sampling: a unit is compared with nothing in its place, and moves a sum by
    the clip. The other is that of sampling without replacement (Wang, Balle, Kasiviswanathan,
    AISTATS 2019), for which a unit is compared with any other: that moves a sum by twice the clip,
    so that the noise counts half. "pld" knows the first alone. Without such samples there is one.
    """
    fixed = [m for m, _ in counts if isinstance(m, Gaussian) and m.fixed and m.chance < 1]
    if not fixed:
        return _composed(counts, delta, kind, orders), _name(kind)
    whole = tuple((replace(m, chance=1.0) if m in fixed else m, times) for m, times in counts)
    plain = (_composed(whole, delta, kind, orders), f"{_name(kind)}, sampling not counted")
    if kind == "pld":
        return plain
    words = "Renyi orders of sampling without replacement"
    return min(plain, (_composed(counts, delta, kind, orders), words))


def _composed(counts: Counts, delta: float, kind: Kind, orders: Orders | None) -> float:
    if kind == "pld":
        return _pld(counts, delta)
    dp = _dp("dp_accounting.rdp")
    used = orders or tuple(float(order) for order in dp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS)
    total = sum(times * _curve(mechanism, used) for mechanism, times in counts)
    return float(dp.compute_epsilon(used, total, delta)[0])


@lru_cache(maxsize=512)
def _curve(mechanism: Mechanism, orders: Orders) -> Any:
    """The Renyi divergence of one release at each order: float64 [orders]."""
    dp, rdp = _dp("dp_accounting"), _dp("dp_accounting.rdp")
    relations = dp.NeighboringRelation
    if isinstance(mechanism, Response):
        chance = response_chance(mechanism.epsilon, mechanism.choices)
        event = dp.RandomizedResponseDpEvent(chance, mechanism.choices)
        relation = relations.REPLACE_ONE
    elif mechanism.fixed and mechanism.chance < 1:
        share = Fraction(mechanism.chance).limit_denominator(1_000_000)
        halved = dp.GaussianDpEvent(mechanism.noise / 2)
        event = dp.SampledWithoutReplacementDpEvent(share.denominator, share.numerator, halved)
        relation = relations.REPLACE_ONE
    else:
        event = dp.GaussianDpEvent(mechanism.noise)
        if mechanism.chance < 1:
            event = dp.PoissonSampledDpEvent(mechanism.chance, event)
        relation = relations.ADD_OR_REMOVE_ONE
    accountant = rdp.RdpAccountant(orders, relation)
    with _quiet():
        accountant.compose(event)
    return np.asarray(accountant.rdp)


@contextmanager
def _quiet() -> Iterator[None]:
    # It warns of every order that it leaves out, which only makes the bound a little larger.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _pld(counts: Counts, delta: float) -> float:
    losses = _dp("dp_accounting.pld.privacy_loss_distribution")
    total = losses.identity()
    for mechanism, times in counts:
        if isinstance(mechanism, Response):
            chance = response_chance(mechanism.epsilon, mechanism.choices)
            made = losses.from_randomized_response(chance, mechanism.choices)
            total = total.compose(made.self_compose(times))
        elif mechanism.chance >= 1:
            std = mechanism.noise / math.sqrt(times)
            total = total.compose(losses.from_gaussian_mechanism(std))
        else:
            made = losses.from_gaussian_mechanism(mechanism.noise, sampling_prob=mechanism.chance)
            total = total.compose(made.self_compose(times))
    return float(total.get_epsilon_for_delta(delta))


def _dp(name: str) -> Any:
    """A module of dp-accounting, which is not needed until something is counted."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            "privacy is counted by dp-accounting, which is not there: pip install 'motet[privacy]'"
        ) from error
