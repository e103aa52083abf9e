"""Networks without normalisation: standardised convolutions, and gradients clipped unit by unit.

Brock, De, Smith, "Characterizing Signal Propagation to Close the Performance Gap in Unnormalized
ResNets", ICLR 2021 (convolutions, residual branches); Brock, De, Smith, Simonyan,
"High-Performance Large-Scale Image Recognition Without Normalization", ICML 2021 (clipping).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.errors import ConfigError
from motet.core.groups import is_frozen
from motet.nn.layers import ResidualBlock

Activation: TypeAlias = Literal["identity", "relu", "gelu", "silu", "tanh"]
# 1 / standard deviation of the activation of a standard normal number.
GAMMA: dict[Activation, float] = {
    "identity": 1.0,
    "relu": math.sqrt(2 / (1 - 1 / math.pi)),
    "gelu": 1.7009262433633332,
    "silu": 1.7871872221004421,
    "tanh": 1.592537419722832,
}
NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
ATTENTION = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
CHANGED = (nn.Conv2d, ResidualBlock, *NORMS, *ATTENTION)
SMALLEST_VARIANCE = 1e-4
SMALLEST_NORM = 1e-3


def standardise(weight: Tensor, gamma: float = 1.0, gain: Tensor | None = None) -> Tensor:
    """Every output channel with mean 0 and L2 norm ``gamma`` (times its gain).

    weight: [out, in / groups, height, width], with N = in / groups * height * width numbers per
    row. gain: [out] or None. Returns gamma * gain * (W - mean) / sqrt(max(N * variance, 1e-4)),
    with the biased variance of the row. FedWon, section 3.2.
    """
    rows = weight.flatten(1)
    centred = rows - rows.mean(dim=1, keepdim=True)
    scale = gamma * centred.square().sum(dim=1, keepdim=True).clamp(min=SMALLEST_VARIANCE).rsqrt()
    if gain is not None:
        scale = scale * gain.unsqueeze(1)
    return (centred * scale).view_as(weight)


class WSConv2d(nn.Conv2d):
    """A convolution that standardises its raw weight at every forward pass.

    It takes over weight and settings of ``conv`` and always has a bias, from 0 where that one has
    none. gain: whether each output channel has a learnable factor, from 1. The weight that is
    trained, sent and averaged is the raw one.
    """

    def __init__(self, conv: nn.Conv2d, gamma: float = GAMMA["relu"], gain: bool = False) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        # Built without numbers and given those of the old one: no draw, and nothing in between.
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
        self.weight = nn.Parameter(conv.weight.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        self.gamma = gamma
        self.gain = nn.Parameter(conv.weight.new_ones(conv.out_channels)) if gain else None

    def standardised(self) -> Tensor:
        """The weight that the convolution uses: [out, in / groups, height, width]."""
        return standardise(self.weight, self.gamma, self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """[n, in, h, w] -> [n, out, h', w']."""
        return self._conv_forward(x, self.standardised(), self.bias)

    def folded(self) -> nn.Conv2d:
        """An ordinary convolution that gives the same."""
        with torch.no_grad():
            plain = copy.deepcopy(self)
            plain.weight.copy_(self.standardised())
        plain.__class__ = nn.Conv2d  # type: ignore[assignment]
        return plain


class NormFreeBlock(nn.Module):
    """A residual block without norms: relu(x + alpha * gain * f(x / beta)).

    beta: standard deviation that the branches before it add up to, known from the depth alone.
    The gain starts at 0 (SkipInit), so that a deep network starts as a shallow one. A block that
    changes the shape puts x / beta through its shortcut, which sets the variance back to 1.
    """

    def __init__(
        self, block: ResidualBlock, beta: float, *, gamma: float, gain: bool, alpha: float
    ) -> None:
        super().__init__()
        self.conv1 = WSConv2d(block.conv1, gamma, gain)
        self.conv2 = WSConv2d(block.conv2, gamma, gain)
        conv = block.shortcut[0] if isinstance(block.shortcut, nn.Sequential) else None
        self.shortcut = WSConv2d(conv, gamma, gain) if isinstance(conv, nn.Conv2d) else None
        self.branch = nn.Parameter(torch.zeros(()))
        self.beta = beta
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """Feature map [n, channels, h, w], not negative -> [n, out, h / stride, w / stride]."""
        scaled = x / self.beta
        past = x if self.shortcut is None else self.shortcut(scaled)
        y = self.conv2(F.relu(self.conv1(scaled)))
        return F.relu(past + self.alpha * self.branch * y)


def norm_free(
    model: nn.Module, *, activation: Activation = "relu", gain: bool = False, alpha: float = 0.2
) -> int:
    """Drops every norm of the model and standardises every convolution, in place.

    Frozen modules stay as they are. Raw weights are those that the model had, so that equal
    models stay equal. activation: what precedes the convolutions, for the factor gamma. gain:
    learnable factors per output channel. alpha: weight of a residual branch. Returns the number of
    convolutions; raises ConfigError for a layer that cannot do without its norms.
    """
    gamma = GAMMA[activation]
    variance = 1.0
    count = 0
    for parent, name, part in list(_parts(model)):
        new: nn.Module = nn.Identity()
        if isinstance(part, ATTENTION):
            raise ConfigError("an attention layer needs its norms; choose convolutional encoders")
        if isinstance(part, nn.Conv2d):
            new = WSConv2d(part, gamma, gain)
        elif isinstance(part, ResidualBlock):
            new = NormFreeBlock(part, math.sqrt(variance), gamma=gamma, gain=gain, alpha=alpha)
            variance = (variance if new.shortcut is None else 1.0) + alpha**2
        setattr(parent, name, new)
        count += sum(isinstance(found, WSConv2d) for found in new.modules())
    return count


def _parts(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, part) of all that changes, in order."""
    for name, part in module.named_children():
        if is_frozen(part) or isinstance(part, WSConv2d):
            continue
        if isinstance(part, CHANGED):
            yield module, name, part
        else:
            yield from _parts(part)


def folded(model: nn.Module) -> nn.Module:
    """A copy for inference: standardised convolutions become ordinary ones that give the same."""
    result = copy.deepcopy(model)
    for parent in list(result.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, WSConv2d):
                setattr(parent, name, part.folded())
    return result


def adaptive_clip(weight: Tensor, gradient: Tensor, limit: float) -> Tensor:
    """The gradient with every unit's part at most ``limit`` times as long as the unit's weights.

    weight, gradient: equal shapes; a unit is a row of the first dimension, and a vector (a bias,
    a gain) is one unit. A unit shorter than 1e-3 counts as that long. Brock et al., ICML 2021.
    """
    if weight.ndim < 2:
        rows, slopes = weight.reshape(1, -1), gradient.reshape(1, -1)
    else:
        rows, slopes = weight.flatten(1), gradient.flatten(1)
    longest = limit * rows.norm(dim=1, keepdim=True).clamp(min=SMALLEST_NORM)
    length = slopes.norm(dim=1, keepdim=True)
    factor = torch.where(length > longest, longest / length, 1.0)
    return (slopes * factor).view_as(gradient)


def clip_units(model: nn.Module, limit: float, spared: Collection[str] = ()) -> None:
    """Clips the gradients of the model's parameters, but for the ``spared`` names, in place."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.grad is not None and name not in spared:
                value.grad.copy_(adaptive_clip(value, value.grad, limit))
