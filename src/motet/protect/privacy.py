"""Differential privacy of a run: the recipe's choice, what it covers and what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from motet.core.errors import BudgetError, ConfigError
from motet.core.guard import Question
from motet.core.kinds import Kind
from motet.core.method import Operation
from motet.core.tree import Tree
from motet.protect.accountant import Accountant, Gaussian, default_delta

Mode: TypeAlias = Literal["central", "local", "distributed", "rows"]
# What clip and noise can cover: as one vector per reply, or row by row.
WHOLE = frozenset({Kind.WEIGHTS, Kind.GRADIENTS, Kind.CONTROL, Kind.SKETCH})
BY_ROW = frozenset({Kind.REPRESENTATIONS, Kind.LOGITS, Kind.ACTIVATIONS, Kind.SYNTHETIC})


class Adaptive(BaseModel):
    """The clip follows a quantile of the updates' norms (Andrew et al., NeurIPS 2021)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantile: float = Field(0.5, ge=0, le=1, description="share of the updates left unclipped")
    rate: float = Field(0.2, gt=0, description="step of the clip's logarithm per question")
    bits_noise: float | None = Field(
        None,
        gt=0,
        description="standard deviation of noise on the count of unclipped updates; null for "
        "cohort / 20",
    )


class PrivacySpec(BaseModel):
    """Differential privacy of everything of these kinds that leaves a site.

    central: the hub clips whole replies and noises their sum. local: every site clips and noises
    what it sends. distributed: every site adds its share of the noise, for use under a secure sum.
    rows: sites train by DP-SGD, and use their rows in no other way.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = Field("central", description="who clips and noises, and what is one unit")
    kinds: tuple[Kind, ...] = Field(
        (Kind.WEIGHTS,), min_length=1, description="kinds that are clipped and noised"
    )
    clip: float = Field(1.0, gt=0, description="largest L2 norm of a reply, or of one row")
    noise: float = Field(1.0, ge=0, description="standard deviation of the noise, in clips")
    adaptive: Adaptive | None = Field(None, description="central: the clip adapts; null for fixed")
    delta: float | None = Field(
        None, gt=0, lt=1, description="delta; null for (number of units)^-1.1"
    )
    epsilon: float | None = Field(
        None, gt=0, description="budget: the run stops before it spends more; null for no limit"
    )
    accountant: Literal["rdp", "pld"] = Field(
        "rdp", description="Renyi orders, or privacy loss distributions: tighter, slower"
    )
    sampling: Literal["fixed", "poisson"] = Field(
        "fixed", description="how sites are drawn: so many of all, or each by a chance of its own"
    )
    dropouts: int = Field(
        0, ge=0, description="distributed: how many sites may fail, and the noise still suffices"
    )
    vote_epsilon: float | None = Field(
        None, gt=0, description="local: epsilon of one vote, by randomised response"
    )
    vote_choices: int | None = Field(
        None, ge=2, description="local: how many things there are to vote for"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> PrivacySpec:
        if not math.isfinite(self.clip) and self.noise:
            raise ValueError("clip: an infinite one bounds nothing; write a number, or noise: 0")
        if self.epsilon is not None and not self.noise:
            raise ValueError("epsilon: without noise every release exceeds it; write noise: 1.0")
        if self.adaptive is not None and self.mode != "central":
            raise ValueError("adaptive: only mode: central sees how many updates are short")
        if self.dropouts and self.mode != "distributed":
            raise ValueError("dropouts: only mode: distributed shares its noise among sites")
        if self.mode != "central" and self.sampling == "poisson":
            # Shares of a noise need a number of sites that does not vary, and a site that noises
            # for itself pays for every release.
            raise ValueError("sampling: only mode: central gains by poisson; leave it out")
        self._check_kinds()
        return self

    def _check_kinds(self) -> None:
        voting = Kind.VOTES in self.kinds
        # A recipe that was written down has every field, those at their default among them.
        if self.mode == "rows" and self.kinds != (Kind.WEIGHTS,):
            raise ValueError("kinds: mode: rows covers all that is made of private rows; leave out")
        if voting and self.mode != "local":
            raise ValueError("kinds: votes are protected by mode: local alone")
        if voting != (self.vote_epsilon is not None and self.vote_choices is not None):
            raise ValueError("vote_epsilon, vote_choices: give both, and votes among the kinds")
        odd = [kind for kind in self.kinds if kind not in WHOLE | BY_ROW | {Kind.VOTES}]
        if odd:
            raise ValueError(f"kinds: {odd[0]} cannot be clipped and noised; leave it out")

    def delta_for(self, units: int) -> float:
        """The delta for so many units; ConfigError where there is no usual one."""
        return default_delta(units) if self.delta is None else self.delta


def covered(sends: Mapping[str, Kind], spec: PrivacySpec) -> list[str]:
    """The keys of an operation's replies that are clipped and noised."""
    return [key for key, kind in sends.items() if spec.mode != "rows" and kind in spec.kinds]


