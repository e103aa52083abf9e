"""Updates as one vector: what guards that pack replies into fewer bytes have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from motet.core.errors import ConfigError, WireError
from motet.core.guard import Passage
from motet.core.kinds import Kind
from motet.core.tree import Tree, leaves

PACKED = "@packed"
FORM = "@form"
MAX_DIMS = 16
# Directions of descent: what is left out of one can be added to the next.
DIRECTIONS = frozenset({Kind.GRADIENTS, Kind.CONTROL})
_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class Form:
    """Where a tensor stands in a value, and what it is like."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


class Packer(ABC):
    """A guard that packs what replies send under keys of one kind, as difference to what they got.

    Where the hub sent nothing of the same names and shapes under a key, the value itself is
    packed, if ``alone`` allows it. All floating-point tensors of a key are one vector. Running
    statistics stay out of it: a variance with an error in it may be negative.

    packs: the name of the way. bounded: whether what travels bounds what is made of it; else a
    value that is packed alone has no more numbers than the question had.
    """

    def __init__(self, kind: Kind, packs: str, *, alone: bool, bounded: bool) -> None:
        self.kind = kind
        self.packs = packs
        self.alone = alone
        self.bounded = bounded
        self.name = f"{packs} {kind}"

    @abstractmethod
    def encode(self, update: Tensor, forms: Sequence[Form], key: str, passage: Passage) -> Tree:
        """The vector, float32 or float64 [d] and finite, as named tensors and numbers."""

    @abstractmethod
    def decode(self, packed: Tree, forms: Sequence[Form]) -> Tensor:
        """The vector that was packed, float32 [d]; raises WireError for anything else."""

    def leave(self, value: Tree, passage: Passage) -> Tree:
        """The reply with its updates packed; raises ConfigError for one that cannot be."""
        reply = dict(value)
        for key in self._keys(value, passage):
            try:
                reply[key] = self._pack(key, value[key], passage)
            except WireError as error:
                raise WireError(f"{key}: {error}") from None
        return reply

    def _pack(self, key: str, value: Any, passage: Passage) -> Tree:
        tree, tensors = apart(value)
        forms = forms_of(tree)
        vector = _vector(tensors)
        base = base_of(tree, passage.received.get(key))
        if base is not None:
            vector = vector - _vector(base)
        elif self.alone:
            self._check_room(forms, passage.received)
        else:
            raise ConfigError(
                f"{self.packs} packs the difference to what the hub sent, and with {passage.op!r} "
                f"it sent no {key!r} of these names and shapes; write fp16, int8 or qsgd for "
                f"{self.kind}"
            )
        if not bool(torch.isfinite(vector).all()):
            raise WireError("it has values that are infinite or NaN, which cannot be packed")
        return {PACKED: self.packs, "tree": tree, **self.encode(vector, forms, key, passage)}

    def _check_room(self, forms: Sequence[Form], received: Tree) -> None:
        # A reader needs a bound on memory that is no claim of the sender's.
        size = sum(form.count for form in forms)
        room = _floats_in(received)
        if not self.bounded and size > room:
            raise WireError(f"it is of {size:,} numbers, and the question only had {room:,}")

    def arrive(self, value: Tree, passage: Passage) -> Tree:
        """The reply with its updates unpacked; raises WireError that names the key for damage."""
        reply = dict(value)
        for key in self._keys(value, passage):
            try:
                reply[key] = self._unpack(key, value[key], passage)
            except WireError as error:
                raise WireError(f"{key}: {error}") from None
        return reply

    def _unpack(self, key: str, packed: Any, passage: Passage) -> Any:
        if not isinstance(packed, dict) or packed.get(PACKED) != self.packs or "tree" not in packed:
            raise WireError(f"it is not packed as {self.packs}")
        tree = packed["tree"]
        forms = forms_of(tree)
        base = base_of(tree, passage.received.get(key))
        if base is None:
            if not self.alone:
                raise WireError("it has not the names and shapes that were sent")
            self._check_room(forms, passage.received)
        rest = {name: item for name, item in packed.items() if name not in (PACKED, "tree")}
        parts = self.decode(rest, forms).split([form.count for form in forms])
        made = [part.view(form.shape) for part, form in zip(parts, forms, strict=True)]
        if base is not None:
            made = [part + old for part, old in zip(made, base, strict=True)]
        whole = [part.to(form.dtype) for part, form in zip(made, forms, strict=True)]
        return together(tree, iter(whole))

    def _keys(self, value: Tree, passage: Passage) -> list[str]:
        return [key for key, kind in passage.sends.items() if kind is self.kind and key in value]


