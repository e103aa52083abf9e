"""Terms that methods add to a model's gradients between the backward pass and the step."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def add_to_gradients(model: nn.Module, tree: Mapping[str, Tensor], times: float = 1.0) -> None:
    """Adds ``times`` * ``tree`` to the gradients, in place.

    tree: parameter name -> tensor of its shape. A parameter without a gradient took no part in
    the loss and stays without one.
    """
    for name, value in model.named_parameters():
        if value.grad is not None:
            value.grad.add_(tree[name], alpha=times)


def add_proximal_gradient(model: nn.Module, anchor: Mapping[str, Tensor], mu: float) -> None:
    """Adds the gradient of mu/2 * ||x - anchor||^2, which is mu * (x - anchor), in place.

    anchor: parameter name -> tensor of its shape. FedProx (Li et al., MLSys 2020), equation 2.
    """
    for name, value in model.named_parameters():
        if value.grad is not None:
            value.grad.add_(value.detach() - anchor[name], alpha=mu)
