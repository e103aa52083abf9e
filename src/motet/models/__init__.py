"""Encoders of each modality, and models put together from them."""

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
