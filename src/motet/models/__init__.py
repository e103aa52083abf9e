"""Encoders of each modality, and models put together from them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from motet.models.base import Encoder, MultimodalModel
    from motet.models.known import EncoderInfo
    from motet.models.registry import (
        EncoderSpec,
        ModelSpec,
        build_model,
        encoder_class,
        encoder_options,
        list_encoders,
        parse_model,
    )

_MODULES = {
    "base": ("Encoder", "MultimodalModel"),
    "known": ("EncoderInfo",),
    "registry": (
        "EncoderSpec",
        "ModelSpec",
        "build_model",
        "encoder_class",
        "encoder_options",
        "list_encoders",
        "parse_model",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Encoder",
    "EncoderInfo",
    "EncoderSpec",
    "ModelSpec",
    "MultimodalModel",
    "build_model",
    "encoder_class",
    "encoder_options",
    "list_encoders",
    "parse_model",
]


def __getattr__(name: str) -> object:
    # The list of encoders alone must not cost an import of torch: the command line shows it.
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
