"""Parts of a reply as one vector: what a clip of a whole update sees, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor

from motet.core.errors import ConfigError
from motet.core.tree import Leaf, leaves

Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Form:
    """How values under one key become vectors [size]: as differences to what the hub sent.

    template: a value with all the parts that any of them has. base: part -> what the hub had sent
    there, where that is of the same kind and shape. Only floating-point tensors enter; every
    other leaf must equal in form one that the hub sent, and is then the hub's own.
    """

    key: str
    template: Any
    base: Mapping[Path, Leaf]

    @property
    def shapes(self) -> dict[Path, torch.Size]:
        """Part -> its shape, in the order of the vector."""
        return {path: leaf.shape for path, leaf in leaves(self.template) if _is_float(leaf)}

    @property
    def size(self) -> int:
        """Length of the vectors."""
        return sum(shape.numel() for shape in self.shapes.values())

    def vector(self, value: Any) -> Tensor:
        """A value's difference to what was sent: float32 or wider [size]; 0 for parts it lacks."""
        found = {} if value is None else dict(leaves(value))
        parts = []
        for path, shape in self.shapes.items():
            leaf, sent = found.get(path), self.base.get(path)
            if leaf is None:
                parts.append(torch.zeros(shape.numel()))
                continue
            assert isinstance(leaf, Tensor)
            wide = _wide(leaf)
            parts.append((wide - _wide(sent) if isinstance(sent, Tensor) else wide).flatten())
        return torch.cat(parts) if parts else torch.zeros(0)

    def value(self, vector: Tensor) -> Any:
        """The value whose difference to what was sent is this vector."""
        shapes = self.shapes
        pieces = vector.split([shape.numel() for shape in shapes.values()])
        steps = {
            path: piece.view(shape)
            for (path, shape), piece in zip(shapes.items(), pieces, strict=True)
        }
        return self._built(self.template, (), steps)

    def _built(self, like: Any, path: Path, steps: Mapping[Path, Tensor]) -> Any:
        if isinstance(like, dict):
            return {key: self._built(item, (*path, key), steps) for key, item in like.items()}
        if isinstance(like, list):
            return [self._built(item, (*path, str(i)), steps) for i, item in enumerate(like)]
        sent = self.base.get(path)
        if path not in steps:
            return sent
        step = steps[path]
        return (step + _wide(sent) if isinstance(sent, Tensor) else step).to(like.dtype)


def form_of(key: str, values: Sequence[Any], sent: Any) -> Form | None:
    """The form of values under a key, of which the hub had sent ``sent`` (None for nothing).

    Without any value it is the form of what was sent; None where there is neither. Raises
    ConfigError for parts whose shapes differ, and for whole numbers and texts that no clip covers.
    """
    if not values and sent is None:
        return None
    template = values[0] if values else sent
    for value in values[1:]:
        template = _merged(template, value, key)
    told = {} if sent is None else dict(leaves(sent))
    base: dict[Path, Leaf] = {}
    for path, leaf in leaves(template):
        given = told.get(path)
        if _alike(leaf, given):
            base[path] = given
        elif not _is_float(leaf) and leaf is not None:
            where = ".".join((key, *path))
            raise ConfigError(
                f"{where} is {_told(leaf)}, which clip and noise do not cover; send it as a "
                "floating-point tensor, or leave protect.privacy out"
            )
    return Form(key, template, base)


def _merged(a: Any, b: Any, where: str) -> Any:
    if isinstance(a, dict) and isinstance(b, dict):
        both = {key: _merged(a[key], b[key], f"{where}.{key}") for key in a if key in b}
        return {**a, **b, **both}
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape:
            raise ConfigError(
                f"{where} has shape {tuple(a.shape)} at one site and {tuple(b.shape)} at another, "
                "so that there is no private sum of it; choose a method whose sites agree in shape"
            )
        return a
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        items = enumerate(zip(a, b, strict=True))
        return [_merged(x, y, f"{where}.{i}") for i, (x, y) in items]
    if type(a) is not type(b) or isinstance(a, list):
        raise ConfigError(f"{where} is not of one form at all sites, so that it has no private sum")
    return a


def _alike(leaf: Leaf, sent: Leaf) -> bool:
    if isinstance(leaf, Tensor) and isinstance(sent, Tensor):
        return leaf.shape == sent.shape and _is_float(leaf) == _is_float(sent)
    return not isinstance(leaf, Tensor) and leaf is not None and type(leaf) is type(sent)


def _is_float(leaf: Leaf) -> TypeGuard[Tensor]:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _told(leaf: Leaf) -> str:
    if isinstance(leaf, Tensor):
        return f"a {str(leaf.dtype).removeprefix('torch.')} tensor"
    return f"a {type(leaf).__name__}"
