"""Robust rules of a recipe: how the hub puts values together that some sites may have made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from motet.core.errors import ConfigError, MotetError, SiteError
from motet.core.guard import Call, Question
from motet.core.kinds import Kind
from motet.core.messages import Engine, Request
from motet.core.tree import Leaf, Tree, leaves, minus
from motet.nn.robust import bulyan, iterative_multi_krum, krum, median, multi_krum, trimmed_mean
from motet.nn.robust_means import (
    finite_norms,
    first_bound,
    fltrust,
    foolsgold,
    geometric_median,
    next_bound,
    norm_bound_mean,
)
from motet.protect.stacked import Path, Stack, joined

RuleName: TypeAlias = Literal[
    "trimmed-mean",
    "median",
    "krum",
    "multi-krum",
    "geometric-median",
    "norm-bound",
    "fltrust",
    "bulyan",
    "foolsgold",
]
# An update of the hub's own, of the names and shapes of those that it is compared with.
Root: TypeAlias = Callable[[Call], Tree]
# Votes, labels, metrics and sketches are no updates, and activations answer single rows.
COMBINED = frozenset(
    {Kind.WEIGHTS, Kind.GRADIENTS, Kind.CONTROL, Kind.REPRESENTATIONS, Kind.LOGITS}
)
# Option -> the rules that know it.
OPTIONS: dict[str, tuple[RuleName, ...]] = {
    "chosen": ("multi-krum",),
    "selection": ("multi-krum",),
    "iterations": ("geometric-median",),
    "bound": ("norm-bound",),
    "quantile": ("norm-bound",),
    "rate": ("norm-bound",),
    "std": ("norm-bound",),
    "root": ("fltrust",),
    "last_layer": ("foolsgold",),
}


class RobustSpec(BaseModel):
    """A rule against dishonest sites, in place of the mean; all sites count alike under it.

    Rules see updates: differences to what the hub sent under the same key, or what was sent where
    it sent nothing like it. Counters and other whole numbers keep the hub's values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: RuleName = Field(description="the rule")
    share: float = Field(
        0.2, ge=0, lt=0.5, description="share of dishonest sites in a round that it must bear"
    )
    kinds: tuple[Kind, ...] = Field(
        (Kind.WEIGHTS, Kind.GRADIENTS, Kind.CONTROL),
        min_length=1,
        description="kinds of values that it puts together",
    )
    chosen: int | None = Field(
        None, ge=1, description="multi-krum: how many enter the mean; null for all but the share"
    )
    selection: Literal["once", "iterative", "iterative-itself"] = Field(
        "once",
        description="multi-krum: score all once, or those left anew after each one that is taken, "
        "as published code does with an update among its own neighbours (iterative-itself)",
    )
    iterations: int = Field(100, ge=1, le=10_000, description="geometric-median: Weiszfeld steps")
    bound: float | None = Field(
        None, gt=0, description="norm-bound: largest norm of an update; null for a running quantile"
    )
    quantile: float = Field(
        0.5, gt=0, lt=1, description="norm-bound without a bound: quantile of the sites' norms"
    )
    rate: float = Field(
        0.2, gt=0, le=1, description="norm-bound without a bound: how fast the quantile is followed"
    )
    std: float = Field(
        0.0, ge=0, description="norm-bound: standard deviation of the noise on the mean"
    )
    root: int = Field(
        0, ge=0, description="fltrust: labelled public rows on which the hub makes its own update"
    )
    last_layer: bool = Field(
        False, description="foolsgold: compare sites by their last layer alone"
    )

    @model_validator(mode="after")
    def _options_belong(self) -> RobustSpec:
        for option, rules in OPTIONS.items():
            default = type(self).model_fields[option].default
            if self.name not in rules and getattr(self, option) != default:
                raise ValueError(f"{option} is an option of {' and '.join(rules)}, not {self.name}")
        for kind in self.kinds:
            if kind not in COMBINED:
                known = ", ".join(sorted(COMBINED))
                raise ValueError(f"kinds: no rule puts {kind} together; write some of {known}")
        if self.selection != "once" and self.chosen is not None:
            raise ValueError("chosen is for selection: once; the others end by themselves")
        if self.name == "norm-bound" and self.bound is None and self.share > 1 - self.quantile:
            raise ValueError(
                f"a share of {self.share} would push the {self.quantile} quantile of all norms "
                f"up without end; write a quantile of at most {1 - self.share:g}, or a bound"
            )
        return self

    def bears(self, count: int) -> int:
        """How many dishonest ones among ``count`` sites the rule is set for."""
        # 0.07 of 100 are 7, whatever the last bit of the product says.
        return math.floor(round(self.share * count, 9))

    def least(self, count: int) -> int:
        """How many of ``count`` sites the rule needs to bear its share of them."""
        bears = self.bears(count)
        match self.name:
            case "krum" | "multi-krum":
                return max(2 * bears + 3, self.chosen or 0)
            case "bulyan":
                return 4 * bears + 3
            case "trimmed-mean":
                return 2 * bears + 1
            case _:
                return 1

    def check(self, sites: int, cohort: int | None = None) -> None:
        """Refuses, before the first round, too few sites for the rule; None asks all of them.

        Raises ConfigError.
        """
        count = sites if cohort is None else min(cohort, sites)
        if count < self.least(count):
            raise ConfigError(
                f"protect.robust: {self.name} against {self.bears(count)} of {count} sites needs "
                f"at least {self.least(count)} sites a round; raise the cohort or lower "
                "protect.robust.share" + (" or protect.robust.chosen" if self.chosen else "")
            )
        if self.name == "fltrust" and not self.root:
            raise ConfigError(
                "protect.robust: fltrust compares sites with an update of the hub's own; write "
                "protect.robust.root: 100 for as many labelled rows of the public set, or choose "
                "another rule"
            )


