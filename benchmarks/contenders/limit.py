"""The limit: the matrix products and convolutions of every step alone, forward and backward.

Inputs and results lie ready; there is no activation, no loss, no optimiser, no batch to gather and
nothing to average. No loop that goes from site to site can be faster. ``--engine stacked`` does
the products of all sites of the cohort at once, where the network has nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contenders.gate import Gate, arguments
from benchmarks.works import network

Run = Callable[[], object]


def main() -> None:
    """Plays rounds as told."""
    gate = Gate()
    work, plan, options = arguments()
    torch.set_num_threads(options.threads)
    model = network(work, plan.weights)
    stack = work.cohort if options.engine == "stacked" else 1
    runs = products(model, plan.x[plan.order[0, 0, 0]], stack)
    gate.ready(versions={"torch": torch.__version__})
    with torch.no_grad():
        for _ in range(work.rounds):
            gate.begin()
            for _ in range(work.cohort // stack * work.steps):
                for run in runs:
                    run()
            gate.finish(lambda: plan.weights)
    gate.begin()


def products(model: nn.Module, x: Tensor, stack: int = 1) -> list[Run]:
    """Functions that do one step's products, those of the first layer without its input's."""
    found: list[Run] = []
    first = True

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal first
        if isinstance(module, nn.Linear):
            found.extend(_linear(inputs[0].flatten(0, -2), module.weight, stack, first))
        elif isinstance(module, nn.Conv2d):
            assert stack == 1, "convolutions are not stacked"
            found.append(_convolution(module, inputs[0], output, first))
        elif isinstance(module, nn.MultiheadAttention):
            assert stack == 1, "attention is not stacked"
            found.extend(_attention(module, inputs[0]))
        first = False

    kinds = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    # In train mode, for in eval mode transformers take a path around the modules.
    model.train()(x)
    for hook in hooks:
        hook.remove()
    return found


def _linear(x: Tensor, weight: Tensor, stack: int, first: bool) -> list[Run]:
    """Of x [n, in] and weight [out, in]: the output, and both gradients."""
    (n, inputs), outputs = x.shape, len(weight)
    return _three(stack, n, inputs, outputs, first)


def _three(stack: int, n: int, inner: int, outputs: int, first: bool) -> list[Run]:
    """[n, inner] x [inner, outputs] and the products of its backward pass, ``stack`` at once."""
    many = (stack,) if stack > 1 else ()
    multiply = torch.bmm if stack > 1 else torch.mm
    x, weight = torch.randn(*many, n, inner), torch.randn(*many, outputs, inner)
    grad, out = torch.randn(*many, n, outputs), torch.empty(*many, n, outputs)
    to_weight, to_x = torch.empty_like(weight), torch.empty_like(x)
    runs: list[Run] = [
        lambda: multiply(x, weight.mT, out=out),
        lambda: multiply(grad.mT, x, out=to_weight),
    ]
    return runs if first else [*runs, lambda: multiply(grad, weight, out=to_x)]


def _convolution(module: nn.Conv2d, x: Tensor, output: Tensor, first: bool) -> Run:
    x, grad, weight = x.detach().clone(), torch.randn_like(output), module.weight.detach()
    stride, padding = list(module.stride), [int(side) for side in module.padding]

    def run() -> None:
        torch.conv2d(x, weight, None, stride, padding)
        torch.ops.aten.convolution_backward(
            *(grad, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1),
            [not first, True, False],
        )

    return run


def _attention(module: nn.MultiheadAttention, x: Tensor) -> list[Run]:
    """Projections in and out, scores and mixtures, each with its backward products."""
    n, length, dim = x.shape
    heads = module.num_heads
    each = dim // heads
    return [
        *_three(1, n * length, dim, 3 * dim, False),
        *_three(n * heads, length, each, length, False),
        *_three(n * heads, length, length, each, False),
        *_three(1, n * length, dim, dim, False),
    ]


if __name__ == "__main__":
    main()
