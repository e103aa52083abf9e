"""The secure sum: the hub learns what sites' vectors add up to, and no single one of them.

Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017,
its version against a hub that is honest but curious. Every two sites agree on a mask that one adds
and the other takes off; every site adds a mask of its own as well. Sites share the secrets behind
their masks among each other, so that enough survivors (the threshold) can take off the masks of
those that drop out. With ``neighbours``, masks and shares go to some sites only: Bell et al.,
"Secure single-server aggregation with (poly)logarithmic overhead", CCS 2020. The halves are
``motet.protect.secure_site.SecureSite`` and ``motet.protect.secure_hub.SecureHub``.

Threat model. The hub follows the protocol, and looks at all it gets. It may be in league with
fewer sites than the threshold (with ``neighbours``: of those that hold any one site's shares), and
then learns the sum of the others' vectors. Sites that are in league without the hub learn nothing
but the sum, if they are told it. The hub passes on the sites' public keys, and no public-key
infrastructure stands behind them: a hub that puts its own keys in their place reads everything.
The deployment must authenticate the channels between sites and hub. What sites send each other
through the hub is encrypted and authenticated; a share that was changed, or comes from another
question, is noticed and its sender named. A site does not give both halves of another's secrets,
so that a hub which lies about who dropped out needs 2 * threshold - n of a site's n holders in
league with it to gain by that.

Not protected: the sum itself and what follows from it (of two sites, each finds the other's part);
who took part and who dropped out; how many rows a site has; keys of other kinds in the same reply.
Nobody can look at a masked vector: a site that sends nonsense within the clip, or a vector under
wrong masks, spoils the sum. A sum is no noise: for a guarantee about single rows, add differential
privacy at the sites.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, field_validator

from motet.core.errors import ConfigError
from motet.core.kinds import Kind
from motet.protect.secure_words import step_of

ADDITIVE = frozenset(
    {Kind.WEIGHTS, Kind.CONTROL, Kind.GRADIENTS, Kind.REPRESENTATIONS, Kind.LOGITS, Kind.SKETCH}
)


class SecureSumSpec(BaseModel):
    """Values of these kinds reach the hub as their sum alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: tuple[Kind, ...] = Field(
        (Kind.WEIGHTS,), min_length=1, description="kinds of values that the hub sees summed only"
    )
    clip: float = Field(
        8.0, gt=0, le=1e6, description="largest size of a number (of a change, for weights)"
    )
    bits: int = Field(22, ge=8, le=30, description="bits of a site's number; the sum has 32")
    rounding: Literal["nearest", "stochastic"] = Field(
        "nearest", description="to fixed point: to the nearest step, or at random without bias"
    )
    dropouts: StrictInt | float = Field(
        0.3, ge=0, description="sites that may drop out of a sum: a number, or a share below 0.5"
    )
    neighbours: int | None = Field(
        None, ge=2, description="sites that each shares masks with, an even number; null for all"
    )

    weights: Literal["samples", "uniform"] = Field(
        "samples", description="sites' weights in the sum: their rows where a reply tells, or alike"
    )

    @field_validator("kinds")
    @classmethod
    def _can_be_added(cls, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        odd = [kind for kind in kinds if kind not in ADDITIVE]
        if odd:
            known = ", ".join(sorted(ADDITIVE))
            raise ValueError(f"{odd[0]} cannot be added up; choose among {known}")
        return kinds

    @field_validator("dropouts")
    @classmethod
    def _less_than_half(cls, dropouts: int | float) -> int | float:
        if isinstance(dropouts, float) and not dropouts < 0.5:
            raise ValueError("a share of sites that may drop out is below 0.5")
        return dropouts

    @field_validator("neighbours")
    @classmethod
    def _both_sides(cls, neighbours: int | None) -> int | None:
        if neighbours is not None and neighbours % 2:
            raise ValueError("neighbours is an even number, half of them on either side of a ring")
        return neighbours

    @property
    def step(self) -> float:
        """What one unit of fixed point stands for; a site's number is off by half of it."""
        return step_of(self.clip, self.bits)

    def threshold(self, sites: int) -> int:
        """How many of so many sites must stay."""
        if isinstance(self.dropouts, int):
            return sites - self.dropouts
        # A share such as 0.29 of 100 is 29, though it comes out a little less.
        return sites - math.floor(self.dropouts * sites + 1e-9)

    def holders(self, sites: int) -> int:
        """How many of so many sites hold the shares of one, itself among them."""
        return sites if self.neighbours is None else min(sites, self.neighbours + 1)


def check_secure_sum(
    spec: SecureSumSpec,
    sites: int,
    *,
    robust: bool = False,
    lossy: bool = False,
    central: bool = False,
) -> None:
    """Raises ConfigError for what cannot work.

    sites: how many take part in one sum. robust, lossy, central: whether the recipe has a robust
    rule, a compression that loses digits, or central privacy for one of the same kinds.
    """
    where = "protect.secure_sum"
    kinds = ", ".join(spec.kinds)
    if robust:
        raise ConfigError(
            f"{where} hides single sites' {kinds}, which protect.robust has to compare; "
            "leave one of them out"
        )
    if lossy:
        raise ConfigError(
            f"{where} sends {kinds} as masked integers, which protect.compress would spoil; "
            "leave one of them out for these kinds"
        )
    if central:
        raise ConfigError(
            f"{where} hides single sites' {kinds}, which central privacy has to clip; "
            "write privacy.mode: local, or leave one of them out"
        )
    if sites * 2**spec.bits > 2**32:
        most = 32 - math.ceil(math.log2(sites))
        raise ConfigError(
            f"{where}.bits={spec.bits} for {sites} sites needs sums of more than 32 bits; "
            f"write at most {most}"
        )
    for held, what in ((sites, "sites"), (spec.holders(sites), "holders of a site's shares")):
        threshold = spec.threshold(held)
        if threshold < 2 or 2 * threshold <= held:
            raise ConfigError(
                f"{where}.dropouts={spec.dropouts} leaves {threshold} of {held} {what}, and two "
                "halves could open different sums; more than half, and 2, must stay"
            )
