"""What may be set, as rows of a table: name, type, default, bounds and what it means."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from motet.experiment.explain import number

_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass(frozen=True)
class Row:
    """One field as a recipe writes it: "server.lr", with everything in words."""

    name: str
    kind: str
    default: str
    bounds: str
    about: str


def rows_of(cls: type[BaseModel], doc: str | None = None) -> list[Row]:
    """All fields of a model, those of nested groups by their dotted names.

    doc: the docstring of a function whose parameters these are; its "name: meaning" says what a
    field without a description means.
    """
    rows = list(_rows(cls, None, ""))
    meanings = _meanings(doc or "", [row.name for row in rows])
    return [replace(row, about=row.about or meanings.get(row.name, "")) for row in rows]


def _meanings(doc: str, names: list[str]) -> dict[str, str]:
    """Name -> what follows "name: " or "name, other: " in a docstring, up to the next of them."""
    name = f"(?:{'|'.join(map(re.escape, names))})"
    start = rf"(?:^|(?<=\s))((?:{name}, )*{name}): "
    found: dict[str, str] = {}
    for paragraph in inspect.cleandoc(doc).split("\n\n"):
        parts = re.split(start, " ".join(paragraph.split()))
        for heads, text in zip(parts[1::2], parts[2::2], strict=True):
            found |= dict.fromkeys(heads.split(", "), text.strip(" ."))
    return found


def _rows(cls: type[BaseModel], defaults: BaseModel | None, prefix: str) -> Iterator[Row]:
    for name, field in cls.model_fields.items():
        default = getattr(defaults, name) if defaults is not None else _default(field)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            given = default if isinstance(default, BaseModel) else None
            yield from _rows(inner, given, f"{prefix}{name}.")
        else:
            yield Row(
                prefix + name, kind_of(inner), shown(default), _bounds(field), _about(field, cls)
            )


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def shown(value: Any) -> str:
    """A default as a recipe writes it; "" where there is none."""
    if value is PydanticUndefined:
        return ""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown(item) for item in value)}]"
    if isinstance(value, BaseModel):
        return shown(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    return str(value)


def kind_of(annotation: Any) -> str:
    """A type in words: "int", "float or null", "one of gca, mean, size", "list of str"."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (Union, types.UnionType):
        # Null comes last, as an afterthought.
        ordered = sorted(args, key=lambda arg: arg is type(None))
        return " or ".join(dict.fromkeys(kind_of(arg) for arg in ordered))
    if hasattr(annotation, "__metadata__"):
        return kind_of(args[0])
    if inspect.isclass(origin) and args:
        inner = [kind_of(arg) for arg in args if arg is not Ellipsis]
        if issubclass(origin, dict) or len(inner) == 2:
            return f"mapping of {' to '.join(inner)}"
        return f"list of {' or '.join(dict.fromkeys(inner))}"
    if annotation is type(None):
        return "null"
    return str(getattr(annotation, "__name__", annotation))


def _bounds(field: FieldInfo) -> str:
    found = []
    for item in field.metadata:
        for key, sign in _BOUNDS.items():
            value = getattr(item, key, None)
            if value is not None:
                found.append(f"{sign} {number(value)}")
    return ", ".join(found)


def _about(field: FieldInfo, owner: type[BaseModel]) -> str:
    """The description; where a field has none, what its group says of itself."""
    # Not inherited: pydantic's own docstring says nothing about a field.
    doc = vars(owner).get("__doc__") or ""
    return field.description or inspect.cleandoc(doc).partition("\n")[0].rstrip(".")
