"""The recipe's protection: what it asks for, what goes together, and what is made of it."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from motet.core.errors import ConfigError, WireError
from motet.core.guard import Combiner, Guard, Protection
from motet.core.kinds import Kind
from motet.core.method import Method
from motet.core.tree import leaves
from motet.nn.bits import unpack_order
from motet.protect.attack_spec import DATA_ATTACKS, AttackSpec
from motet.protect.central_privacy import CentralPrivacy
from motet.protect.compress import Compression, codec_of, guards_of
from motet.protect.local_privacy import LocalPrivacy
from motet.protect.privacy import PrivacySpec, uncovered
from motet.protect.robust import RobustRule, RobustSpec, Root
from motet.protect.rows import RowPrivacy
from motet.protect.secure_sum import SecureSumSpec, check_secure_sum
from motet.protect.summed import SecureGuard, SecureSum, SummedNoise


class Limits(BaseModel):
    """What the hub takes from a site."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reply_mb: float = Field(4096, gt=0, description="largest reply, in MB of 1,000,000 bytes")


class Protect(BaseModel):
    """What protects sites from the hub, the hub from sites, and the wire from too many bytes.

    A reply meets, in this order: privacy at its site, sparse or quantised updates, the secure
    sum's mask, a codec, the frame; then at the hub the codec, the checks, and the rule of its kind:
    the secure sum's opening, a robust rule, or central privacy. Each is for the kinds it names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    compress: Compression = Field(
        default_factory=dict,
        description="kind -> codec of its tensors: fp16, int8, qsgd, top-k ...",
    )
    privacy: PrivacySpec | None = Field(None, description="differential privacy; null for none")
    secure_sum: SecureSumSpec | None = Field(
        None, description="the hub sees sums alone; null for single replies"
    )
    robust: RobustSpec | None = Field(
        None, description="a rule against dishonest sites; null for the mean"
    )
    limits: Limits = Limits()

    def check(
        self, method: Method, sites: int, cohort: int | None, attack: AttackSpec | None
    ) -> None:
        """Refuses, before the first round, what the method does not send, or cannot go together.

        sites: how many there are. cohort: how many are asked in a round; None for all.
        """
        sends = {kind for found in method.operations().values() for kind in found.sends.values()}
        takes = {kind for found in method.operations().values() for kind in found.takes.values()}
        name = type(method).__name__
        both = self.compress.keys() - sends - takes
        _known("compress", both, name, sends)
        for part, spec in (("secure_sum", self.secure_sum), ("robust", self.robust)):
            if spec is not None and not sends.intersection(spec.kinds):
                _known(part, spec.kinds, name, sends)
        asked = sites if cohort is None else min(cohort, sites)
        privacy, robust = self.privacy, self.robust
        if self.secure_sum is not None:
            kinds = set(self.secure_sum.kinds)
            check_secure_sum(
                self.secure_sum,
                asked,
                robust=robust is not None and bool(kinds.intersection(robust.kinds)),
                lossy=bool(kinds.intersection(self.compress)),
                central=privacy is not None
                and privacy.mode == "central"
                and bool(kinds.intersection(privacy.kinds)),
            )
            if attack is not None and attack.name not in DATA_ATTACKS:
                raise ConfigError(
                    "protect.secure_sum masks replies, and attack would have to change masked "
                    f"ones; choose one of {', '.join(DATA_ATTACKS)}, or leave one of them out"
                )
        if robust is not None:
            robust.check(sites, cohort)
        if privacy is not None:
            needed(privacy)
            self._check_privacy(privacy, method, sends)

    def _check_privacy(self, privacy: PrivacySpec, method: Method, sends: set[Kind]) -> None:
        for found in method.operations().values():
            uncovered(found.sends, privacy)
        if privacy.mode != "rows" and not sends.intersection(privacy.kinds):
            _known("privacy", privacy.kinds, type(method).__name__, sends)
        robust, summed = self.robust, self.secure_sum
        if privacy.mode == "central" and robust is not None:
            both = sorted(set(robust.kinds).intersection(privacy.kinds))
            if both:
                raise ConfigError(
                    f"protect.privacy noises the mean of {both[0]}, and protect.robust would put "
                    "another rule in its place; leave one of them out, or write privacy.mode: local"
                )
        if privacy.mode == "distributed" and (
            summed is None
            or not set(privacy.kinds) <= set(summed.kinds)
            or summed.weights != "uniform"
        ):
            kinds = ", ".join(privacy.kinds)
            raise ConfigError(
                "protect.privacy.mode: distributed needs a sum that hides single sites, since no "
                "site adds all the noise: write protect.secure_sum: "
                f"{{kinds: [{kinds}], weights: uniform}}"
            )

    def build(self, sites: int, cohort: int | None, root: Root | None = None) -> Protection:
        """Guards, codecs and rules, in the order in which a reply meets them."""
        guards: list[Guard] = []
        combiners: list[Combiner] = []
        asked = sites if cohort is None else min(cohort, sites)
        if self.privacy is not None and self.privacy.mode == "central":
            combiners.append(CentralPrivacy(self.privacy, sites))
        elif self.privacy is not None and self.privacy.mode == "rows":
            guards.append(RowPrivacy(self.privacy))
        elif self.privacy is not None:
            guards.append(LocalPrivacy(self.privacy, sites, asked))
            if self.privacy.mode == "distributed":
                combiners.append(SummedNoise(self.privacy, sites, asked))
        guards += guards_of(self.compress)
        summed = None
        if self.secure_sum is not None:
            guards.append(SecureGuard(self.secure_sum))
            summed = SecureSum(self.secure_sum)
        if self.robust is not None:
            combiners.append(RobustRule(self.robust, root))
        codec = codec_of(self.compress)
        return Protection(
            middleware=() if codec is None else (codec,),
            guards=guards,
            combiners=combiners,
            summed=summed,
            poisson=self.privacy is not None and self.privacy.sampling == "poisson",
            reply_bytes=int(self.limits.reply_mb * 1e6),
            checks={Kind.VOTES: check_votes},
        )


def needed(privacy: PrivacySpec) -> None:
    """Refuses, before the first round, privacy whose packages are not there."""
    wanted = {"dp_accounting": "dp-accounting counts it"}
    if privacy.mode == "rows":
        wanted["opacus"] = "Opacus gives single rows' gradients"
    for package, why in wanted.items():
        if find_spec(package) is None:
            raise ConfigError(
                f"protect.privacy: {why}, and is not there: pip install 'motet[privacy]'"
            )


def _known(part: str, kinds: Iterable[Kind], method: str, sends: Iterable[Kind]) -> None:
    """Refuses a part that is for kinds which the method has not."""
    odd = sorted(kinds)
    if odd:
        raise ConfigError(
            f"protect.{part} is for {' and '.join(odd)}, and {method} sends "
            f"{', '.join(sorted(sends)) or 'nothing'}; write some of these, or leave it out"
        )


def check_votes(value: Any) -> None:
    """Raises WireError for packed orders that cannot be read; other votes are whole numbers."""
    if isinstance(value, dict) and "bits" in value:
        unpack_order(value)
        return
    if isinstance(value, dict):
        for item in value.values():
            check_votes(item)
        return
    for path, leaf in leaves(value):
        floats = isinstance(leaf, Tensor) and leaf.is_floating_point()
        if floats or isinstance(leaf, float):
            raise WireError(f"a vote at {'.'.join(path) or 'the top'} is no whole number")
