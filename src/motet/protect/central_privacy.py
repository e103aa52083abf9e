"""The hub's half of central differential privacy: replies are clipped, and their sum is noised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from motet.core.errors import ConfigError
from motet.core.guard import Call, Question
from motet.core.tree import Tree
from motet.nn.private import clipped, next_bound, private_mean, update_noise
from motet.protect.privacy import PrivacySpec, covered, spend
from motet.protect.private_updates import Form, form_of

# So much noise on the count of short updates as in the paper: a twentieth of the cohort.
BITS_SHARE = 1 / 20


@dataclass
class _Asked:
    """One question whose means may still be asked for."""

    round: int
    cohort: float
    clip: float
    forms: dict[str, Form | None] = field(default_factory=dict)
    within: Tensor | None = None


class CentralPrivacy:
    """The mean of replies with noise on their sum; the unit is all that one site sends at once.

    All covered keys of a reply are one vector, as the difference to what the hub sent, and are
    clipped together. The sum is not weighted, is noised once, and is divided by the number of
    sites that a question goes to on average, a constant. sites: all of the federation.
    """

    hides = True

    def __init__(self, spec: PrivacySpec, sites: int) -> None:
        self.spec = spec
        self.kinds = frozenset(spec.kinds)
        self.delta = spec.delta_for(sites)
        self._asked: dict[str, _Asked] = {}

    def spend(self, question: Question, memory: Tree) -> Tree:
        """Counts the release that the question leads to; see ``spend``."""
        self._noise(_cohort(question))
        return {
            **spend(self.spec, question, memory, self.delta),
            "clip": self._clip(question.op, memory),
        }

    def _clip(self, op: str, memory: Tree) -> float:
        clips = memory.get("clips", {})
        return float(clips.get(op, self.spec.clip))

    def admit(
        self, values: Mapping[str, Tree], question: Question, memory: Tree
    ) -> dict[str, Tree]:
        """The replies with every covered key as a clipped vector, jointly at most ``clip`` long."""
        kept = {tag: asked for tag, asked in self._asked.items() if asked.round == question.round}
        asked = _Asked(question.round, _cohort(question), self._clip(question.op, memory))
        self._asked = {**kept, question.tag: asked}
        keys = covered(question.sends, self.spec)
        for key in keys:
            sent = question.sent(key)
            present = [value[key] for value in values.values() if key in value]
            asked.forms[key] = form_of(key, present, sent)
        forms = {key: form for key, form in asked.forms.items() if form is not None}
        if not values or not forms:
            asked.within = torch.zeros(0, dtype=torch.bool)
            return dict(values)
        rows = [
            torch.cat([form.vector(value.get(key)) for key, form in forms.items()])
            for value in values.values()
        ]
        whole = torch.stack(rows)
        asked.within = whole.norm(dim=1) <= asked.clip
        parts = clipped(whole, asked.clip).split([form.size for form in forms.values()], dim=1)
        admitted = {site: dict(value) for site, value in values.items()}
        for key, part in zip(forms, parts, strict=True):
            for row, value in zip(part, admitted.values(), strict=True):
                if key in value:
                    value[key] = row
        return admitted

    def mean(self, call: Call) -> Any:
        """What was sent plus the noised mean difference; again the same when asked for again."""
        asked = self._asked.get(call.tag)
        form = None if asked is None else asked.forms.get(call.key)
        if asked is None or form is None:
            raise ConfigError(
                f"there is no private mean of {call.key!r}: "
                + ("the question is of another round" if asked is None else "nobody answered")
            )
        rows = [call.values[site] for site in sorted(call.values)]
        stacked = torch.stack(rows) if rows else torch.zeros(0, form.size)
        noise, bits = self._noise(asked.cohort)
        mean = private_mean(stacked, asked.clip, noise, asked.cohort, call.rng)
        self._adapt(asked, call, bits)
        return form.value(mean)

    def _noise(self, cohort: float) -> tuple[float, float]:
        """The updates' noise multiplier, and the deviation of the noise on their count."""
        noise, adaptive = self.spec.noise, self.spec.adaptive
        if adaptive is None or not noise:
            return noise, 0.0
        own = adaptive.bits_noise
        bits = cohort * BITS_SHARE if own is None else own
        return update_noise(noise, bits), bits

    def _adapt(self, asked: _Asked, call: Call, bits: float) -> None:
        """Moves the clip of the next such question, once."""
        adaptive, within = self.spec.adaptive, asked.within
        if adaptive is None or within is None:
            return
        asked.within = None
        clip = next_bound(
            asked.clip,
            within,
            asked.cohort,
            quantile=adaptive.quantile,
            rate=adaptive.rate,
            bits=bits,
            rng=call.rng,
        )
        call.memory["clips"] = {**call.memory.get("clips", {}), call.op: clip}


def _cohort(question: Question) -> float:
    """How many are asked on average, a constant: by Poisson sampling the real number varies."""
    return max(question.chance * question.population, 1.0)
