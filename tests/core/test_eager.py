from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from motet.core.eager import EagerAdamW, spare_the_compiler


def test_the_step_is_torchs_to_the_bit() -> None:
    models = [nn.Linear(5, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    made = (torch.optim.AdamW, EagerAdamW)
    optimizers = [
        cls(model.parameters(), lr=0.1, weight_decay=0.01, fused=True)
        for cls, model in zip(made, models, strict=True)
    ]
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for ours, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert not ours.requires_grad or ours.grad is not None
    assert str(optimizers[0].state_dict()["state"]) == str(optimizers[1].state_dict()["state"])


def test_training_imports_no_compiler() -> None:
    script = """
import sys
import torch
from motet.core import Adam
from motet.core.optim import Optimizer

model = torch.nn.Linear(2, 1)
optimizer = Optimizer(model, Adam(0.1))
optimizer.step(model(torch.ones(3, 2)).sum())
optimizer.load(optimizer.tree())
optimizer.step(model(torch.ones(3, 2)).sum())
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_where_the_compiler_is_there_nothing_is_changed() -> None:
    import torch._dynamo  # noqa: F401

    spare_the_compiler()
    nn_ = nn.Linear(1, 1)
    assert EagerAdamW(nn_.parameters()).param_groups
