"""Optimisers as values: what a method writes down, built over parameters when a fit begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from motet.core.eager import EagerAdamW, spare_the_compiler
from motet.core.groups import trained_parameters
from motet.core.tree import Tree, clone


class OptimizerSpec(Protocol):
    """Anything that can build a torch optimiser over parameters."""

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimiser over these parameters."""


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with learning rate ``lr``."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimiser over these parameters."""
        return BriskSGD(
            parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )


class BriskSGD(torch.optim.SGD):
    """Torch's SGD with a second way to take the same step, to the bit: ``descend``.

    What ``step`` looks up each time (hooks, a record for the profiler, which implementation to
    choose) takes as long as the forward pass of a small model.
    """

    @torch.no_grad()
    def descend(self) -> None:
        """One step down the gradients that are there, one call per operation for all parameters."""
        for group in self.param_groups:
            moving = [value for value in group["params"] if value.grad is not None]
            if not moving:
                continue
            slopes = [value.grad for value in moving]
            if group["weight_decay"]:
                slopes = list(torch._foreach_add(slopes, moving, alpha=group["weight_decay"]))
            if group["momentum"]:
                slopes = self._moments(moving, slopes, group["momentum"])
            torch._foreach_add_(moving, slopes, alpha=-group["lr"])

    def _moments(
        self, moving: list[torch.Tensor], slopes: list[torch.Tensor], momentum: float
    ) -> list[torch.Tensor]:
        """The momenta after these gradients; a parameter's first gradient is its first momentum."""
        states = [self.state[value] for value in moving]
        old = [i for i, state in enumerate(states) if state.get("momentum_buffer") is not None]
        if old:
            buffers = [states[i]["momentum_buffer"] for i in old]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, [slopes[i] for i in old])
        if len(old) < len(states):
            for state, slope in zip(states, slopes, strict=True):
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = slope.detach().clone()
        return [state["momentum_buffer"] for state in states]


@dataclass(frozen=True)
class Adam:
    """Adam with learning rate ``lr`` (decoupled weight decay where one is given)."""

    lr: float
    weight_decay: float = 0.0

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimiser over these parameters."""
        return EagerAdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True)


class Optimizer:
    """A torch optimiser of one model that can be written down and taken up again.

    clip: largest gradient norm over all parameters, or None.
    """

    def __init__(self, model: nn.Module, spec: OptimizerSpec, clip: float | None = None) -> None:
        self.parameters = trained_parameters(model)
        self.spec = spec
        self.clip = clip
        self._inner: torch.optim.Optimizer | None = None

    @property
    def inner(self) -> torch.optim.Optimizer:
        """The torch optimiser, built when it is first asked for."""
        if self._inner is None:
            spare_the_compiler()
            self._inner = self.spec.build(self.parameters)
        return self._inner

    @property
    def fresh(self) -> bool:
        """Whether it is as its spec makes it, and has no torch optimiser yet."""
        return self._inner is None

    def step(self, loss: torch.Tensor, adjust: Callable[[], None] | None = None) -> None:
        """One step down the gradient of ``loss``; ``adjust`` may change the gradients first."""
        for value in self.parameters:
            value.grad = None
        loss.backward()
        if adjust is not None:
            adjust()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        inner = self.inner
        if isinstance(inner, BriskSGD):
            inner.descend()
        else:
            inner.step()

    def set_lr(self, lr: float) -> None:
        """Changes the learning rate from the next step on."""
        for group in self.inner.param_groups:
            group["lr"] = lr

    def retune(self, spec: OptimizerSpec, clip: float | None) -> None:
        """Goes on with the hyper-parameters of ``spec`` and the moments that there are."""
        self.spec = spec
        self.clip = clip
        if self.fresh:
            return
        fresh = spec.build(self.parameters).param_groups
        for group, wanted in zip(self.inner.param_groups, fresh, strict=True):
            group.update({key: value for key, value in wanted.items() if key != "params"})

    def tree(self) -> Tree:
        """The moments by parameter number, and the learning rate, which may have been changed."""
        moments: dict[Any, Any] = self.inner.state_dict()["state"]
        lr = float(self.inner.param_groups[0]["lr"])
        return {"moments": {str(key): clone(value) for key, value in moments.items()}, "lr": lr}

    def load(self, tree: Tree) -> None:
        """Takes moments and learning rate up again; with an empty tree, starts afresh."""
        self._inner = None
        if tree:
            full = self.inner.state_dict()
            full["state"] = {int(key): clone(value) for key, value in tree["moments"].items()}
            self.inner.load_state_dict(full)
            self.set_lr(tree["lr"])
