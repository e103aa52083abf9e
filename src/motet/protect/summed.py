"""The secure sum in the pipeline: a guard that masks replies, and the hub that opens their sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from motet.core.errors import ConfigError, SiteError, WireError
from motet.core.guard import Call, Passage, Question
from motet.core.kinds import Kind
from motet.core.messages import Traits
from motet.core.tree import Tree
from motet.core.validate import SAMPLES
from motet.protect.packing import Form, apart, base_of, forms_of, together
from motet.protect.privacy import PrivacySpec, spend
from motet.protect.secure_hub import SecureHub
from motet.protect.secure_site import SecureSite
from motet.protect.secure_sum import SecureSumSpec

QUESTION = "@secure"
MASKED = "@masked"
OPERATIONS = {f"@secure.{step}": step for step in ("keys", "shares", "unmask")}
Ask: TypeAlias = Callable[[str, Mapping[str, Tree]], Mapping[str, Tree]]


class SecureGuard:
    """Masks, at its site, what replies send under keys of the spec's kinds.

    All floating-point numbers of these keys are one vector: the difference to what the hub sent
    under the same key, where it has the same names and shapes. Whole numbers stay as they are.
    """

    name = "secure sum"

    def __init__(self, spec: SecureSumSpec) -> None:
        self.spec = spec
        self._sites: dict[str, SecureSite] = {}

    def _site(self, name: str) -> SecureSite:
        return self._sites.setdefault(name, SecureSite(name, self.spec))

    @property
    def operations(self) -> frozenset[str]:
        """Questions of the hub's that are not the method's."""
        return frozenset(OPERATIONS)

    def answer(self, site: str, op: str, payload: Tree) -> Tree:
        """A site's answer to one of them."""
        return self._site(site).answer(OPERATIONS[op], payload)

    def leave(self, value: Tree, passage: Passage) -> Tree:
        """The reply with one masked vector in place of its numbers."""
        keys = covered(self.spec.kinds, passage.sends, value)
        if not keys:
            return value
        asked = passage.own.get(QUESTION)
        if not isinstance(asked, dict):
            raise SiteError("the hub asked for no secure sum, and this site sends nothing else")
        reply, parts = dict(value), []
        for key in keys:
            tree, tensors = apart(value[key], running=True)
            base = base_of(tree, passage.received.get(key))
            numbers = [tensor.double().flatten() for tensor in tensors]
            if base is not None:
                numbers = [
                    new - old.double().flatten() for new, old in zip(numbers, base, strict=True)
                ]
            reply[key] = {"tree": tree}
            parts += numbers
        vector = torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)
        weight = 1.0
        if self.spec.weights == "samples":
            weight = float(value[SAMPLES]) / float(asked["most"]) if SAMPLES in value else 1.0
        rng = passage.rng("rounding")
        masked = self._site(passage.site).mask(vector, weight, passage.tag, asked["boxes"], rng)
        reply[keys[0]][MASKED] = masked
        return reply

    def arrive(self, value: Tree, passage: Passage) -> Tree:
        """The reply as it is: the hub can make nothing of a single one."""
        return value