class RobustRule:
    """The combiner of a ``RobustSpec``.

    It hides no single site's value. A method that reads single ones (``replies[site]``) takes
    them as they are: only what it asks for as a mean goes through the rule.

    root: gives FLTrust the hub's own update, of the names and shapes of the sites' ones.
    """

    hides = False

    def __init__(self, spec: RobustSpec, root: Root | None = None) -> None:
        if spec.name == "fltrust" and root is None:
            raise ConfigError(
                "fltrust compares sites with an update of the hub's own: give RobustRule a root, "
                "or write protect.robust.root in the recipe"
            )
        self.spec = spec
        self.kinds = frozenset(spec.kinds)
        self._root = root

    def admit(
        self, values: Mapping[str, Tree], question: Question, memory: Tree
    ) -> dict[str, Tree]:
        """All replies as they are."""
        return dict(values)

    def spend(self, question: Question, memory: Tree) -> Tree | None:
        """A rule costs no privacy."""
        return None

    def mean(self, call: Call) -> Any:
        """The sites' values as one; leaves that only some sites sent are put together by those.

        Raises ConfigError for too few, WireError for values that cannot be put together.
        """
        try:
            root = None if self._root is None else dict(leaves(self._root(call)))
            return joined(call.values, call.sent, lambda stack: self._rule(call, stack, root))
        except MotetError as error:
            raise type(error)(f"{self.spec.name} of {call.key!r}: {error}") from None

    def _rule(self, call: Call, stack: Stack, root: Mapping[Path, Leaf] | None) -> Tensor:
        memory = f"{call.op} {call.key} {'.'.join(stack.paths[0])}"
        match self.spec.name:
            case "fltrust":
                return fltrust(stack.updates, stack.row(root or {}))
            case "norm-bound":
                return self._bounded(call, memory, stack.updates)
            case "foolsgold":
                start = stack.last_layer if self.spec.last_layer else 0
                updates = stack.updates[:, start:]
                return foolsgold(stack.updates, _summed(call.memory, memory, stack.sites, updates))
            case _:
                return self.rule(stack.updates)

    def rule(self, updates: Tensor) -> Tensor:
        """Updates [n, d] as one [d], by a rule that needs nothing else.

        Raises ConfigError for too few of them, and for the three rules that need more.
        """
        spec, bears = self.spec, self.spec.bears(len(updates))
        match spec.name:
            case "trimmed-mean":
                return trimmed_mean(updates, bears)
            case "median":
                return median(updates)
            case "krum":
                return krum(updates, bears)
            case "multi-krum" if spec.selection == "once":
                return multi_krum(updates, bears, spec.chosen or len(updates) - bears)
            case "multi-krum":
                itself = spec.selection == "iterative-itself"
                return iterative_multi_krum(updates, bears, counts_itself=itself)
            case "geometric-median":
                return geometric_median(updates, iterations=spec.iterations)
            case "bulyan":
                return bulyan(updates, bears)
        raise ConfigError(f"{spec.name} needs more than the updates; call its own function")

    def _bounded(self, call: Call, name: str, updates: Tensor) -> Tensor:
        """The mean of shortened updates; a running bound goes into the memory for the next time."""
        spec = self.spec
        bound = spec.bound
        if bound is None:
            norms = finite_norms(updates)
            if not bool((norms > 0).any()):
                return torch.zeros_like(updates[0])
            bound = float(call.memory.get(name) or first_bound(norms, spec.quantile))
            call.memory[name] = next_bound(bound, norms, spec.quantile, spec.rate)
        return norm_bound_mean(updates, bound, std=spec.std, rng=call.rng)


def root_at(engine: Engine, site: str) -> Root:
    """FLTrust's root: what one trusted site of an engine of its own makes of what the hub sent.

    It is asked the very question that the sites were, so that it takes as many local steps.
    Serves methods that send nothing but the key that comes back. Raises SiteError when it fails.
    """

    def root(call: Call) -> Tree:
        payload = {} if call.sent is None else {call.key: call.sent}
        engine.send([Request(site, call.op, call.tag, call.round, payload)])
        reply = engine.recv()
        if reply is None or reply.value is None:
            reason = "no answer" if reply is None else reply.error
            raise SiteError(f"the hub's own update could not be made: {reason}")
        made: Tree = reply.value[call.key]
        return made if call.sent is None else minus(made, call.sent)

    return root


def _summed(memory: Tree, name: str, sites: Sequence[str], updates: Tensor) -> Tensor:
    """Every site's sum of all its updates so far, which the memory keeps: [n, d]."""
    known = memory.get(name, {})
    sums = torch.stack(
        [
            known[site] + update if site in known else update
            for site, update in zip(sites, updates.nan_to_num(0.0, 0.0, 0.0), strict=True)
        ]
    )
    memory[name] = {**known, **{site: row.clone() for site, row in zip(sites, sums, strict=True)}}
    return sums
