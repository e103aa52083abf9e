"""Differential privacy at the site's door: replies are clipped and noised before they leave."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from motet.core.errors import ConfigError
from motet.core.guard import SPENT, Passage
from motet.core.kinds import Kind
from motet.core.tree import Tree, leaves
from motet.nn.private import clipped, noise_size, noised, private_rows, randomised
from motet.protect.accountant import Accountant, Gaussian, Mechanism, Response
from motet.protect.privacy import BY_ROW, PrivacySpec, covered, told, uncovered
from motet.protect.private_updates import form_of


class LocalPrivacy:
    """Clips and noises what a site sends; modes "local" and "distributed" of the recipe.

    local: updates (weights, gradients, control, sketches) of a reply are one vector, as the
    difference to what the hub sent; of representations, logits, activations and synthetic rows
    every row is clipped and noised by itself; votes are randomised. distributed: all of a reply is
    one vector, and the noise is this site's share of what the sum needs.

    sites: all of the federation. cohort: how many sites a question goes to, for "distributed".
    """

    name = "privacy"

    def __init__(self, spec: PrivacySpec, sites: int, cohort: int | None = None) -> None:
        self.spec = spec
        self.delta = spec.delta_for(sites)
        self._std = noise_size(spec.clip, spec.noise)
        if spec.mode == "distributed":
            self._std *= noise_share(cohort or 0, spec.dropouts)

    def leave(self, value: Tree, passage: Passage) -> Tree:
        """The reply, clipped and noised; raises ConfigError for what this cannot cover.

        Raises BudgetError where the site's releases would cost more than the budget.
        """
        uncovered(passage.sends, self.spec)
        keys = [key for key in covered(passage.sends, self.spec) if key in value]
        if self.spec.mode == "distributed":
            return {**value, **self._whole({key: value[key] for key in keys}, passage)}
        used = {key: value[key] for key in keys}
        by_row = {key: item for key, item in used.items() if passage.sends[key] in BY_ROW}
        votes = {key: item for key, item in used.items() if passage.sends[key] is Kind.VOTES}
        updates = {
            key: item for key, item in used.items() if key not in by_row and key not in votes
        }
        note = self._spend(releases(self.spec, updates, by_row, votes), passage.memory)
        changed = {
            **self._whole(updates, passage),
            **{key: self._rows(item, (key,), passage) for key, item in by_row.items()},
            **{key: self._votes(item, (key,), passage) for key, item in votes.items()},
        }
        return {**value, **changed, **({SPENT: note} if note else {})}

    def arrive(self, value: Tree, passage: Passage) -> Tree:
        """The reply as it came: what was noised stays so."""
        return value

    def _spend(self, made: list[tuple[Mechanism, int]], memory: Tree) -> Tree:
        """Counts this site's releases; what is spent by then, empty for nothing."""
        kind = self.spec.accountant
        before = Accountant.of(memory.get("spent"), kind)
        after = Accountant.of(memory.get("spent"), kind)
        for mechanism, times in made:
            after.add(mechanism, times)
        if not made:
            return {}
        note = told(self.spec, before, after, self.delta, "site")
        memory["spent"] = after.tree()
        return note

    def _whole(self, values: Tree, passage: Passage) -> Tree:
        """All these as one vector."""
        forms = []
        for key, value in values.items():
            form = form_of(key, [value], passage.received.get(key))
            assert form is not None
            forms.append(form)
        if not forms:
            return {}
        vector = torch.cat([form.vector(values[form.key]) for form in forms])
        short = clipped(vector.unsqueeze(0), self.spec.clip).squeeze(0)
        noisy = noised(short, self._std, passage.rng("noise"))
        parts = noisy.split([form.size for form in forms])
        return {form.key: form.value(part) for form, part in zip(forms, parts, strict=True)}

    def _rows(self, value: Any, path: tuple[str, ...], passage: Passage) -> Any:
        if isinstance(value, dict):
            return {key: self._rows(item, (*path, key), passage) for key, item in value.items()}
        if isinstance(value, list):
            return [self._rows(item, (*path, str(i)), passage) for i, item in enumerate(value)]
        if value is None:
            return None
        rng = passage.rng("rows", *path)
        return private_rows(rows_of(value, path), self.spec.clip, self.spec.noise, rng)

    def _votes(self, value: Any, path: tuple[str, ...], passage: Passage) -> Any:
        if isinstance(value, dict) and "bits" not in value:
            return {key: self._votes(item, (*path, key), passage) for key, item in value.items()}
        votes = votes_of(value, path)
        epsilon, choices = self.spec.vote_epsilon, self.spec.vote_choices
        assert epsilon is not None
        assert choices is not None
        return randomised(votes, choices, epsilon, passage.rng("votes", *path))


def noise_share(cohort: int, dropouts: int) -> float:
    """The share of the sum's noise that each of ``cohort`` sites adds: 1 / sqrt(those that stay).

    Raises ConfigError where so many may drop out that none is left.
    """
    if cohort - dropouts < 1:
        raise ConfigError(
            f"protect.privacy.dropouts={dropouts} of {cohort} sites leaves none to add the noise; "
            "ask more sites, or tolerate fewer"
        )
    return 1 / math.sqrt(cohort - dropouts)


def releases(
    spec: PrivacySpec, updates: Tree, by_row: Tree, votes: Tree
) -> list[tuple[Mechanism, int]]:
    """What one site's reply releases: mechanism and how often.

    All updates are one release. Every row and every vote is one more, since the site had its hand
    in each of them.
    """
    made: list[tuple[Mechanism, int]] = []
    rows = sum(len(rows_of(leaf, path)) for path, leaf in leaves(by_row) if leaf is not None)
    count = (1 if updates else 0) + rows
    if count:
        made.append((Gaussian(spec.noise), count))
    cast = sum(votes_of(value, path).numel() for path, value in _ballots(votes, ()))
    if cast and spec.vote_epsilon is not None and spec.vote_choices is not None:
        made.append((Response(spec.vote_epsilon, spec.vote_choices), cast))
    return made


def _ballots(value: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and "bits" not in value:
        return [found for key, item in value.items() for found in _ballots(item, (*path, key))]
    return [(path, value)]


def rows_of(value: Any, path: tuple[str, ...]) -> Tensor:
    """A tensor of rows [n, ...], or ConfigError that says what is not one."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2:
        return value
    raise ConfigError(
        f"{'.'.join(path)} is no floating-point tensor of rows [n, d], so that it cannot be "
        "noised row by row; choose another method, or mode: central"
    )


def votes_of(value: Any, path: tuple[str, ...]) -> Tensor:
    """A tensor of whole numbers, or ConfigError that says what is not one."""
    where = ".".join(path)
    if isinstance(value, dict):
        raise ConfigError(
            f"{where} is a packed order, of which every place depends on all others, so that "
            "randomised response does not cover it; choose another method, or leave privacy out"
        )
    if isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.bool:
        return value
    raise ConfigError(f"{where} is no tensor of whole numbers, as votes for one of many are")