class SecureSum:
    """The hub's half in the pipeline: prepares every question's sum, and opens it."""

    def __init__(self, spec: SecureSumSpec) -> None:
        self.spec = spec
        self.kinds = frozenset(spec.kinds)
        self._hubs: dict[str, SecureHub] = {}
        self._most = 1.0

    def prepare(
        self, question: Question, traits: Mapping[str, Traits], ask: Ask
    ) -> dict[str, Tree]:
        """Site -> what goes along with its question; who is missing has dropped out."""

        def told(step: str, each: Mapping[str, Tree]) -> Mapping[str, Tree]:
            return ask(f"@secure.{step}", each)

        hub = SecureHub(self.spec, told)
        self._hubs = {question.tag: hub}
        self._most = float(max((traits[site].rows for site in question.sites), default=1) or 1)
        boxes = hub.prepare(question.tag, question.sites)
        return {site: {QUESTION: {**own, "most": self._most}} for site, own in boxes.items()}

    def unfit(self, question: Question, values: Mapping[str, Tree]) -> dict[str, str]:
        """Site -> why its reply can be no part of the sum: no masked vector, or of another form."""
        found: dict[str, str] = {}
        forms: dict[str, list[tuple[str, list[Form]]]] = {}
        for site, value in values.items():
            try:
                self._hubs[question.tag].check(question.tag, site, self._masked(question, value))
                keys = covered(self.spec.kinds, question.sends, value)
                forms[site] = [(key, forms_of(value[key]["tree"])) for key in keys]
            except WireError as error:
                found[site] = str(error)
        for form in list(forms.values()):
            alike = [site for site, other in forms.items() if other == form]
            if 2 * len(alike) > len(forms):
                odd = set(forms) - set(alike)
                break
        else:
            odd = set(forms)
        told = "a sum needs vectors of one form, such as from sites of the same modalities"
        return {
            **found,
            **dict.fromkeys(odd, f"its numbers have another form than others': {told}"),
        }

    def _masked(self, question: Question, value: Tree) -> Any:
        keys = covered(self.spec.kinds, question.sends, value)
        first = value[keys[0]] if keys else None
        if not isinstance(first, dict) or not all(
            isinstance(value[key], dict) and "tree" in value[key] for key in keys
        ):
            raise WireError("it is not masked")
        return first.get(MASKED)

    def open(self, question: Question, values: Mapping[str, Tree]) -> dict[str, Any]:
        """Key -> mean of the sites' values, weighed as the recipe says.

        Raises SiteError when too few are left, and WireError for sites whose forms differ.
        """
        first = next(iter(values.values()))
        keys = covered(self.spec.kinds, question.sends, first)
        trees = [first[key]["tree"] for key in keys]
        forms = [forms_of(tree) for tree in trees]
        size = sum(form.count for group in forms for form in group)
        masked = {site: self._masked(question, value) for site, value in values.items()}
        total = self._hubs.pop(question.tag).open(question.tag, masked, size)
        mean = total / sum(self._weight(value) for value in values.values())
        site = next(iter(values))
        parts = mean.split([sum(form.count for form in group) for group in forms])
        return {
            key: self._value(tree, group, part, question.received[site].get(key))
            for key, tree, group, part in zip(keys, trees, forms, parts, strict=True)
        }

    def _weight(self, value: Tree) -> float:
        if self.spec.weights == "samples" and SAMPLES in value:
            return float(value[SAMPLES]) / self._most
        return 1.0

    def _value(self, tree: Any, forms: list[Form], part: Tensor, sent: Any) -> Any:
        base = base_of(tree, sent)
        numbers = [
            n.view(form.shape)
            for n, form in zip(part.split([f.count for f in forms]), forms, strict=True)
        ]
        if base is not None:
            numbers = [new + old for new, old in zip(numbers, base, strict=True)]
        made = [n.to(form.dtype) for n, form in zip(numbers, forms, strict=True)]
        return together(tree, iter(made))

    def fits(self, weights: Mapping[str, float], values: Mapping[str, Tree], key: str) -> None:
        """Refuses a mean whose weights are not those by which the sites scaled their vectors."""
        own = {site: self._weight(values[site]) for site in weights}
        pairs = [(weights[site], own[site]) for site in weights]
        if any(abs(a * pairs[0][1] - b * pairs[0][0]) > 1e-9 * abs(a) for a, b in pairs):
            other = "uniform" if self.spec.weights == "samples" else "samples"
            raise ConfigError(
                f"the method weighs {key!r} in another way than the sites, who scale what they "
                f"mask: write protect.secure_sum.weights: {other}"
            )


def covered(kinds: tuple[Kind, ...], sends: Mapping[str, Kind], value: Tree) -> list[str]:
    """The keys of a reply that are of these kinds, in the order of their declaration."""
    return [key for key, kind in sends.items() if kind in kinds and key in value]


class SummedNoise:
    """Counts the privacy of sums to which every site added its share of the noise."""

    hides = True

    def __init__(self, spec: PrivacySpec, sites: int, cohort: int) -> None:
        self.spec = spec
        self.cohort = cohort
        self.kinds = frozenset(spec.kinds)
        self.delta = spec.delta_for(sites)

    def spend(self, question: Question, memory: Tree) -> Tree:
        """Counts the release that the question leads to; raises BudgetError beyond the budget.

        Raises ConfigError for a question to fewer sites than the noise was shared out for.
        """
        if len(question.sites) < self.cohort:
            raise ConfigError(
                f"{question.op!r} goes to {len(question.sites)} sites, and every site adds noise "
                f"for a sum over {self.cohort}; set the method's cohort to what it asks"
            )
        return spend(self.spec, question, memory, self.delta)

    def admit(
        self, values: Mapping[str, Tree], question: Question, memory: Tree
    ) -> dict[str, Tree]:
        """All replies as they are."""
        return dict(values)

    def mean(self, call: Call) -> Any:
        """Never asked for: the secure sum of these kinds is the mean."""
        raise ConfigError(f"there is no secure sum of {call.key!r}, and single replies lack noise")