def apart(
    value: Any, path: tuple[str, ...] = (), *, running: bool = False
) -> tuple[Any, list[Tensor]]:
    """A value without its floating-point tensors, and these in order.

    In place of each is {"@form": [dtype, *shape]}. running: running statistics too. Raises
    WireError for a value with such a key.
    """
    if isinstance(value, dict):
        if FORM in value:
            raise WireError(f"the key {FORM!r} is used for packing; rename it")
        made = {name: apart(item, (*path, name), running=running) for name, item in value.items()}
        return (
            {name: tree for name, (tree, _) in made.items()},
            [tensor for _, tensors in made.values() for tensor in tensors],
        )
    if isinstance(value, list):
        items = [apart(item, (*path, str(i)), running=running) for i, item in enumerate(value)]
        return [tree for tree, _ in items], [tensor for _, found in items for tensor in found]
    kept = not running and _running(path)
    if not isinstance(value, Tensor) or not value.is_floating_point() or kept:
        return value, []
    name = str(value.dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise WireError(f"{'.'.join(path)} is {name}; send one of {', '.join(_DTYPES)}")
    return {FORM: [name, *value.shape]}, [value.detach()]


def _running(path: tuple[str, ...]) -> bool:
    return bool(path) and path[-1].rsplit(".", 1)[-1].startswith("running_")


def together(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The value of ``apart``."""
    if isinstance(tree, dict):
        if FORM in tree:
            return next(tensors)
        return {name: together(item, tensors) for name, item in tree.items()}
    return [together(item, tensors) for item in tree] if isinstance(tree, list) else tree


def forms_of(tree: Any) -> list[Form]:
    """What belongs into the tree of ``apart``, in order; raises WireError for a form that lies."""
    # Stops what is nested too deeply before the walks below.
    for _ in leaves(tree):
        pass
    return list(_forms(tree, ()))


def _forms(tree: Any, path: tuple[str, ...]) -> Iterator[Form]:
    if isinstance(tree, dict) and FORM in tree:
        match tree:
            case {"@form": [str(name), *shape]} if len(tree) == 1 and name in _DTYPES:
                sizes = all(type(size) is int and size >= 0 for size in shape)
                # A size of 0 hides how large the others are, of which strides are made.
                if sizes and len(shape) <= MAX_DIMS and math.prod(n or 1 for n in shape) < 2**40:
                    yield Form(path, tuple(shape), _DTYPES[name])
                    return
        raise WireError(f"{'.'.join(path) or 'it'} has a form that is no dtype and shape")
    if isinstance(tree, dict):
        for name, item in tree.items():
            yield from _forms(item, (*path, name))
    elif isinstance(tree, list):
        for i, item in enumerate(tree):
            yield from _forms(item, (*path, str(i)))


def base_of(tree: Any, sent: Any) -> list[Tensor] | None:
    """What a payload holds in the places of a tree's forms, in order; None where one differs."""
    if isinstance(tree, dict) and FORM in tree:
        shape = tuple(tree[FORM][1:])
        fits = isinstance(sent, Tensor) and sent.is_floating_point() and sent.shape == shape
        return [sent.detach()] if fits else None
    if isinstance(tree, dict):
        old = sent if isinstance(sent, dict) else {}
        pairs = [(item, old.get(name)) for name, item in tree.items()]
    elif isinstance(tree, list):
        same = isinstance(sent, list) and len(sent) == len(tree)
        pairs = list(zip(tree, sent if same else [None] * len(tree), strict=True))
    else:
        return []
    found: list[Tensor] = []
    for item, other in pairs:
        part = base_of(item, other)
        if part is None:
            return None
        found += part
    return found


def _vector(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors:
        return torch.empty(0)
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if wide else torch.float32
    return torch.cat([tensor.flatten().to(dtype) for tensor in tensors])


def _floats_in(received: Tree) -> int:
    return sum(
        leaf.numel()
        for _, leaf in leaves(received)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    )


def tensor_of(packed: Tree, name: str, dtype: torch.dtype, count: int) -> Tensor:
    """The named tensor [count] of a packed vector; raises WireError for another or none."""
    found = packed.get(name)
    if not isinstance(found, Tensor) or found.dtype != dtype or found.shape != (count,):
        kind = str(dtype).removeprefix("torch.")
        raise WireError(f"its {name} are not {count:,} numbers of {kind}")
    if dtype.is_floating_point and not bool(torch.isfinite(found).all()):
        raise WireError(f"its {name} are infinite or NaN")
    return found
