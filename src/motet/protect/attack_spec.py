"""Which sites of a recipe are dishonest, and what they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from motet.core.errors import ConfigError
from motet.core.kinds import Kind
from motet.core.rng import numpy_generator
from motet.core.roster import Names, few
from motet.protect.forgeries import Perturbation

AttackName: TypeAlias = Literal[
    "reversed-ranks",
    "rotated-ranks",
    "scaled",
    "sign-flip",
    "random-signs",
    "noise",
    "free-rider",
    "alie",
    "ipm",
    "min-max",
    "min-sum",
    "tailored",
    "fang",
    "label-flip",
    "backdoor",
    "permuted-rows",
    "swapped-representations",
    "random-representations",
]
UPDATES = frozenset({Kind.WEIGHTS, Kind.GRADIENTS})
ROWS = frozenset({Kind.REPRESENTATIONS, Kind.LOGITS})
RANK_ATTACKS = ("reversed-ranks", "rotated-ranks")
ROW_ATTACKS = ("permuted-rows", "swapped-representations", "random-representations")
DATA_ATTACKS = ("label-flip", "backdoor")
# Attackers put one update together from several honest ones, which must then be alike.
JOINT = ("scaled", "alie", "ipm", "min-max", "min-sum", "tailored", "fang")
# Option -> the attacks that know it.
OPTIONS: dict[str, tuple[str, ...]] = {
    "factor": ("scaled", "sign-flip"),
    "std": ("noise", "free-rider"),
    "trim": ("tailored",),
    "knowledge": JOINT[1:],
    "eps": ("ipm",),
    "perturbation": ("min-max", "min-sum"),
    "against": ("tailored", "fang"),
    "update": ("free-rider",),
    "labels": ("label-flip",),
    "source": ("label-flip",),
    "target": DATA_ATTACKS,
    "boost": DATA_ATTACKS,
    "rows": ("backdoor",),
    "side": ("backdoor",),
    "distributed": ("backdoor",),
}


class AttackSpec(BaseModel):
    """Which sites are dishonest, and what they send in place of their honest replies.

    Updates are differences to the weights that the hub sent under the same key, or what is sent
    where it sent none. sign-flip: -factor times the own one; random-signs: the own one with a
    random sign for every number; scaled: -factor times the attackers' mean; noise: a normal draw;
    free-rider: nothing, or what looks like something; alie, ipm,
    min-max, min-sum: off the mean, but within the crowd; tailored, fang: made for one rule.
    Votes: reversed-ranks is the reverse of the sum of the attackers' own ranks; rotated-ranks
    (ours) its middle at the ends and its ends in the middle, against those who keep both ends.
    Rows of a public set: permuted-rows, swapped-representations, random-representations. Data:
    label-flip and backdoor train honestly on rows that were changed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: AttackName = Field(description="what attackers send, or what they do to their data")
    share: float | None = Field(None, gt=0, lt=1, description="share of the sites that attack")
    sites: tuple[str, ...] = Field((), description="names of the attackers, in place of a share")
    factor: float = Field(10.0, gt=0, description="scaled, sign-flip: times the update, turned")
    std: float | None = Field(
        None,
        gt=0,
        description="noise: standard deviation, null for the honest update's size; free-rider's "
        "noise: uniform up to this, null for 0.001",
    )
    trim: int | None = Field(
        None, ge=1, description="tailored: how many the hub trims per end; null for the attackers"
    )
    knowledge: Literal["own", "all"] = Field(
        "own", description="attacks off a mean: whose honest updates attackers know"
    )
    minority: bool = Field(
        False, description="at most the largest minority of the sites asked attacks (FRL's code)"
    )
    eps: float = Field(0.5, gt=0, description="ipm: times the honest mean, turned")
    perturbation: Perturbation = Field(
        "std", description="min-max, min-sum: off the mean along its sign, the spread, or itself"
    )
    against: Literal["trimmed-mean", "krum"] = Field(
        "trimmed-mean", description="tailored, fang: the rule (trimmed-mean also for the median)"
    )
    update: Literal["zero", "noise", "last"] = Field(
        "zero", description="free-rider: no update, uniform noise, or the hub's own last step"
    )
    labels: Literal["next", "mirror"] = Field(
        "next", description="label-flip: class + 1, or last class - class; all classes"
    )
    source: int | None = Field(
        None, ge=0, description="label-flip: this class alone becomes target; null for all"
    )
    target: int = Field(0, ge=0, description="backdoor, label-flip with a source: the class wanted")
    boost: float = Field(
        1.0, gt=0, description="label-flip, backdoor: times the update; sites / attackers replaces"
    )
    rows: float = Field(0.5, gt=0, le=1, description="backdoor: share of the rows with a trigger")
    side: int = Field(4, ge=1, description="backdoor: height and width of the white square")
    distributed: bool = Field(False, description="backdoor: each attacker has a part of the square")

    @model_validator(mode="after")
    def _fits_together(self) -> AttackSpec:
        if (self.share is None) == (not self.sites):
            raise ValueError("an attack names either a share of the sites, or sites")
        for option, names in OPTIONS.items():
            default = type(self).model_fields[option].default
            if self.name not in names and getattr(self, option) != default:
                raise ValueError(f"{option} is an option of {', '.join(names)}, not of {self.name}")
        if self.source is not None and self.source == self.target:
            raise ValueError(f"source and target are both {self.source}; write another target")
        if self.minority and not self.kinds:
            raise ValueError("minority: data are changed once, whoever is asked; leave it out")
        return self

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of keys that this attack changes; none for one on the data alone."""
        if self.name in RANK_ATTACKS:
            return frozenset({Kind.VOTES})
        if self.name in ROW_ATTACKS:
            return ROWS
        return frozenset() if self.name in DATA_ATTACKS and self.boost == 1 else UPDATES

    def attackers(self, sites: Sequence[str], seed: int) -> frozenset[str]:
        """The dishonest ones of these sites, by seed alone; ConfigError for strangers or none."""
        names = sites if isinstance(sites, Names) else sorted(sites)
        if self.share is None:
            strangers = sorted(site for site in self.sites if site not in names)
            if strangers:
                raise ConfigError(f"attack.sites names {strangers[0]!r}; there are {few(names)}")
            return frozenset(self.sites)
        count = round(self.share * len(names))
        if not count:
            raise ConfigError(f"attack.share={self.share} of {len(names)} sites is none")
        chosen = numpy_generator(seed, "attackers").choice(len(names), count, replace=False)
        return frozenset(names[int(i)] for i in chosen)
