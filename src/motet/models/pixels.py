"""Plain picture encoders of the federated literature: a perceptron and a small CNN on pixels."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.batch import Column
from motet.core.errors import DataError
from motet.models.base import Encoder
from motet.models.options import Width
from motet.nn.layers import channels_last

Mean: TypeAlias = Annotated[float, Field(ge=0, le=1, description="mean of a pixel in 0..1")]
Spread: TypeAlias = Annotated[float, Field(gt=0, le=1, description="standard deviation of a pixel")]
Side: TypeAlias = Annotated[int, Field(ge=4, le=512, description="height and width in pixels")]
Channels: TypeAlias = Annotated[int, Field(ge=1, le=4, description="1 for grey, 3 for colour")]
Units: TypeAlias = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65536)], ...],
    Field(description="units of the hidden layers below the embedding"),
]
Maps: TypeAlias = Annotated[
    tuple[Annotated[int, Field(ge=1, le=4096)], ...],
    Field(min_length=1, description="feature maps of the convolutions, each halving the picture"),
]
Norm: TypeAlias = Annotated[
    Literal["none", "batch", "group", "instance"], Field(description="after each convolution")
]


class PixelEncoder(Encoder):
    """Common to both: pictures uint8 become standardised floats, resized where they must be."""

    modality = "image"

    def __init__(self, side: int, channels: int, mean: float, std: float) -> None:
        super().__init__()
        self.side = side
        self.channels = channels
        self.mean = mean
        self.std = std

    @property
    def key(self) -> str:
        """Size and standardisation."""
        return f"pixels {self.side} {self.channels} {self.mean} {self.std}"

    def prepare(self, column: Column) -> Tensor:
        """Pictures uint8 [n, channels, H, W] -> float32 [n, channels, side, side]."""
        if not isinstance(column, Tensor) or column.ndim != 4 or column.shape[1] != self.channels:
            shape = tuple(column.shape) if isinstance(column, Tensor) else "texts"
            raise DataError(
                f"the encoder reads pictures of {self.channels} channel(s), and the data have "
                f"{shape}; set the encoder's channels"
            )
        pixels = torch.div(column, 255)
        if pixels.shape[-2:] != (self.side, self.side):
            pixels = F.interpolate(pixels, (self.side, self.side), mode="area")
        # In place, since every site's rows come by, and new memory takes longer than the sums.
        return pixels.sub_(self.mean).div_(self.std)


class PixelMLP(PixelEncoder):
    """Fully connected layers with ReLU on the pixels, as in McMahan et al., AISTATS 2017.

    The embedding is the last hidden layer before its activation.
    """

    def __init__(
        self,
        width: Width = 64,
        hidden: Units = (),
        side: Side = 28,
        channels: Channels = 1,
        mean: Mean = 0.5,
        std: Spread = 0.5,
        bias: Annotated[bool, Field(description="whether layers have biases")] = True,
    ) -> None:
        super().__init__(side, channels, mean, std)
        self.width = width
        sizes = [channels * side * side, *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs, bias=bias), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], width, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [n, channels, side, side] -> embedding [n, width], not normalised."""
        embedding: Tensor = self.layers(x.flatten(1))
        return embedding


class CNN(PixelEncoder):
    """Convolutions, each with a norm, ReLU and pooling by 2, and one fully connected layer.

    The shape of LeNet (LeCun et al., Proc. IEEE 1998), as federated papers use it.
    """

    def __init__(
        self,
        width: Width = 64,
        maps: Maps = (8, 16),
        kernel: Annotated[int, Field(ge=1, le=11, description="odd size of a kernel")] = 5,
        norm: Norm = "none",
        side: Side = 28,
        channels: Channels = 1,
        mean: Mean = 0.5,
        std: Spread = 0.5,
        pool: Annotated[Literal["max", "mean"], Field(description="kind of pooling")] = "max",
    ) -> None:
        super().__init__(side, channels, mean, std)
        self.width = width
        layers: list[nn.Module] = []
        inputs = channels
        for outputs in maps:
            layers.append(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))
            # The largest of four is the same before ReLU as after it, and so is what its gradient
            # reaches; after the pooling a quarter is left to go through.
            rest = [nn.MaxPool2d(2), nn.ReLU()] if pool == "max" else [nn.ReLU(), nn.AvgPool2d(2)]
            layers += [*_norm(norm, outputs), *rest]
            inputs = outputs
        self.layers = nn.Sequential(*layers)
        # An instance norm goes through single channels, which are then best held together.
        self.cell_by_cell = norm != "instance"
        with torch.no_grad():
            units = self.layers.eval()(torch.zeros(1, channels, side, side)).numel()
        self.layers.train()
        self.out = nn.Linear(units, width)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [n, channels, side, side] -> embedding [n, width], not normalised."""
        # Opacus listens to convolutions, and takes for granted how their inputs lie in memory.
        heard = any(part._forward_hooks for part in self.layers)
        held = channels_last(x) if self.cell_by_cell and not heard else x
        embedding: Tensor = self.out(self.layers(held).flatten(1))
        return embedding


def _norm(name: str, channels: int) -> list[nn.Module]:
    if name == "batch":
        return [nn.BatchNorm2d(channels)]
    if name == "group":
        groups = 4 if channels % 4 == 0 else 1
        return [nn.GroupNorm(groups, channels)]
    if name == "instance":
        # Instance norm is group norm with a group per channel, and has no statistics to keep.
        return [nn.GroupNorm(channels, channels)]
    return []
