"""Steps of optimisers on stacks of parameters: what SGD and Adam do, for several sites at once."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from motet.core.eager import EagerAdamW, spare_the_compiler
from motet.core.optim import SGD, Adam, BriskSGD, Optimizer
from motet.engines.tape import Product, Unlike

MOMENTUM = "momentum_buffer"
MOMENTS = ("exp_avg", "exp_avg_sq")
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
        self._begun = tuple(
            [states.get(value, {}).get(MOMENTUM) is not None for value in optimizer.parameters]
        )
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
        self._velocity = [
            _stacked(optimizers, number, MOMENTUM) if begun else None
            for number, begun in enumerate(self._begun)
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
                    state[MOMENTUM] = velocity[site].clone()


class StackedAdam:
    """Adam with decoupled weight decay and a clip.

    As torch's, it leaves a parameter that got no gradient alone, and counts steps by parameter.
    """

    def __init__(self, group: dict[str, Any], states: States, optimizer: Optimizer) -> None:
        self.lr = float(group["lr"])
        self.betas = tuple(map(float, group["betas"]))
        self.eps = float(group["eps"])
        self.decay = float(group["weight_decay"])
        self.clip = optimizer.clip
        # Which parameters have moved already.
        self._begun = tuple([bool(states.get(value)) for value in optimizer.parameters])
        self.moments = 2
        self.takes_products = False
        self.form: Hashable = ("adam",)
        self.options: Hashable = (self.lr, self.betas, self.eps, self.decay, self.clip, self._begun)
        # Of each parameter by site: steps; and first and second moments, where it has moved.
        self._steps = torch.zeros(0)
        self._held: list[tuple[Tensor, Tensor] | None] = []

    @staticmethod
    def knows(group: dict[str, Any]) -> bool:
        """Whether it does what these options ask for."""
        odd = ("amsgrad", "maximize", "differentiable")
        return not any(group.get(name) for name in odd) and not isinstance(group["lr"], Tensor)

    def stack(self, optimizers: Sequence[Optimizer]) -> None:
        """Takes the moments of these optimisers over."""
        count = len(self._begun)
        self._steps = torch.zeros(count, len(optimizers), dtype=torch.float64)
        self._held = [None] * count
        for number in itertools.compress(range(count), self._begun):
            self._steps[number] = _stacked(optimizers, number, "step")
            first, second = (_stacked(optimizers, number, name) for name in MOMENTS)
            self._held[number] = first, second

    def update(
        self, parameters: Sequence[Tensor], gradients: Sequence[Any], low: int, high: int
    ) -> None:
        """One step of sites ``low`` to ``high``, whose parameters these are, in place."""
        if self.clip is not None:
            gradients = _clipped(gradients, self.clip)
        taken = self._steps[:, low:high]
        taken += torch.tensor([[float(gradient is not None)] for gradient in gradients])
        pace = self.lr / (1 - self.betas[0] ** taken)
        spread = (1 - self.betas[1] ** taken).sqrt()
        for number, (value, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            if gradient is None:
                continue
            first, second = (item[low:high] for item in self._moments(number, gradient))
            value.mul_(1 - self.lr * self.decay)
            first.lerp_(gradient, 1 - self.betas[0])
            second.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
            root = second.sqrt().div_(_along(spread[number].to(value.dtype), value)).add_(self.eps)
            value.addcmul_(first / root, _along(pace[number].to(value.dtype), value), value=-1)

    def _moments(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        held = self._held[number]
        if held is None:
            shape = (self._steps.shape[1], *like.shape[1:])
            held = self._held[number] = like.new_zeros(shape), like.new_zeros(shape)
        return held

    def unstack(self, optimizers: Sequence[Optimizer]) -> None:
        """Gives the moments back."""
        for number, held in enumerate(self._held):
            if held is not None:
                for site, optimizer in enumerate(optimizers):
                    state = optimizer.inner.state[optimizer.parameters[number]]
                    state["step"] = self._steps[number, site].float()
                    state.update(zip(MOMENTS, (item[site].clone() for item in held), strict=True))


def _stacked(optimizers: Sequence[Optimizer], number: int, moment: str) -> Tensor:
    return torch.stack([o.inner.state[o.parameters[number]][moment] for o in optimizers])


KINDS: dict[type, type[StackedSGD] | type[StackedAdam]] = {
    BriskSGD: StackedSGD,
    torch.optim.SGD: StackedSGD,
    EagerAdamW: StackedAdam,
    torch.optim.AdamW: StackedAdam,
}
