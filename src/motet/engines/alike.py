"""When two fits are the same computation on different tensors: equal models, equal functions.

Whatever is not known to be equal counts as different, and is then computed on its own.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from operator import itemgetter
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from motet.core.groups import BATCH_NORMS, is_frozen
from motet.engines.tape import Unlike

Make: TypeAlias = Callable[[Iterator[Tensor]], Any]
PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.Size)
# What every module has, beside what its class gives it.
MEMBERS = len(vars(nn.Module()))
COMMON = frozenset(vars(nn.Module())) | {"frozen"}
HOOKS = tuple(sorted(name for name in COMMON if "hooks" in name and "with" not in name))
_hooks = itemgetter(*HOOKS)
NOT_STACKED = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class Part:
    """A value in two halves: what must be equal, and the tensors that may differ."""

    key: Hashable
    tensors: tuple[Tensor, ...]
    make: Make


class Structure:
    """What a model computes with: its trained parameters and its buffers, by name.

    key: equal for models that compute the same from these. Frozen tensors belong to it: they are
    the same objects in equal models. Raises Unlike for a model that is not to be stacked.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        # What the key names by its identity.
        self.held: list[Any] = []
        self._seen: set[int] = set()
        found: list[Hashable] = []
        self._add(model, "", found)
        self.key: Hashable = tuple(found)

    def _add(self, module: nn.Module, prefix: str, found: list[Hashable]) -> None:
        attributes = vars(module)
        _check(module, attributes)
        found.append((prefix, type(module), attributes["training"]))
        if len(attributes) > MEMBERS:
            for name in sorted(attributes.keys() - COMMON):
                found.append((name, _constant(attributes[name], self.held)))
        for name, parameter in attributes["_parameters"].items():
            if parameter is not None:
                trained = parameter.requires_grad
                found.append((name, self._form(parameter, not trained)))
                if trained:
                    self.parameters.setdefault(prefix + name, parameter)
        buffers = attributes["_buffers"]
        fixed = bool(buffers) and is_frozen(module)
        for name, buffer in buffers.items():
            if buffer is not None:
                found.append((name, self._form(buffer, fixed)))
                if not fixed:
                    self.buffers[prefix + name] = buffer
        for name, child in attributes["_modules"].items():
            if child is not None:
                self._add(child, f"{prefix}{name}.", found)

    def _form(self, value: Tensor, shared: bool) -> Hashable:
        if not shared and id(value) in self._seen:
            raise Unlike("its model has a tensor in two places")
        self._seen.add(id(value))
        form = (value.shape, value.dtype, value.device)
        if not shared:
            return form
        self.held.append(value)
        return (*form, id(value))


@cache
def _is_special(kind: type) -> bool:
    """Whether there are modules of this kind that are not to be stacked."""
    return issubclass(kind, (nn.modules.dropout._DropoutNd, *BATCH_NORMS, *NOT_STACKED))


def _check(module: nn.Module, attributes: Mapping[str, Any]) -> None:
    kind: type = type(module)
    if _is_special(kind):
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise Unlike("its model has dropout, whose draws are a site's own")
        if isinstance(module, BATCH_NORMS) and module.training:
            raise Unlike("its model has batch norm, whose statistics are a site's own")
        if isinstance(module, NOT_STACKED):
            raise Unlike(f"its model has a {kind.__name__}, whose kernel knows one site alone")
    if any(_hooks(attributes)):
        raise Unlike("its model has hooks")


def _constant(value: Any, held: list[Any]) -> Hashable:
    """A value by what it is where that is plain, and else by which object it is."""
    if isinstance(value, float):
        # 0.0 and -0.0 are equal, and not the same.
        return float, value.hex()
    if isinstance(value, PLAIN):
        return type(value), value
    if type(value) in (list, tuple):
        return type(value), tuple(_constant(item, held) for item in value)
    if type(value) is dict:
        return dict, tuple((key, _constant(item, held)) for key, item in value.items())
    held.append(value)
    return "object", id(value)


def parted(value: Any, model: nn.Module) -> Part:
    """A loss, or whatever it reads, with its tensors apart; ``model`` is that which is trained.

    Tensors count in closures, bound arguments and dicts. All else must be plain, or the very same
    object for all sites.
    """
    if value is model:
        return Part("model", (), lambda tensors: value)
    if isinstance(value, Tensor):
        if value.requires_grad or value.layout != torch.strided:
            raise Unlike("its loss reads a tensor that has a gradient, or is not dense")
        form = (Tensor, value.shape, value.dtype, value.device)
        return Part(form, (value,), lambda tensors: next(tensors))
    if isinstance(value, FunctionType):
        return _function(value, model)
    if isinstance(value, MethodType):
        parts = _all((value.__func__, value.__self__), model)
        return Part((MethodType, parts.key), parts.tensors, lambda t: MethodType(*parts.make(t)))
    if type(value) is partial:
        parts = _all((value.func, value.args, value.keywords), model)

        def bound(tensors: Iterator[Tensor]) -> Any:
            function, args, keywords = parts.make(tensors)
            return partial(function, *args, **keywords)

        return Part((partial, parts.key), parts.tensors, bound)
    if type(value) is tuple:
        return _all(value, model)
    # An empty one may be there to be filled by the loss.
    if type(value) is dict and value:
        names, parts = tuple(value), _all(tuple(value.values()), model)
        return Part(
            (names, parts.key),
            parts.tensors,
            lambda tensors: dict(zip(names, parts.make(tensors), strict=True)),
        )
    if isinstance(value, PLAIN):
        return Part(_constant(value, []), (), lambda tensors: value)
    return Part((type(value), id(value)), (), lambda tensors: value)


def _all(values: tuple[Any, ...], model: nn.Module) -> Part:
    parts = [parted(value, model) for value in values]
    return Part(
        tuple(part.key for part in parts),
        tuple(tensor for part in parts for tensor in part.tensors),
        lambda tensors: tuple(part.make(tensors) for part in parts),
    )


def _function(function: FunctionType, model: nn.Module) -> Part:
    code = function.__code__
    if _rebinds(code):
        raise Unlike(f"{function.__name__} changes variables around it")
    cells = function.__closure__ or ()
    if not (cells or function.__defaults__ or function.__kwdefaults__):
        key = ("function", id(code), id(function.__globals__))
        return Part(key, (), lambda tensors: function)
    try:
        contents = tuple(cell.cell_contents for cell in cells)
    except ValueError:
        raise Unlike(f"{function.__name__} reads a variable that is not there yet") from None
    kept = (contents, function.__defaults__, tuple((function.__kwdefaults__ or {}).items()))
    parts = _all(kept, model)

    def made(tensors: Iterator[Tensor]) -> Any:
        inside, defaults, keywords = parts.make(tensors)
        new = FunctionType(
            code,
            function.__globals__,
            function.__name__,
            defaults,
            tuple(CellType(item) for item in inside),
        )
        new.__kwdefaults__ = dict(keywords) or None
        new.__dict__.update(function.__dict__)
        return new

    return Part(("closure", id(code), parts.key), parts.tensors, made)


@cache
def _rebinds(code: CodeType, names: tuple[str, ...] | None = None) -> bool:
    """Whether a function, or one within it, assigns to these variables; to those around it."""
    free = code.co_freevars if names is None else names
    inner = [item for item in code.co_consts if isinstance(item, CodeType)]
    return any(
        step.opname in ("STORE_DEREF", "DELETE_DEREF") and step.argval in free
        for step in dis.get_instructions(code)
    ) or any(_rebinds(item, tuple(set(free) & set(item.co_freevars))) for item in inner)
