"""Equal models, built once and handed from party to party."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary, ref

from torch import nn

from motet.core.tree import Tree, load, weights_of

M = TypeVar("M", bound=nn.Module)


class _Marks:
    """What of a model is not a number: modes of its modules, and what is trained."""

    def __init__(self, model: nn.Module) -> None:
        # The model must be free to go while its marks are here.
        self._modes = [(ref(module), module.training) for module in model.modules()]
        self._trained = [(ref(value), value.requires_grad) for value in model.parameters()]

    def restore(self) -> bool:
        """Makes the model in these respects what it was; whether all of its parts are there."""
        # Setting what is set already takes nn.Module a while.
        for found, training in self._modes:
            module = found()
            if module is None:
                return False
            if module.training is not training:
                module.training = training
        for there, trained in self._trained:
            value = there()
            if value is None:
                return False
            value.grad = None
            if value.requires_grad is not trained:
                value.requires_grad_(trained)
        return True


class Mould(Generic[M]):
    """Builds models that are equal to the bit; one that was given back is as good as new.

    So that sites whose models do not last from one question to the next need one in all.
    """

    def __init__(self, build: Callable[[], M]) -> None:
        self._build = build
        self._spare: list[M] = []
        self._initial: Tree | None = None
        self._marks: WeakKeyDictionary[M, _Marks] = WeakKeyDictionary()

    def __call__(self) -> M:
        """A model with its initial weights."""
        model = self.take()
        load(model, self.initial)
        return model

    def take(self) -> M:
        """A model whose weights may be anything; all else is as in a new one."""
        while self._spare:
            model = self._spare.pop()
            # Somebody may have put other parts in the place of its own.
            if self._marks[model].restore():
                return model
        model = self._build()
        self._marks[model] = _Marks(model)
        if self._initial is None:
            self._initial = weights_of(model)
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