def uncovered(sends: Mapping[str, Kind], spec: PrivacySpec) -> list[str]:
    """The declared keys that stay as they are: metrics, which a report must name.

    Raises ConfigError for any other kind that would leave a site as it is.
    """
    if spec.mode != "rows":
        for key, kind in sends.items():
            if kind in spec.kinds or kind is Kind.METRIC:
                continue
            raise ConfigError(f"protect.privacy does not cover {key!r}, {_advice(kind, spec)}")
    return [key for key, kind in sends.items() if kind is Kind.METRIC]


def _advice(kind: Kind, spec: PrivacySpec) -> str:
    if kind in WHOLE | BY_ROW:
        kinds = ", ".join((*spec.kinds, kind))
        return f"which is of kind {kind}; write kinds: [{kinds}]"
    if kind is Kind.VOTES:
        return (
            "which is of kind votes; write mode: local, add votes to kinds, and give vote_epsilon "
            "and vote_choices"
        )
    return (
        f"and nothing of kind {kind} can be clipped and noised; choose another method, or leave "
        "privacy out"
    )


def check_operations(
    operations: Mapping[str, Operation], spec: PrivacySpec
) -> dict[str, list[str]]:
    """Operation -> its declared keys that stay as they are, for those that have any.

    Raises ConfigError where one sends a kind that ``uncovered`` refuses.
    """
    found = {name: uncovered(operation.sends, spec) for name, operation in operations.items()}
    return {name: keys for name, keys in found.items() if keys}


def spend(spec: PrivacySpec, question: Question, memory: Tree, delta: float) -> Tree:
    """Counts one noised sum over the sites of a question; what is spent by then, for the events.

    memory: keeps the counts under "spent". Raises BudgetError, and counts nothing, where the sum
    would cost more than the budget; ConfigError for a reply with an uncovered kind.
    """
    uncovered(question.sends, spec)
    release = Gaussian(spec.noise, question.chance, spec.sampling == "fixed")
    before = Accountant.of(memory.get("spent"), spec.accountant)
    # Sites that were drawn in one round may be asked more than once.
    after = before.after(release, sample=question.tag.rpartition(".")[0] or question.tag)
    note = told(spec, before, after, delta, "site")
    memory["spent"] = after.tree()
    return note


def told(spec: PrivacySpec, before: Accountant, after: Accountant, delta: float, unit: str) -> Tree:
    """What is spent after a release: epsilon (None for infinite), delta, unit and bound.

    Raises BudgetError where that is more than the budget.
    """
    epsilon, bound = after.bound(delta)
    if spec.epsilon is not None and epsilon > spec.epsilon:
        raise BudgetError(
            f"the privacy budget is spent: epsilon is {before.epsilon(delta):.4g} (delta "
            f"{delta:.2g}) and would be {epsilon:.4g} after the next release, more than "
            f"protect.privacy.epsilon={spec.epsilon:g}"
        )
    finite = epsilon if math.isfinite(epsilon) else None
    return {"epsilon": finite, "delta": delta, "unit": unit, "bound": bound}


