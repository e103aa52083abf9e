"""Equal models, built once and handed from party to party."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

from motet.core.tree import Tree, load, weights_of

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class _Marks:
    """What of a model is not a number: modes of its modules, and what is trained."""

    training: tuple[bool, ...]
    trained: tuple[bool, ...]

    @staticmethod
    def of(model: nn.Module) -> _Marks:
        return _Marks(
            tuple(module.training for module in model.modules()),
            tuple(value.requires_grad for value in model.parameters()),
        )

    def put_on(self, model: nn.Module) -> None:
        for module, training in zip(model.modules(), self.training, strict=True):
            module.training = training
        for value, trained in zip(model.parameters(), self.trained, strict=True):
            value.requires_grad_(trained)
            value.grad = None


class Mould(Generic[M]):
    """Builds models that are equal to the bit; one that was given back is as good as new.

    So that sites whose models do not last from one question to the next need one in all.
    """

    def __init__(self, build: Callable[[], M]) -> None:
        self._build = build
        self._spare: list[M] = []
        self._initial: Tree | None = None
        self._marks: _Marks | None = None

    def __call__(self) -> M:
        """A model with its initial weights."""
        model = self.take()
        load(model, self.initial)
        return model

    def take(self) -> M:
        """A model whose weights may be anything; all else is as in a new one."""
        if self._spare and self._marks is not None:
            model = self._spare.pop()
            self._marks.put_on(model)
            return model
        model = self._build()
        if self._marks is None:
            self._marks, self._initial = _Marks.of(model), weights_of(model)
        return model

    @property
    def initial(self) -> Tree:
        """The weights of a new model; not to be changed."""
        if self._initial is None:
            self.give_back(self())
        assert self._initial is not None
        return self._initial

    def give_back(self, model: M) -> None:
        """Takes a model for whoever is next; nobody may use it any more."""
        self._spare.append(model)
