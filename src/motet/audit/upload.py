"""What an attacker holds of one site: the gradient that it sent, and the model it belongs to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from motet.core.batch import Batch
from motet.core.errors import ConfigError, DataError
from motet.models.base import MultimodalModel
from motet.models.pixels import PixelEncoder
from motet.models.random_features import RandomFeatures
from motet.models.resnet import ResNetGN

DefenceName: TypeAlias = Literal["noise", "clipping", "sparsification", "soteria"]


@dataclass(frozen=True)
class Defence:
    """What an attacker knows of a defence: its kind and strength, never the noise that was drawn.

    amount: of noise the standard deviation relative to ||g|| / sqrt(d), of clipping the bound, of
    sparsification and Soteria the percentile in 0..100. before: what was done ahead of it. only:
    the one tensor that it changed; "" for all.
    """

    name: DefenceName
    amount: float
    text: str
    before: Defence | None = None
    only: str = ""


@dataclass(frozen=True)
class Local:
    """Several steps of plain SGD at the site; step i is on the i-th ``batch`` rows, in turn.

    lr: learning rate. steps: local steps. batch: rows per step.
    """

    lr: float
    steps: int
    batch: int


@dataclass(frozen=True, eq=False)
class Upload:
    """A gradient as it arrived, and what else whoever runs the hub knows.

    gradients: parameter name -> gradient of the mean cross-entropy. model: the global model with
    the weights that the site was sent; called with a Batch of "image" it gives ``.logits``. batch:
    number of pictures. image: (C, H, W). classes: number of classes. defence: how the gradient was
    protected. mean, std: the model reads (pixels in 0..1 - mean) / std. local: where the gradient
    is the mean of several steps, how these were taken; None for a single one.
    """

    gradients: Mapping[str, Tensor]
    model: nn.Module
    batch: int
    image: tuple[int, int, int]
    classes: int
    defence: Defence | None = None
    mean: float = 0.0
    std: float = 1.0
    local: Local | None = None

    def __post_init__(self) -> None:
        known = dict(self.model.named_parameters())
        for name, value in self.gradients.items():
            if name not in known or known[name].shape != value.shape:
                raise DataError(
                    f"the upload's gradient {name!r} of shape {tuple(value.shape)} is of no "
                    "parameter of this model; hand over the model that the site was sent"
                )
        if not self.gradients or self.batch < 1:
            raise DataError("an upload holds at least one gradient, of at least one picture")


def scale_of(model: nn.Module) -> tuple[float, float, int, int]:
    """(mean, std, channels, side) of the pictures that a model of Motet's reads.

    Raises ConfigError where there is no gradient down to the pixels: a model without a class head
    or pictures, one that reads other modalities as well, one over frozen features.
    """
    if not isinstance(model, MultimodalModel) or model.head is None:
        raise ConfigError("gradients are inverted of a model with a class head: classify: true")
    encoders = dict(model.encoders.items())
    encoder = encoders.get("image")
    if len(encoders) == 1 and isinstance(encoder, ResNetGN):
        return 0.0, 1 / 255, 3, encoder.size
    pixels = isinstance(encoder, PixelEncoder) and not isinstance(encoder, RandomFeatures)
    if len(encoders) == 1 and pixels:
        assert isinstance(encoder, PixelEncoder)
        return encoder.mean, encoder.std, encoder.channels, encoder.side
    named = ", ".join(type(found).__name__ for found in encoders.values())
    raise ConfigError(
        f"no gradient reaches the pixels of pictures alone through {named}; audit a population "
        "whose one encoder is mlp, cnn, resnet-gn or vit"
    )


def logits_of(model: nn.Module, pixels: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Class scores [n, classes] of pictures [n, C, H, W] in 0..1, differentiable in the pixels."""
    return _logits(model(_batch(pixels, mean, std)))


