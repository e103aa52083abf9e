"""Which encoders there are, and models built from a checked description of them.

A further encoder joins through an entry point of the group ``motet.encoders`` whose value is a
subclass of ``Encoder``; its constructor's annotations say what may be set and within what bounds.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from motet.core.errors import ConfigError
from motet.core.rng import seeded
from motet.models.base import Encoder, MultimodalModel
from motet.models.known import BY_NAME, ENTRY_POINTS, EncoderInfo
from motet.models.known import list_encoders as list_encoders

_PLAIN = {
    "extra_forbidden": "there is no such option",
    "model_type": "write an encoder's name, or a mapping with name and options",
    "missing": "is missing; write an encoder's name",
}
_COMPLETE = ("value_error", "extra_forbidden", "missing")


@cache
def encoder_class(name: str) -> type[Encoder]:
    """The class of this name; raises ConfigError that lists the names there are."""
    if name not in BY_NAME:
        return _from_entry_points(name)
    module, _, attribute = BY_NAME[name].target.partition(":")
    cls: type[Encoder] = getattr(import_module(module), attribute)
    return cls


def described(entry: EntryPoint) -> EncoderInfo:
    """What the list shows of an installed package's encoder, which is loaded for it."""
    source = entry.dist.name if entry.dist else entry.module
    try:
        cls = _from_entry_points(entry.name)
    except ConfigError as error:
        return EncoderInfo(entry.name, "", str(error), source, entry.value)
    about = (inspect.getdoc(cls) or "").partition("\n")[0]
    return EncoderInfo(entry.name, cls.modality, about, source, entry.value)


def _from_entry_points(name: str) -> type[Encoder]:
    found = entry_points(group=ENTRY_POINTS)
    if name not in found.names:
        names = ", ".join(sorted({*BY_NAME, *found.names}))
        raise ConfigError(f"there is no encoder {name!r}; write one of {names}")
    entry = found[name]
    try:
        cls = entry.load()
    except Exception as error:
        raise ConfigError(f"encoder {name!r} ({entry.value}) cannot be loaded: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Encoder)):
        raise ConfigError(f"encoder {name!r} ({entry.value}) is not a subclass of motet's Encoder")
    return cls


@cache
def encoder_options(name: str) -> type[BaseModel]:
    """A pydantic model of an encoder's options (all but ``width``): types, bounds, defaults."""
    cls = encoder_class(name)
    hints = typing.get_type_hints(cls.__init__, include_extras=True)
    fields: dict[str, Any] = {}
    for option, parameter in inspect.signature(cls).parameters.items():
        if option != "width":
            empty = parameter.default is parameter.empty
            fields[option] = (hints.get(option, Any), ... if empty else parameter.default)
    config = ConfigDict(extra="forbid", frozen=True)
    return create_model(f"{cls.__name__}Options", __config__=config, **fields)


class EncoderSpec(BaseModel):
    """One encoder of a model: its ``name`` and, beside it, its options.

    A bare string stands for a name with all options at their defaults.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Any]

    name: str = Field(description="one of the registered encoders")

    @model_validator(mode="before")
    @classmethod
    def _check(cls, value: Any) -> Any:
        given = {"name": value} if isinstance(value, str) else value
        if not isinstance(given, dict) or not isinstance(given.get("name"), str):
            return given
        options = {option: given[option] for option in given if option != "name"}
        return {"name": given["name"], **_checked(given["name"], options)}

    def options(self) -> dict[str, Any]:
        """Every option with its value, defaults filled in."""
        checked = encoder_options(self.name).model_validate(self.__pydantic_extra__ or {})
        return {option: getattr(checked, option) for option in type(checked).model_fields}

    def __hash__(self) -> int:
        return hash((self.name, *sorted((self.__pydantic_extra__ or {}).items())))


def _checked(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The given options, converted to their types; raises ValueError that says what is allowed."""
    try:
        model = encoder_options(name)
        checked = model.model_validate(options)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    except ValidationError as error:
        known = ", ".join(model.model_fields) or "none"
        raise ValueError(f"{_explain(error)} (options of {name}: {known})") from None
    return {option: getattr(checked, option) for option in options}


class ModelSpec(BaseModel):
    """A whole model: modality -> encoder, all of one embedding size.

    Modalities other than image and text may be named too, where an encoder reads them.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, EncoderSpec]

    width: int = Field(64, ge=2, le=8192, description="embedding size d, the same for all sites")
    image: EncoderSpec | None = Field(None, description="encoder of the pictures")
    text: EncoderSpec | None = Field(None, description="encoder of the texts")

    @model_validator(mode="after")
    def _check(self) -> ModelSpec:
        if not self.encoders:
            raise ValueError("a model needs an encoder; write for instance image: hog-mlp")
        for modality, spec in self.encoders.items():
            reads = encoder_class(spec.name).modality
            if reads != modality:
                raise ValueError(f"{modality}: encoder {spec.name!r} reads {reads}; put it there")
        return self

    @property
    def encoders(self) -> dict[str, EncoderSpec]:
        """Modality -> encoder, for the modalities that the model has, sorted."""
        given = {"image": self.image, "text": self.text, **(self.__pydantic_extra__ or {})}
        return {name: spec for name, spec in sorted(given.items()) if spec is not None}

    def __hash__(self) -> int:
        return hash((self.width, *self.encoders.items()))


def parse_model(value: object, where: str = "model") -> ModelSpec:
    """A checked ModelSpec from plain values; raises ConfigError naming the field and the value."""
    try:
        return ModelSpec.model_validate(value)
    except ValidationError as error:
        raise ConfigError(_explain(error, where)) from None


def build_model(
    spec: ModelSpec,
    modalities: Sequence[str] | None,
    classes: int,
    generator: torch.Generator,
) -> MultimodalModel:
    """A model of these modalities (None: all of the spec) with weights from ``generator`` alone.

    The weights of one encoder do not depend on which others are built beside it. Takes one draw
    from the generator and leaves torch's own random state as it was. Raises ConfigError for a
    modality that the spec has no encoder for.
    """
    names = sorted(spec.encoders if modalities is None else modalities)
    missing = [name for name in names if name not in spec.encoders]
    if missing:
        has = ", ".join(spec.encoders)
        raise ConfigError(f"model: no encoder for {', '.join(missing)}; it has {has}")
    if not names:
        raise ConfigError("a model needs at least one modality")
    seed = int(torch.randint(2**62, (), generator=generator))
    encoders = {}
    for name in names:
        entry = spec.encoders[name]
        with seeded(seed, name):
            encoders[name] = encoder_class(entry.name)(width=spec.width, **entry.options())
    with seeded(seed, "head"):
        return MultimodalModel(encoders, classes)


def _explain(error: ValidationError, *where: str) -> str:
    """All complaints in one line: field, what is wrong, the value that was given."""
    lines = []
    for item in error.errors(include_url=False, include_context=False):
        field = ".".join([*where, *(str(part) for part in item["loc"])])
        message = _PLAIN.get(item["type"], item["msg"])
        given = f", not {item['input']!r}" if item["type"] not in _COMPLETE else ""
        lines.append(f"{field}: {message.removeprefix('Value error, ')}{given}")
    return "; ".join(lines)
