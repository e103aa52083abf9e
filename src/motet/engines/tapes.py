"""What sites do together: how it may fail, what was recorded of it, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from motet.engines.alike import Structure
from motet.engines.tape import Tape, Unlike

# How many kinds are remembered.
FORMS = 64
T = TypeVar("T")


class Broken(Exception):  # noqa: N818
    """What several sites were to do together fails; no model has been changed."""


@contextmanager
def nothing_changed() -> Iterator[None]:
    """Makes Broken of what goes wrong inside, but for Unlike; no model may be changed there."""
    try:
        yield
    except Unlike:
        raise
    except Exception as error:
        raise Broken(f"{type(error).__name__}: {error}") from error


@contextmanager
def stacking(what: str) -> Iterator[None]:
    """Makes Unlike of what goes wrong inside while ``what`` is recorded."""
    try:
        yield
    except Unlike:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:160] if str(error) else ""
        raise Unlike(f"its {what} cannot be stacked: {type(error).__name__}: {reason}") from error


def share(count: int, most: int) -> int:
    """How many of ``count`` go together at a time, at most so many, in parts as even as can be."""
    return -(-count // -(-count // most))


class Wish(Protocol):
    """What a site waits for: a fit, or a forward pass.

    form: what its kernels depend on. key: equal for those that are the same computation on other
    tensors. model: with what it computes. held: what the form names by its identity.
    """

    form: Hashable
    key: Hashable
    model: Structure

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

    def weigh(self, wish: Wish, tape: Tape, sites: int) -> None:
        """Notes a form's figures when it is new; raises Unlike where so many sites gain nothing."""
        if wish.form not in self.figures:
            self.figures[wish.form] = {
                "parameters": sum(value.numel() for value in wish.model.parameters.values()),
                "products": tape.products() // sites,
                "kernels": len(tape.operations),
            }
            why = self.worth(tape, sites) if self.worth is not None else ""
            if why:
                raise Unlike(why)
