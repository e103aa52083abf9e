"""Steps of optimisers on stacks of parameters: what SGD and Adam do, for several sites at once."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from motet.core.eager import EagerAdamW, spare_the_compiler
from motet.core.optim import SGD, Adam, BriskSGD, Optimizer
from motet.engines.tape import Product, Unlike

DENSE = torch.contiguous_format
# What a torch optimiser keeps, by parameter.
States: TypeAlias = Mapping[Any, Mapping[str, Any]]


class Rule(Protocol):
    """An optimiser of stacks.

    form: what a step's kernels depend on. options: what else must be equal. moments: tensors that
    it keeps per parameter. takes_products: whether a gradient may come as factors of a product.
    """

    form: Hashable
    options: Hashable
    moments: int
    takes_products: bool

    def stack(self, optimizers: Sequence[Optimizer]) -> None:
        """Takes the moments of these optimisers over."""

    def update(
        self, parameters: Sequence[Tensor], gradients: Sequence[Any], low: int, high: int
    ) -> None:
        """One step of sites ``low`` to ``high``, whose parameters these are, in place."""

    def unstack(self, optimizers: Sequence[Optimizer]) -> None:
        """Gives the moments back."""


def rule_of(optimizer: Optimizer, parameters: Collection[Tensor]) -> Rule:
    """The rule that does what this optimiser of these parameters does; Unlike without one."""
    spec = optimizer.spec
    if isinstance(spec, SGD | Adam) and optimizer.fresh:
        made, groups = _built(spec)
        states: States = {}
    else:
        made, groups, states = _parts(optimizer.inner)
    same = len(parameters) == len(optimizer.parameters) and all(
        a is b for a, b in zip(parameters, optimizer.parameters, strict=True)
    )
    if not same or len(groups) != 1 or not parameters:
        raise Unlike("its optimiser is not one of all parameters alike")
    kind, group = KINDS.get(made), groups[0]
    if kind is None or not kind.knows(group):
        raise Unlike(f"its optimiser, {type(optimizer.spec).__name__}, is not stacked in this form")
    return kind(group, states, optimizer)


@lru_cache(maxsize=256)
def _built(spec: SGD | Adam) -> tuple[type, list[dict[str, Any]]]:
    """What a spec builds, but over no one's parameters: to build it for every site takes long."""
    spare_the_compiler()
    made, groups, _ = _parts(spec.build([nn.Parameter(torch.zeros(1))]))
    return made, groups


def _parts(inner: torch.optim.Optimizer) -> tuple[type, list[dict[str, Any]], States]:
    """Its class, its options by group of parameters, and its moments."""
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in inner.param_groups
    ]
    return type(inner), groups, inner.state


def _clipped(gradients: Sequence[Tensor | None], most: float) -> list[Tensor | None]:
    """Gradients whose norm per site, over all parameters, is at most so large; as torch clips."""
    squares = [by_site(g).square().sum(dim=1) for g in gradients if g is not None]
    norm = torch.stack(squares).sum(dim=0).sqrt()
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    return [None if g is None else g * _along(factor, g) for g in gradients]


def by_site(stack: Tensor) -> Tensor:
    """The numbers of each site in a row: [sites, ...] -> [sites, numbers]; one for a scalar."""
    return stack.unsqueeze(-1).flatten(1)


def _along(per_site: Tensor, like: Tensor) -> Tensor:
    return per_site.view(-1, *[1] * (like.dim() - 1))


