"""Named groups of a model's parameters and buffers: what is shared, kept at a site, or frozen."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from motet.core.errors import ConfigError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
HEAD = "head"
NAMES = ("head", "base", "norm", "trainable", "frozen", "all")
M = TypeVar("M", bound=nn.Module)


def freeze(module: M) -> M:
    """Fixes a module for good: it is not trained, does not travel and is not checkpointed.

    It stays in eval mode, and simulated sites with equal frozen tensors hold them once.
    """
    module.requires_grad_(False)
    for part in module.modules():
        part.frozen = True  # type: ignore[assignment]
    return module.eval()


def is_frozen(module: nn.Module) -> bool:
    """Whether this very module was frozen."""
    return getattr(module, "frozen", False) is True


def group(model: nn.Module, name: str) -> frozenset[str]:
    """Names of the parameters and buffers of one group.

    "head" is the class head and "base" everything else that may change; "norm" are the batch-norm
    modules, by their type; "trainable" are the parameters that are trained, "frozen" what never
    changes, "all" what may change. A modality stands for its encoder. Raises ConfigError for
    another name.
    """
    frozen = frozen_names(model)
    changing = frozenset(model.state_dict()) - frozen
    if name == "frozen":
        return frozen
    if name == "all":
        return changing
    if name == "trainable":
        return frozenset(key for key, value in model.named_parameters() if value.requires_grad)
    if name == "norm":
        return frozenset(_of_batch_norms(model)) & changing
    if name in ("head", "base"):
        head = frozenset(key for key in changing if key.split(".")[0] == HEAD)
        return head if name == "head" else changing - head
    prefix = f"encoders.{name}."
    found = frozenset(key for key in changing if key.startswith(prefix))
    if not found:
        raise ConfigError(f"the model has no group {name!r}; write one of {', '.join(NAMES)}")
    return found


def frozen_names(model: nn.Module) -> frozenset[str]:
    """Parameters without a gradient, and the buffers of frozen modules."""
    found = {name for name, value in model.named_parameters() if not value.requires_grad}
    for path, module in model.named_modules():
        if is_frozen(module):
            prefix = f"{path}." if path else ""
            found.update(prefix + name for name, _ in module.named_buffers(recurse=False))
    return frozenset(found)


def _of_batch_norms(model: nn.Module) -> list[str]:
    return [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, BATCH_NORMS)
        for name in module.state_dict()
    ]