def describe(spec: PrivacySpec, units: int) -> str:
    """What this protects, from whom and compared with what, in sentences for a report.

    units: sites of the federation, or private rows of a site for mode "rows".
    """
    parts = [_MODES[spec.mode].format(clip=f"{spec.clip:g}", noise=f"{spec.noise:g}")]
    if spec.adaptive is not None:
        parts.append(
            f"The clip follows the {spec.adaptive.quantile:g} quantile of the replies' norms; "
            "the count behind it is noised as well, and its cost is part of the epsilon."
        )
    parts.append(_UNITS[spec.mode])
    if spec.mode in ("central", "distributed"):
        parts.append(_SAMPLING[spec.sampling])
    if Kind.VOTES in spec.kinds:
        parts.append(
            f"Every vote is randomised with epsilon {spec.vote_epsilon:g} among "
            f"{spec.vote_choices} choices, and compared with any other vote."
        )
    delta = f"{spec.delta_for(units):.3g}"
    budget = "" if spec.epsilon is None else f" and stops before epsilon exceeds {spec.epsilon:g}"
    name = "Renyi orders" if spec.accountant == "rdp" else "privacy loss distributions"
    parts.append(f"The run counts by {name} at delta = {delta}{budget}.")
    parts.append(
        "Not covered: metrics, numbers beside the declared keys (such as counts of rows), the "
        "sizes and times of messages, and who took part."
    )
    parts.append(
        "The noise is drawn from the run's seed, so that a run can be repeated: who knows the "
        "seed can take the noise off again."
    )
    return " ".join(parts)


_MODES: dict[str, str] = {
    "central": "The hub is trusted and the model is public: the hub sees every reply, clips it to "
    "an L2 norm of {clip}, adds the replies up without weights, adds normal noise of {noise} "
    "clips once, and divides by the number of sites that are asked on average.",
    "local": "The hub is not trusted: every site clips what it sends to an L2 norm of {clip}, "
    "updates as one vector and rows one by one, and adds normal noise of {noise} clips to each.",
    "distributed": "The hub sees sums alone, by the secure sum, which this needs: every site clips "
    "its reply to an L2 norm of {clip} and adds its share of a normal noise of {noise} clips. The "
    "sum is rounded to the secure sum's step, which the epsilon does not count; a site knows its "
    "own share, so that sites which tell theirs weaken the noise.",
    "rows": "Sites train by DP-SGD: the gradient of every row is clipped to an L2 norm of {clip}, "
    "normal noise of {noise} clips is added to their sum, and private rows are used in no other "
    "way. Nobody but a row's own site need be trusted.",
}
_UNITS: dict[str, str] = {
    "central": "The unit of privacy is one site, with all of the covered keys that it sends in "
    "answer to one question; it is compared with a site that sends no change (zero-out), the "
    "number of sites asked being public.",
    "local": "The unit of privacy is one site; it is compared with a site whose update or rows "
    "are 0 (zero-out). Any two values of a site are up to two clips apart, for which the noise "
    "counts half. So many rows as a site sends at once are so many releases of that site.",
    "distributed": "The unit of privacy is one site, with all that it sends in answer to one "
    "question; it is compared with a site that sends no change (zero-out).",
    "rows": "The unit of privacy is one private row of one site; data sets with and without it "
    "are compared (add or remove). A person with several rows, or with rows at several sites, is "
    "protected less. Rows that evaluate the model are not covered.",
}
_SAMPLING: dict[str, str] = {
    "fixed": "Sites are drawn in a fixed number without replacement: the epsilon is the smaller "
    "one of two bounds, one that does not count the sampling, and one that does and compares a "
    "site with any other, for which the noise counts half.",
    "poisson": "Sites are drawn each by an equal chance of its own, which the epsilon counts; it "
    "holds against those who do not know who was asked.",
}
