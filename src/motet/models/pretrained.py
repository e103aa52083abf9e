"""Weights for a vision transformer that has seen pictures before: made on the spot, then kept.

Published weights fit published sizes. For a small one, this pre-trains on Fashion-MNIST with its
labels, once per machine and settings; ``OFFSET`` says from where on its pictures are still unseen.
"""

from __future__ import annotations

import json
import math
import os
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.errors import ConfigError, DataError
from motet.core.optim import Adam, Optimizer
from motet.core.rng import generator, seeded
from motet.core.store import write_atomic
from motet.data.vision import load_fashion

Kind: TypeAlias = Literal["plain", "augmented"]
KINDS: tuple[Kind, ...] = ("plain", "augmented")
OFFSET = 20_000
TRAINING: dict[str, Any] = {"epochs": 5, "batch": 128, "lr": 1e-3}


def take_weights(vit: nn.Module, source: str, settings: dict[str, Any]) -> None:
    """Loads what ``source`` names into a vision transformer, in place.

    source: "plain" or "augmented" for a pre-training of Motet's own, else the path of a safetensors
    file of the transformer's weights. settings: the encoder's options, with which it was built.
    Raises ConfigError for a file that is missing, damaged or of another size.
    """
    if source in KINDS:
        weights = pretrained_weights(source, json.dumps(settings, sort_keys=True))
    else:
        weights = _read(Path(source).expanduser())
    wanted = {name: tuple(value.shape) for name, value in vit.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    if wanted != given:
        differ = sorted({name for name, _ in wanted.items() ^ given.items()})
        raise ConfigError(
            f"encoder vit: the weights of {source!r} do not fit this size; "
            f"{len(differ)} differ, such as {', '.join(differ[:3])}"
        )
    vit.load_state_dict(weights)


def cache_folder() -> Path:
    """The user's cache folder for Motet; MOTET_CACHE names another."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("MOTET_CACHE") or Path(base) / "motet").expanduser()


@lru_cache(maxsize=4)
def pretrained_weights(kind: Kind, settings: str) -> dict[str, Tensor]:
    """The weights of a pre-trained ViT of these settings (JSON of the encoder's options).

    They come from the cache where they are there; a damaged file is made again.
    """
    made_of = json.dumps([kind, json.loads(settings), OFFSET, TRAINING], sort_keys=True)
    name = f"vit-{kind}-{blake2b(made_of.encode(), digest_size=8).hexdigest()}.safetensors"
    path = cache_folder() / "pretrained" / name
    if path.exists():
        try:
            return _read(path)
        except ConfigError:
            path.unlink(missing_ok=True)
    weights = _make(kind, json.loads(settings))
    write_atomic(path, save(weights))
    return weights


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"encoder vit: pretrained weights {path} cannot be read: {error}; write plain, "
            "augmented or the path of a safetensors file"
        ) from None


def _make(kind: Kind, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Pre-trains a ViT of these settings; nothing but the settings decides how."""
    # The encoder's own module needs this one.
    from motet.models.vit import ViT

    if settings["channels"] != 1:
        raise ConfigError(
            f"encoder vit: pretrained {kind} has seen grey pictures; set channels: 1, or name a "
            "file of weights"
        )
    try:
        rows = load_fashion(limit=OFFSET)
    except DataError as error:
        raise ConfigError(f"encoder vit, pretrained {kind}: {error}") from None
    assert rows.labels is not None
    with seeded(0, "pretrained", kind):
        encoder = ViT(**settings)
        pixels = encoder.prepare(rows.columns["image"])
        pretrain(encoder, pixels, rows.labels, augment=kind == "augmented", **TRAINING)
    return {name: value.detach().clone() for name, value in encoder.vit.state_dict().items()}


def pretrain(
    encoder: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    *,
    augment: bool,
    epochs: int,
    batch: int,
    lr: float,
) -> float:
    """Supervised training in place, by Adam with a cosine; returns the last epoch's mean loss.

    pixels: float [n, channels, side, side]. labels: int64 [n]. augment: every picture is turned
    and inverted at random, see ``varied``. The head, a linear layer on the GELU of the embedding
    as in every model here, is thrown away.
    """
    width = encoder(pixels[:1]).shape[1]
    model = nn.Sequential(encoder, nn.GELU(), nn.Linear(width, int(labels.max()) + 1))
    optimizer = Optimizer(model, Adam(lr), clip=1.0)
    rng = generator(0, "pretraining")
    model.train()
    steps = math.ceil(len(labels) / batch)
    total = 0.0
    for epoch in range(epochs):
        total = 0.0
        order = torch.randperm(len(labels), generator=rng)
        for number, rows in enumerate(torch.split(order, batch)):
            done = (epoch + number / steps) / epochs
            optimizer.set_lr(lr * (1 + math.cos(math.pi * done)) / 2)
            seen = varied(pixels[rows], rng) if augment else pixels[rows]
            loss = F.cross_entropy(model(seen), labels[rows])
            optimizer.step(loss)
            total += float(loss.detach())
    return total / steps


def varied(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Each picture turned by a random number of quarter turns, and inverted or not: same shape.

    pixels: float [n, channels, side, side] with 0 as its middle grey, so that inverting is -x.
    """
    turns = torch.randint(4, (len(pixels),), generator=rng)
    signs = 1.0 - 2.0 * torch.randint(2, (len(pixels), 1, 1, 1), generator=rng)
    turned = torch.stack([torch.rot90(pixels, k, (2, 3)) for k in range(4)])
    return turned[turns, torch.arange(len(pixels))] * signs