class StackedSGD:
    """Stochastic gradient descent with momentum, weight decay and a clip."""

    def __init__(self, group: dict[str, Any], states: States, optimizer: Optimizer) -> None:
        self.lr = float(group["lr"])
        self.momentum = float(group["momentum"])
        self.decay = float(group["weight_decay"])
        self.clip = optimizer.clip
        self._begun = any(state.get("momentum_buffer") is not None for state in states.values())
        self.moments = int(self.momentum > 0)
        self.takes_products = not self.momentum and self.clip is None
        self.form: Hashable = ("sgd", self.takes_products)
        self.options: Hashable = (self.lr, self.momentum, self.decay, self.clip, self._begun)
        self._velocity: list[Tensor | None] = []
        self._sites = 0

    @staticmethod
    def knows(group: dict[str, Any]) -> bool:
        """Whether it does what these options ask for."""
        odd = ("dampening", "nesterov", "maximize", "differentiable")
        return not any(group.get(name) for name in odd) and not isinstance(group["lr"], Tensor)

    def stack(self, optimizers: Sequence[Optimizer]) -> None:
        """Takes the moments of these optimisers over."""
        self._sites = len(optimizers)
        self._velocity = [None] * len(optimizers[0].parameters)
        if self._begun:
            self._velocity = [
                _stacked(optimizers, number, "momentum_buffer")
                for number in range(len(self._velocity))
            ]

    def update(
        self, parameters: Sequence[Tensor], gradients: Sequence[Any], low: int, high: int
    ) -> None:
        """One step of sites ``low`` to ``high``, whose parameters these are, in place."""
        if self.clip is not None:
            gradients = _clipped(gradients, self.clip)
        for number, (value, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            if isinstance(gradient, Product):
                kept = 1 - self.lr * self.decay
                value.baddbmm_(gradient.left, gradient.right, beta=kept, alpha=-self.lr)
            elif gradient is not None:
                if self.decay:
                    gradient = gradient.add(value, alpha=self.decay)
                if self.momentum:
                    gradient = self._moved(number, gradient, low, high)
                value.add_(gradient, alpha=-self.lr)

    def _moved(self, number: int, gradient: Tensor, low: int, high: int) -> Tensor:
        velocity = self._velocity[number]
        if velocity is None:
            # From 0, since 0 * momentum + gradient is what torch begins with.
            velocity = gradient.new_zeros(self._sites, *gradient.shape[1:])
            self._velocity[number] = velocity
        return velocity[low:high].mul_(self.momentum).add_(gradient)

    def unstack(self, optimizers: Sequence[Optimizer]) -> None:
        """Gives the moments back."""
        for number, velocity in enumerate(self._velocity):
            if velocity is not None:
                for site, optimizer in enumerate(optimizers):
                    state = optimizer.inner.state[optimizer.parameters[number]]
                    state["momentum_buffer"] = velocity[site].clone()


class StackedAdam:
    """Adam with decoupled weight decay and a clip."""

    def __init__(self, group: dict[str, Any], states: States, optimizer: Optimizer) -> None:
        self.lr = float(group["lr"])
        self.betas = tuple(map(float, group["betas"]))
        self.eps = float(group["eps"])
        self.decay = float(group["weight_decay"])
        self.clip = optimizer.clip
        self._begun = bool(states)
        if self._begun and len({float(state["step"]) for state in states.values()}) > 1:
            raise Unlike("its optimiser has taken more steps for some parameters than for others")
        if self._begun and len(states) < len(optimizer.parameters):
            raise Unlike("its optimiser has not moved all parameters yet")
        self.moments = 2
        self.takes_products = False
        self.form: Hashable = ("adam",)
        self.options: Hashable = (self.lr, self.betas, self.eps, self.decay, self.clip, self._begun)
        self._steps = torch.zeros(0)
        self._first: list[Tensor] = []
        self._second: list[Tensor] = []

    @staticmethod
    def knows(group: dict[str, Any]) -> bool:
        """Whether it does what these options ask for."""
        odd = ("amsgrad", "maximize", "differentiable")
        return not any(group.get(name) for name in odd) and not isinstance(group["lr"], Tensor)

    def stack(self, optimizers: Sequence[Optimizer]) -> None:
        """Takes the moments of these optimisers over."""
        numbers = range(len(optimizers[0].parameters))
        if self._begun:
            self._first = [_stacked(optimizers, number, "exp_avg") for number in numbers]
            self._second = [_stacked(optimizers, number, "exp_avg_sq") for number in numbers]
            self._steps = _stacked(optimizers, 0, "step").double()
            return
        shapes = [value.expand(len(optimizers), *value.shape) for value in optimizers[0].parameters]
        self._first = [torch.zeros_like(shape, memory_format=DENSE) for shape in shapes]
        self._second = [torch.zeros_like(shape, memory_format=DENSE) for shape in shapes]
        self._steps = torch.zeros(len(optimizers), dtype=torch.float64)

    def update(
        self, parameters: Sequence[Tensor], gradients: Sequence[Any], low: int, high: int
    ) -> None:
        """One step of sites ``low`` to ``high``, whose parameters these are, in place."""
        if any(gradient is None for gradient in gradients):
            raise Unlike("its loss leaves parameters without a gradient, whose moments then differ")
        if self.clip is not None:
            gradients = _clipped(gradients, self.clip)
        self._steps[low:high] += 1
        taken = self._steps[low:high]
        pace = self.lr / (1 - self.betas[0] ** taken)
        spread = (1 - self.betas[1] ** taken).sqrt()
        for number, (value, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            first, second = self._first[number][low:high], self._second[number][low:high]
            value.mul_(1 - self.lr * self.decay)
            first.lerp_(gradient, 1 - self.betas[0])
            second.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
            root = second.sqrt().div_(_along(spread.to(value.dtype), value)).add_(self.eps)
            value.addcmul_(first / root, _along(pace.to(value.dtype), value), value=-1)

    def unstack(self, optimizers: Sequence[Optimizer]) -> None:
        """Gives the moments back."""
        for site, optimizer in enumerate(optimizers):
            for number, value in enumerate(optimizer.parameters):
                optimizer.inner.state[value] = {
                    "step": self._steps[site].float(),
                    "exp_avg": self._first[number][site].clone(),
                    "exp_avg_sq": self._second[number][site].clone(),
                }


def _stacked(optimizers: Sequence[Optimizer], number: int, moment: str) -> Tensor:
    return torch.stack([o.inner.state[o.parameters[number]][moment] for o in optimizers])


KINDS: dict[type, type[StackedSGD] | type[StackedAdam]] = {
    BriskSGD: StackedSGD,
    torch.optim.SGD: StackedSGD,
    EagerAdamW: StackedAdam,
    torch.optim.AdamW: StackedAdam,
}
