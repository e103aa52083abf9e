"""What was recorded of what sites do together, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

from motet.engines.tape import Tape, Unlike

# How many kinds are remembered.
FORMS = 64
T = TypeVar("T")


class Wish(Protocol):
    """What a site waits for: a fit, or a forward pass.

    form: what its kernels depend on. key: equal for those that are the same computation on other
    tensors. held: what the form names by its identity.
    """

    form: Hashable
    key: Hashable

    @property
    def held(self) -> Any:
        """To be kept alive with the form."""


class Tapes:
    """What was recorded of steps and passes, what of it was checked, and which stay alone.

    worth: why so many sites gain nothing by a step that is stacked; "" where they do.
    """

    def __init__(self, worth: Callable[[Tape, int], str] | None = None) -> None:
        self.worth = worth
        self.alone: dict[Hashable, str] = {}
        self.figures: dict[Hashable, dict[str, int]] = {}
        self.checked: set[Hashable] = set()
        self._tapes: dict[Hashable, Any] = {}
        self._held: dict[Hashable, Any] = {}

    def hold(self, wish: Wish) -> None:
        """Keeps alive what a form goes by the identity of, so that nothing else may take it."""
        if wish.form not in self._held:
            if len(self._held) >= FORMS:
                for kept in (self.alone, self.figures, self.checked, self._tapes, self._held):
                    kept.clear()
            self._held[wish.form] = wish.held

    def undecided(self, form: Hashable) -> bool:
        """Whether it is not known yet if several sites gain anything by a step of this form."""
        return self.worth is not None and form not in self.figures

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was recorded under this key, made if it is not there."""
        if key not in self._tapes:
            self._tapes[key] = make()
        found: T = self._tapes[key]
        return found

    def weigh(self, form: Hashable, tape: Tape, sites: int, parameters: int) -> None:
        """Notes a form's figures when it is new; raises Unlike where so many sites gain nothing."""
        if form not in self.figures:
            self.figures[form] = {
                "parameters": parameters,
                "products": tape.products() // sites,
                "kernels": len(tape.operations),
            }
            why = self.worth(tape, sites) if self.worth is not None else ""
            if why:
                raise Unlike(why)