def gradients_of(
    model: nn.Module,
    pixels: Tensor,
    targets: Tensor,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    names: tuple[str, ...] | None = None,
    local: Local | None = None,
    graph: bool = False,
) -> dict[str, Tensor]:
    """What a site with these pictures sends: parameter name -> gradient of the mean cross-entropy.

    pixels: [n, C, H, W] in 0..1. targets: classes int64 [n], or their probabilities [n, classes].
    names: of these parameters; None for all that are trained. local: the steps whose update,
    divided by -lr * steps, is returned in place of one gradient. graph: whether the result can be
    differentiated in pixels and targets. The model is used in the mode that it is in.
    """
    every = {name: value for name, value in model.named_parameters() if value.requires_grad}
    chosen = {name: every[name] for name in names or tuple(every)}
    if local is None:
        loss = F.cross_entropy(logits_of(model, pixels, mean, std), targets)
        return _slopes(loss, chosen, graph)
    moved: dict[str, Tensor] = dict(chosen)
    for step in range(local.steps):
        rows = _rows_of(step, local.batch, len(pixels))
        batch = _batch(pixels[rows], mean, std)
        loss = F.cross_entropy(_logits(functional_call(model, moved, (batch,))), targets[rows])
        slopes = _slopes(loss, moved, graph)
        moved = {name: moved[name] - local.lr * slopes[name] for name in moved}
        if not graph:
            moved = {name: value.detach().requires_grad_() for name, value in moved.items()}
    made = gradients_of_update(chosen, moved, local.lr, local.steps)
    return made if graph else {name: value.detach() for name, value in made.items()}


def gradients_of_update(
    sent: Mapping[str, Tensor], reply: Mapping[str, Tensor], lr: float, steps: int
) -> dict[str, Tensor]:
    """The mean gradient behind an update of weights: (sent - reply) / (lr * steps), by name.

    sent, reply: weights by name. Of one step of plain SGD this is its gradient; of several it is
    what ``Local`` says how to imitate. Names that only one of them has, and integers, are left out.
    """
    if lr <= 0 or steps < 1:
        raise DataError(f"an update is of a positive learning rate and steps, not {lr} and {steps}")
    return {
        name: (value - reply[name]) / (lr * steps)
        for name, value in sent.items()
        if name in reply and value.is_floating_point()
    }


def upload_of(
    model: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    local: Local | None = None,
) -> Upload:
    """What arrives from an unprotected site with these pictures [n, C, H, W] and labels [n].

    The model is in eval mode while the gradient is taken, and as it was afterwards.
    """
    frozen = copy.deepcopy(model).eval()
    with torch.no_grad():
        classes = logits_of(frozen, pixels[:1], mean, std).shape[1]
    gradients = gradients_of(frozen, pixels, labels, mean=mean, std=std, local=local)
    channels, height, width = pixels.shape[1:]
    image = (channels, height, width)
    return Upload(gradients, frozen, len(pixels), image, classes, None, mean, std, local)


def last_layer(upload: Upload) -> tuple[str, str | None]:
    """Names of the weight and the bias (None without one) of the layer that gives the scores.

    Raises DataError when no gradient is of a linear layer with a row per class.
    """
    weights = [
        name
        for name, value in upload.gradients.items()
        if value.ndim == 2 and len(value) == upload.classes
    ]
    if not weights:
        raise DataError("the upload holds no gradient of a last linear layer with a row per class")
    bias = f"{weights[-1].removesuffix('weight')}bias"
    return weights[-1], bias if bias in upload.gradients else None


def _batch(pixels: Tensor, mean: float, std: float) -> Batch:
    there = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
    rows = torch.arange(len(pixels), device=pixels.device)
    return Batch({"image": (pixels - mean) / std}, {"image": there}, None, rows)


def _logits(output: object) -> Tensor:
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise ConfigError("gradients are inverted of a model with a class head: classify: true")
    return logits


def _slopes(loss: Tensor, by: Mapping[str, Tensor], graph: bool) -> dict[str, Tensor]:
    # A parameter that no picture reaches has gradient 0, as it would have in an optimiser.
    slopes = torch.autograd.grad(
        loss, list(by.values()), create_graph=graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(by, slopes, strict=True))


def _rows_of(step: int, batch: int, count: int) -> slice:
    turns = max(count // batch, 1)
    start = (step % turns) * batch
    return slice(start, start + batch)
