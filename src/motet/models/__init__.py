"""Encoders of each modality, and models put together from them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from motet.models.base import Encoder, MultimodalModel
    from motet.models.registry import (
        EncoderInfo,
        EncoderSpec,
        ModelSpec,
        build_model,
        encoder_class,
        encoder_options,
        list_encoders,
        parse_model,
    )

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

_FROM_BASE = ("Encoder", "MultimodalModel")


def __getattr__(name: str) -> object:
    # The registry alone must not cost an import of torch: the command line lists encoders.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "base" if name in _FROM_BASE else "registry"
    return getattr(import_module(f"{__name__}.{module}"), name)
