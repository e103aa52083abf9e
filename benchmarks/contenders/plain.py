"""A hand-written loop: load the weights, take the steps, average. What Motet is measured against.

All rows lie ready in one tensor; there is one model and one optimiser; loading and averaging are
single calls over all tensors (``torch._foreach``).
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from benchmarks.contenders.gate import Gate, arguments
from benchmarks.works import network


def main() -> None:
    """Plays rounds as told."""
    gate = Gate()
    work, plan, options = arguments()
    torch.set_num_threads(options.threads)
    model = network(work, plan.weights).train()
    parameters: list[torch.Tensor] = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=work.lr, foreach=True)
    with torch.no_grad():
        start = [value.clone() for value in parameters]
        total = [torch.empty_like(value) for value in parameters]
    share = 1 / work.cohort

    def weights() -> dict[str, torch.Tensor]:
        names = [name for name, _ in model.named_parameters()]
        return dict(zip(names, start, strict=True))

    gate.ready(versions={"torch": torch.__version__})
    for sites in plan.order:
        gate.begin()
        torch._foreach_zero_(total)
        for steps in sites:
            with torch.no_grad():
                torch._foreach_copy_(parameters, start)
            for rows in steps:
                optimizer.zero_grad()
                F.cross_entropy(model(plan.x[rows]), plan.y[rows]).backward()
                optimizer.step()
            with torch.no_grad():
                torch._foreach_add_(total, parameters, alpha=share)
        start, total = total, start
        gate.finish(weights)
    gate.begin()


if __name__ == "__main__":
    main()
