"""Small residual networks with GroupNorm, for pictures of 32 to 64 pixels.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; GroupNorm in place of
batch norm after Hsieh et al., "The Non-IID Data Quagmire of Decentralized Machine Learning",
ICML 2020.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.batch import Column
from motet.models.base import Encoder
from motet.models.columns import pictures_of
from motet.models.options import Augment, Pie, Width
from motet.models.pictures import augment, resize, to_unit
from motet.nn.layers import PIE, ReLU, ResidualBlock, group_norm

BLOCKS = {8: (1, 1, 1), 14: (2, 2, 2), 18: (2, 2, 2, 2), 20: (3, 3, 3)}


class ResNetGN(Encoder):
    """Pictures through a residual network: 3x3 stem, stages of doubling channels, pooling, Linear.

    Depths 8, 14 and 20 have three stages (the CIFAR family), 18 has four (the ImageNet one; with
    64 channels it is ResNet-18 but for its stem). Pictures above 48 px meet a stride of 2 in the
    stem, so that all sizes cost about the same.
    """

    modality = "image"

    def __init__(
        self,
        width: Width = 64,
        depth: Annotated[Literal[8, 14, 18, 20], Field(description="layers with weights")] = 8,
        channels: Annotated[
            int, Field(ge=8, le=256, multiple_of=8, description="channels of the first stage")
        ] = 16,
        size: Annotated[int, Field(ge=16, le=256, description="side of a picture in px")] = 32,
        pie: Pie = False,
        augment: Augment = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.size = size
        self.augment = augment
        stride = 2 if size > 48 else 1
        stem = nn.Conv2d(3, channels, 3, stride, padding=1, bias=False)
        stages: list[nn.Module] = [stem, group_norm(channels), ReLU()]
        last = channels
        for stage, count in enumerate(BLOCKS[depth]):
            for block in range(count):
                out = channels * 2**stage
                stages.append(ResidualBlock(last, out, 2 if stage and not block else 1))
                last = out
        self.trunk = nn.Sequential(*stages)
        self.project = nn.Linear(last, width)
        self.pie = PIE(last, width) if pie else None

    @property
    def key(self) -> str:
        """Names the preparation: encoders of the same picture size prepare alike."""
        return f"pixels-{self.size}"

    def prepare(self, column: Column) -> Tensor:
        """Pictures uint8 [n, 3, H, W] -> uint8 [n, 3, size, size]."""
        return resize(pictures_of(column), self.size)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures uint8 [n, 3, size, size] -> embedding [n, width], not normalised."""
        pictures = to_unit(x)
        if self.augment and self.training:
            pictures = augment(pictures)
        cells = self.trunk(pictures)
        whole: Tensor = self.project(F.adaptive_avg_pool2d(cells, 1).flatten(1))
        if self.pie is not None:
            whole = self.pie(whole, cells.flatten(2).transpose(1, 2))
        return whole
