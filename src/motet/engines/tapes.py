"""What was recorded of fits that are taken together, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from motet.engines.fits import Fit
from motet.engines.tape import Tape

# How many kinds of fits are remembered.
FORMS = 64


class Tapes:
    """The steps that were recorded, which of them were checked, and which fits stay alone.

    worth: why so many sites gain nothing by a step that is stacked; "" where they do.
    """

    def __init__(self, worth: Callable[[Tape, int], str] | None = None) -> None:
        self.worth = worth
        self.alone: dict[Hashable, str] = {}
        self.figures: dict[Hashable, dict[str, int]] = {}
        self.checked: set[Hashable] = set()
        self._tapes: dict[Hashable, Tape] = {}
        self._held: dict[Hashable, Any] = {}

    def hold(self, fit: Fit) -> None:
        """Keeps alive what a form goes by the identity of, so that nothing else may take it."""
        if fit.form not in self._held:
            if len(self._held) >= FORMS:
                for kept in (self.alone, self.figures, self.checked, self._tapes, self._held):
                    kept.clear()
            self._held[fit.form] = (fit.parts, fit.model.held)

    def undecided(self, form: Hashable) -> bool:
        """Whether it is not known yet if several sites gain anything by a step of this form."""
        return self.worth is not None and form not in self.figures

    def get(self, key: Hashable, make: Callable[[], Tape]) -> Tape:
        """The tape of this key, made if it is not there."""
        if key not in self._tapes:
            self._tapes[key] = make()
        return self._tapes[key]
