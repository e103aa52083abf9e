"""What may be made of the answers to a question, by the recipe's rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from motet.core.folding import By
from motet.core.guard import Call, Question
from motet.core.replies import Origin, Replies, plain_mean
from motet.core.tree import Tree

if TYPE_CHECKING:
    from motet.core.federation import Federation


class Combining:
    """Puts answers to one question together.

    secret: keys of which the hub learns a sum alone. rules: number and rule of those of the
    recipe's rules that are about something that the answers hold.
    """

    def __init__(self, fed: Federation, question: Question, secret: Collection[str]) -> None:
        self.fed = fed
        self.question = question
        self._secret = secret
        self.rules = [
            (number, rule)
            for number, rule in enumerate(fed.protection.combiners)
            if rule.kinds & set(question.sends.values())
        ]

    def replies(
        self,
        answers: Mapping[str, Tree],
        failed: Mapping[str, str],
        opened: Mapping[str, Any],
        averaged: Mapping[str, By],
        means: Mapping[str, Any],
    ) -> Replies:
        """What the method sees of these answers.

        opened: key -> mean of what was summed in secret. averaged: keys of which the method wants
        the mean alone, and what weighs it; means: those that are there already.
        """
        values = answers
        hidden = dict.fromkeys(self._secret, "")
        for number, rule in self.rules:
            values = rule.admit(values, self.question, self.fed._memory(number))
            if rule.hides:
                hidden |= dict.fromkeys(self._keys(rule.kinds), "")
        method = type(self.fed.method).__name__
        for key in hidden:
            hidden[key] = (
                f"{method} reads single sites' {key!r}, and protect lets the hub see no more than "
                "their mean; choose a method that averages them, or leave this protection out"
            )
        return Replies(
            values,
            failed,
            combine=partial(self._combine, answers, opened),
            hidden=hidden,
            origins={site: self.origin(site) for site in values},
            averaged=averaged,
            means=means,
        )

    def _keys(self, kinds: Collection[Any]) -> list[str]:
        return [key for key, kind in self.question.sends.items() if kind in kinds]

    def origin(self, site: str) -> Origin:
        """What the answer of a site started from."""
        return Origin(self.question.round, self.question.received[site])

    def _combine(
        self,
        answers: Mapping[str, Tree],
        opened: Mapping[str, Any],
        key: str,
        values: Mapping[str, Any],
        weights: Mapping[str, float],
        onto: Any,
    ) -> Any:
        if key in opened:
            assert self.fed.protection.summed is not None
            self.fed.protection.summed.fits(weights, answers, key)
            self.fed._combined.add(str(self.question.sends.get(key)))
            return opened[key]
        sent = self.question.sent(key) if onto is None else onto
        return self.combine(key, values, weights, sent, len(self.question.sites))

    def combine(
        self,
        key: str,
        values: Mapping[str, Any],
        weights: Mapping[str, float],
        sent: Any,
        cohort: int,
    ) -> Any:
        """One value from these, by the recipe's rule; sent, cohort: as in a ``Call``."""
        asked, kind = self.question, self.question.sends.get(key)
        found = next(((n, rule) for n, rule in self.rules if kind in rule.kinds), None)
        if found is None:
            return plain_mean(key, values, weights)
        number, rule = found
        call = Call(
            asked.op,
            asked.tag,
            asked.round,
            key,
            values,
            weights,
            sent,
            cohort,
            self.fed.rng("combine", asked.op, asked.tag, key),
            self.fed._memory(number),
        )
        self.fed._combined.add(str(kind))
        return rule.mean(call)
