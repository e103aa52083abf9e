"""Named groups of a model's parameters and buffers: what is shared, kept at a site, or frozen."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

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
    # Not by getattr: for a name that is not there, nn.Module looks through all it has.
    return module.__dict__.get("frozen", getattr(type(module), "frozen", False)) is True


def group(model: nn.Module, name: str) -> frozenset[str]:
    """Names of the parameters and buffers of one group.

    "head" is the class head and "base" everything else that may change; "norm" are the batch-norm
    modules, by their type; "trainable" are the parameters that are trained, "frozen" what never
    changes, "all" what may change. A modality stands for its encoder. Raises ConfigError for
    another name.
    """
    if name == "frozen":
        return frozen_names(model)
    changing = frozenset(changing_tensors(model))
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
    return frozenset(model.state_dict()) - frozenset(changing_tensors(model))


def changing_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that are trained and buffers that are kept, by name, as they are; no copies.

    What ``state_dict`` has, without what is frozen. It is called for every model that travels, and
    ``state_dict`` with its hooks takes a percent of a small model's training.
    """
    found: dict[str, Tensor] = {}
    _collect(model, "", found)
    return found


def _collect(module: nn.Module, prefix: str, found: dict[str, Tensor]) -> None:
    for name, value in module._parameters.items():
        if value is not None and value.requires_grad:
            found[prefix + name] = value.detach()
    if module._buffers and not is_frozen(module):
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                found[prefix + name] = buffer.detach() if buffer.requires_grad else buffer
    for name, child in module._modules.items():
        if child is not None:
            _collect(child, f"{prefix}{name}.", found)


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained, each once and in the order of ``model.parameters()``."""
    found: dict[int, nn.Parameter] = {}
    _collect_trained(model, found)
    return list(found.values())


def _collect_trained(module: nn.Module, found: dict[int, nn.Parameter]) -> None:
    for value in module._parameters.values():
        if value is not None and value.requires_grad:
            found.setdefault(id(value), value)
    for child in module._modules.values():
        if child is not None:
            _collect_trained(child, found)


def frozen_to_eval(module: nn.Module) -> None:
    """Puts what is frozen into eval mode, wherever it stands."""
    if is_frozen(module):
        module.training = False
    for child in module._modules.values():
        if child is not None:
            frozen_to_eval(child)


def _of_batch_norms(model: nn.Module) -> list[str]:
    return [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, BATCH_NORMS)
        for name in module.state_dict()
    ]
