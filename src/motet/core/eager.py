"""Torch's optimisers without its compiler, whose import alone takes longer than a small round.

``torch.optim`` imports ``torch._dynamo`` when the first optimiser is made, and again at every step,
to tell a compiler that is not there to keep out.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch.optim import Optimizer

# What torch marks as not to be compiled.
_MARKED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


class EagerAdamW(torch.optim.AdamW):
    """Torch's AdamW; its step is the same, to the bit."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of torch's own function, without what stands around it for the compiler."""
        return inspect.unwrap(torch.optim.Adam.step)(self, closure)


def spare_the_compiler() -> None:
    """Lets optimisers be made without importing the compiler; where it is there, does nothing."""
    if "torch._dynamo" in sys.modules:
        return
    for name in _MARKED:
        plain = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if plain is not None and getattr(plain, "__dynamo_disable", None) is None:
            plain.__dynamo_disable = plain
