"""Validation errors as one sentence: the field, the value, and what to write instead."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

# With fields of the error's context in braces.
_WANTED = {
    "int_parsing": "write a whole number",
    "int_type": "write a whole number",
    "int_from_float": "write a whole number",
    "float_parsing": "write a number",
    "float_type": "write a number",
    "finite_number": "write a finite number",
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "string_type": "write a text",
    "dict_type": "write a mapping such as {{key: value}}",
    "tuple_type": "write a list such as [a, b]",
    "list_type": "write a list such as [a, b]",
    "too_short": "write at least {min_length} of them",
    "greater_than": "write a value above {gt}",
    "greater_than_equal": "write at least {ge}",
    "less_than": "write a value below {lt}",
    "less_than_equal": "write at most {le}",
    "string_pattern_mismatch": "write a text of the form {pattern}",
}
_MAPPINGS = ("model_type", "model_attributes_type", "dataclass_type")
_YAML = {None: "null", True: "true", False: "false"}


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean "rounds"?' for the most similar known name, "" where none is similar."""
    found = get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def number(value: Any) -> str:
    """A bound as one writes it: 1 for 1.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def explain(error: ValidationError, where: str, cls: type[BaseModel] | None = None) -> str:
    """A validation error as one sentence.

    where: path of the validated values, "" at the top. cls: the model they were validated by.
    """
    # A field that is misspelt often makes another one missing: the misspelling is the cause.
    items = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    first = items[0]
    kind, loc = first["type"], first["loc"]
    names, models = _walk(cls, loc)
    around = _walk(cls, loc[:-1])[1]
    path = ".".join([where, *names] if where else names)
    if kind == "value_error":
        reason = str(first["ctx"]["error"])
        return f"{path}: {reason}" if path and not reason.startswith(path) else reason
    if kind == "extra_forbidden" or (kind in _MAPPINGS and _unknown(loc, around)):
        return f"{path}: there is no such field{_instead(str(loc[-1]), around)}"
    if kind == "missing":
        return f"{path}: is missing{_meaning(str(loc[-1]), around)}"
    if kind == "union_tag_invalid":
        tag, expected = str(first["ctx"]["tag"]), first["ctx"]["expected_tags"]
        return f"{path}.name = {tag!r}: {_choice(tag, expected)}"
    if loc and loc[-1] == "[key]":
        key = str(first["input"])
        return f"{path}: there is no {key!r}; {_choice(key, first['ctx']['expected'])}"
    return f"{path} = {_shown(first['input'])}: {_advice(first, models)}"


def _advice(item: Any, models: Sequence[type[BaseModel]]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind in _WANTED:
        return _WANTED[kind].format(**{key: number(value) for key, value in context.items()})
    if kind in _MAPPINGS:
        fields = ", ".join(dict.fromkeys(name for model in models for name in model.model_fields))
        return f"write a mapping of fields ({fields})" if fields else "write a mapping of fields"
    if kind in ("literal_error", "enum"):
        return _choice(str(item["input"]), context["expected"])
    return str(item["msg"]).removeprefix("Input should ").lower()


def _choice(given: str, expected: str) -> str:
    """What may stand there; ``expected`` lists it quoted, as pydantic does."""
    known = [name.strip(" '") for name in expected.replace(" or ", ", ").split(",")]
    return f"write one of {', '.join(known)}{nearest(given, known)}"


def _unknown(loc: Sequence[int | str], around: Sequence[type[BaseModel]]) -> bool:
    """Whether the last name is a further field that the model takes and does not know."""
    known = [field for model in around for field in model.model_fields]
    return bool(known) and isinstance(loc[-1], str) and loc[-1] not in known


def _instead(name: str, models: Sequence[type[BaseModel]]) -> str:
    known = list(dict.fromkeys(field for model in models for field in model.model_fields))
    if not known:
        return ""
    return nearest(name, known) or f"; write one of {', '.join(known)}"


def _meaning(name: str, models: Sequence[type[BaseModel]]) -> str:
    for model in models:
        field = model.model_fields.get(name)
        if field is not None and field.description:
            return f"; it says {field.description}"
    return ""


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return _YAML[value]
    return reprlib.repr(value)


def _walk(
    cls: type[BaseModel] | None, loc: Sequence[int | str]
) -> tuple[list[str], list[type[BaseModel]]]:
    """The names on the way as a recipe writes them, and the models at its end.

    Pydantic puts a name for the chosen member of a union between them, which no recipe has.
    """
    names: list[str] = []
    here = [] if cls is None else [cls]
    for part in loc:
        fields = [model.model_fields[str(part)] for model in here if part in model.model_fields]
        tagged = [model for model in here if _tag(model) == part]
        if isinstance(part, int):
            names.append(str(part))
        elif fields:
            names.append(part)
            here = [model for field in fields for model in _models(field.annotation)]
        elif tagged:
            here = tagged
        elif part not in ("[key]", "str") and not part.startswith("tuple["):
            # A key of a mapping: what its value may be stays known.
            names.append(part)
    return names, here


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("name")
    literal = field is not None and get_origin(field.annotation) is Literal
    return get_args(field.annotation)[0] if field is not None and literal else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]
