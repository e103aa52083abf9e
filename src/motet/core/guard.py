"""What protects a run: guards at every site's door, and rules by which the hub joins answers.

A reply goes through these, in this order: declared kinds are checked; guards (noise, sparse
updates, masks); codecs; the frame; and at the hub the size, the codecs, the guards in reverse
order; the checks of ``motet.core.validate``; and the rule of its kind when the method asks for a
mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from motet.core.kinds import Kind
from motet.core.messages import Traits
from motet.core.middleware import Middleware
from motet.core.tree import Tree

# Keys of a message that begin with this belong to guards, and never reach a method.
OWN = "@"
# What a guard tells the hub of a site's privacy: {"epsilon", "delta"}, for the events.
SPENT = "@privacy"


@dataclass(frozen=True)
class Passage:
    """One reply on its way from a site to the hub: whose it is, and what it answers.

    sends: top-level key of the reply -> kind. received: what was asked with, as the method sees
    it. own: what guards sent along with the question, by key. rng: a generator keyed by run, site,
    question and key; at the site alone. memory: what this guard keeps at the site from one reply
    to the next; assign to it, since it counts only when the reply leaves.
    """

    site: str
    op: str
    tag: str
    round: int
    sends: Mapping[str, Kind]
    received: Tree
    own: Tree = field(default_factory=dict)
    rng: Callable[..., torch.Generator] = torch.Generator
    memory: Tree = field(default_factory=dict)


class Guard(Protocol):
    """Changes a reply before it leaves its site, and changes it back when it arrives."""

    @property
    def name(self) -> str:
        """Names what the guard keeps at a site."""

    def leave(self, value: Tree, passage: Passage) -> Tree:
        """The reply as it travels; must not change ``value`` in place."""

    def arrive(self, value: Tree, passage: Passage) -> Tree:
        """The reply as the hub reads it."""


class Answering(Guard, Protocol):
    """A guard that the hub also asks questions of its own."""

    @property
    def operations(self) -> frozenset[str]:
        """Their names, which begin with "@"."""

    def answer(self, site: str, op: str, payload: Tree) -> Tree:
        """A site's answer to one of them; raises MotetError."""


@dataclass(frozen=True)
class Call:
    """One mean that a method asks for.

    values: site -> what it sent under ``key``. weights: site -> the weight that the method wants.
    sent: what all sites had got under that key, or None; the values may be a part of it.
    cohort: how many were asked, whoever answered. rng: keyed by run, question and key. memory:
    what the rule keeps over the run, saved with the hub's state.
    """

    op: str
    tag: str
    round: int
    key: str
    values: Mapping[str, Any]
    weights: Mapping[str, float]
    sent: Any | None
    cohort: int
    rng: torch.Generator
    memory: Tree


@dataclass(frozen=True)
class Question:
    """One question to a group of sites, before or after it was answered.

    sends: top-level key of the replies -> kind. shared: what all are asked with; received: site ->
    that, and what is its own. chance: the probability with which any one site was drawn.
    population: how many could have been.
    """

    op: str
    tag: str
    round: int
    sends: Mapping[str, Kind]
    sites: tuple[str, ...]
    shared: Tree
    received: Mapping[str, Tree]
    chance: float
    population: int

    def sent(self, key: str) -> Any | None:
        """What all sites got under this key; None where they got different things, or nothing."""
        # A sample may be empty: then there is what all would have got.
        asked = list(self.received.values()) or [self.shared]
        first = asked[0].get(key)
        return first if all(received.get(key) is first for received in asked) else None


class Combiner(Protocol):
    """The rule by which values of some kinds become one."""

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds that it is for."""

    @property
    def hides(self) -> bool:
        """Whether the method may read no single site's value of these kinds."""

    def admit(
        self, values: Mapping[str, Tree], question: Question, memory: Tree
    ) -> dict[str, Tree]:
        """The replies of a question as ``mean`` is to see them, once all are there."""

    def mean(self, call: Call) -> Any:
        """One value for all."""

    def spend(self, question: Question, memory: Tree) -> Tree | None:
        """What the question costs in privacy, for the events; None for nothing.

        Called before it is sent. Raises BudgetError when it would cost too much.
        """


class Summed(Protocol):
    """Values of some kinds that reach the hub as their sum alone, after questions of its own."""

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds that are summed."""

    def prepare(
        self,
        question: Question,
        traits: Mapping[str, Traits],
        ask: Callable[[str, Mapping[str, Tree]], Mapping[str, Tree]],
    ) -> dict[str, Tree]:
        """Site -> what goes along with its question; who is missing has dropped out."""

    def unfit(self, question: Question, values: Mapping[str, Tree]) -> dict[str, str]:
        """Site -> why its reply can be no part of the sum."""

    def open(self, question: Question, values: Mapping[str, Tree]) -> dict[str, Any]:
        """Key -> mean of what these sites sent under it."""

    def fits(self, weights: Mapping[str, float], values: Mapping[str, Tree], key: str) -> None:
        """Raises ConfigError for a mean with other weights than those of the sum."""


@dataclass(frozen=True)
class Protection:
    """All that stands between the sites of a run and its hub; by default nothing but checks.

    middleware: codecs. guards: at every site, in the order in which a reply leaves. combiners: at
    the hub. summed: what the hub sees as a sum alone. poisson: samples draw every site with an
    equal probability of its own, so that their size varies. reply_bytes: the largest frame that
    the hub takes from a site. checks: kind -> what looks at a value of it, and raises WireError.
    """

    middleware: Sequence[Middleware] = ()
    guards: Sequence[Guard] = ()
    combiners: Sequence[Combiner] = ()
    summed: Summed | None = None
    poisson: bool = False
    reply_bytes: int = 2**32
    checks: Mapping[Kind, Callable[[Any], None]] = field(default_factory=dict)
