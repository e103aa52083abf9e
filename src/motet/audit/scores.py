"""How close reconstructed pictures are to the true ones, and how close chance comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from motet.core.errors import ConfigError

MOST_DB = 100.0
WINDOW = 11
SIGMA = 1.5


@dataclass(frozen=True)
class Chance:
    """PSNR in dB, mean over pictures, of guesses that need no upload.

    mean: of the mean public picture. nearest: of the public picture that happens to be nearest,
    which takes the truth to find, so that no guess among them does better.
    """

    mean: float
    nearest: float


def psnr(pictures: Tensor, truth: Tensor) -> Tensor:
    """10 log10(1 / MSE) in dB per picture, at most 100: [n, C, H, W] in 0..1 twice -> [n]."""
    error = (pictures - truth).square().flatten(1).mean(dim=1)
    return (-10 * error.log10()).clamp(max=MOST_DB)


def ssim_window(height: int, width: int) -> int:
    """The side of SSIM's window: 11, or the largest odd number that fits into a smaller picture."""
    side = min(height, width, WINDOW)
    return side if side % 2 else side - 1


def ssim(pictures: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity per picture: [n, C, H, W] in 0..1 twice -> [n], 1 for equal ones.

    Gaussian window of 11 x 11 (``ssim_window`` for smaller pictures), sigma 1.5, C1 = 0.01^2 and
    C2 = 0.03^2, over all places where the window fits, mean over channels. Wang et al., IEEE
    Transactions on Image Processing 2004.
    """
    n, channels, height, width = pictures.shape
    window = _gaussian(ssim_window(height, width)).to(pictures)

    def blurred(values: Tensor) -> Tensor:
        return F.conv2d(values.reshape(n * channels, 1, height, width), window)

    mean_a, mean_b = blurred(pictures), blurred(truth)
    var_a = blurred(pictures.square()) - mean_a.square()
    var_b = blurred(truth.square()) - mean_b.square()
    both = blurred(pictures * truth) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    bottom = (mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2)
    return (top / bottom).reshape(n, -1).mean(dim=1)


def feature_mse(encode: Callable[[Tensor], Tensor], pictures: Tensor, truth: Tensor) -> Tensor:
    """FMSE: mean squared error between an encoder's features [n, d] of both, per picture: [n].

    It stands where LPIPS would need published weights, and is never to be called LPIPS.
    """
    with torch.no_grad():
        return (encode(pictures) - encode(truth)).square().flatten(1).mean(dim=1)


def matched(pictures: Tensor, truth: Tensor) -> Tensor:
    """Which reconstruction belongs to each true picture: int64 [n], least total squared error.

    ``pictures[matched(pictures, truth)]`` is in the truth's order. Hungarian method, of scipy;
    raises ConfigError for several pictures where scipy is missing.
    """
    if len(pictures) == 1:
        return torch.zeros(1, dtype=torch.int64)
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ConfigError(
            "matching several reconstructions needs scipy: pip install 'motet[vision]'"
        ) from None
    gaps = torch.cdist(truth.flatten(1).double(), pictures.flatten(1).double()).square()
    _, order = linear_sum_assignment(gaps.numpy(force=True))
    return torch.from_numpy(order)


def label_recovery(found: Tensor, truth: Tensor) -> float:
    """Share of the true labels [n] that are among those found, in any order, as often as found."""
    common = Counter(found.tolist()) & Counter(truth.tolist())
    return common.total() / len(truth)


def chance(truth: Tensor, public: Tensor) -> Chance:
    """How well one does without an upload: [n, C, H, W] and public pictures [m, C, H, W]."""
    mean = public.mean(dim=0, keepdim=True).expand_as(truth)
    gaps = torch.cdist(truth.flatten(1), public.flatten(1))
    nearest = public[gaps.argmin(dim=1)]
    return Chance(float(psnr(mean, truth).mean()), float(psnr(nearest, truth).mean()))


def _gaussian(side: int) -> Tensor:
    """The window [1, 1, side, side], which sums to 1."""
    at = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    line = torch.exp(-at.square() / (2 * SIGMA**2))
    plane = line[:, None] * line[None, :]
    return (plane / plane.sum())[None, None]
