"""A small generator of pictures, trained on public ones, that an attacker searches in."""

from __future__ import annotations

import json
import math
from hashlib import blake2b
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core.errors import ConfigError
from motet.core.rng import generator, seeded
from motet.core.store import write_atomic
from motet.models.pretrained import cache_folder


class GeneratorSpec(BaseModel):
    """A decoder of a variational autoencoder for small pictures, and how it is trained.

    z [latent] -> linear to [maps[0], s, s] | twice as large, convolution to maps[1] | again, to
    maps[2] | convolution to the picture, sigmoid; s is a quarter of the side, rounded up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: int = Field(16, ge=4, le=128, description="height and width of a picture in pixels")
    channels: int = Field(1, ge=1, le=4, description="1 for grey, 3 for colour")
    latent: int = Field(16, ge=1, le=1024, description="numbers in the latent code")
    maps: tuple[int, int, int] = Field((64, 32, 16), description="feature maps of the blocks")
    epochs: int = Field(40, ge=1, le=10_000, description="passes over the public pictures")
    batch: int = Field(64, ge=1, description="pictures per step")
    lr: float = Field(2e-3, gt=0, description="learning rate of Adam")
    radii: tuple[float, ...] = Field(
        (200.0, 1000.0), description="l1 radius of the search at each feature stage"
    )


class Generator(nn.Module):
    """Blocks G_1 ... G_4; a picture is their composition, and may be searched before each.

    Stage 0 is the latent code, stage k > 0 what block k gives. ``radii[k - 1]`` bounds the search
    at stage k; there are 1 + len(radii) stages.
    """

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        if len(spec.radii) > len(spec.maps):
            raise ConfigError(
                f"generator.radii has {len(spec.radii)} entries; the generator has "
                f"{len(spec.maps)} feature stages"
            )
        first, second, third = spec.maps
        side = math.ceil(spec.side / 4)
        self.latent = spec.latent
        self.radii = spec.radii
        self.side = spec.side
        self.channels = spec.channels
        self.blocks = nn.Sequential(
            nn.Sequential(
                nn.Linear(spec.latent, first * side * side),
                nn.Unflatten(1, (first, side, side)),
                nn.ReLU(),
            ),
            _enlarge(first, second),
            _enlarge(second, third),
            nn.Sequential(nn.Conv2d(third, spec.channels, 3, padding=1), nn.Sigmoid()),
        )

    @property
    def stages(self) -> int:
        """How many stages can be searched."""
        return 1 + len(self.radii)

    def advance(self, value: Tensor, stage: int) -> Tensor:
        """What this stage's value is at the next stage: through one block."""
        out: Tensor = self.blocks[stage](value)
        return out

    def picture(self, value: Tensor, stage: int = 0) -> Tensor:
        """Pictures [n, channels, side, side] in 0..1 of values at this stage."""
        for block in list(self.blocks)[stage:]:
            value = block(value)
        if value.shape[-1] != self.side:
            value = F.interpolate(value, (self.side, self.side), mode="area")
        return value

    def forward(self, z: Tensor) -> Tensor:
        """Latent codes [n, latent] -> pictures [n, channels, side, side] in 0..1."""
        return self.picture(z)


class _Encoder(nn.Module):
    """Pictures -> means and log variances of their latent codes, each [n, latent]."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        first, second, third = spec.maps
        side = math.ceil(math.ceil(spec.side / 2) / 2)
        self.layers = nn.Sequential(
            nn.Conv2d(spec.channels, third, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(third, second, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(second, first, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(first * side * side, 2 * spec.latent),
        )

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.layers(pictures).chunk(2, dim=1)
        return mean, log_var


def untrained_generator(spec: GeneratorSpec, seed: int) -> Generator:
    """A generator of random weights, which knows nothing of pictures; frozen."""
    with seeded(seed, "generator"):
        return _frozen(Generator(spec))


def trained_generator(pictures: Tensor, spec: GeneratorSpec, seed: int) -> Generator:
    """The generator trained on these public pictures [n, channels, side, side] in 0..1; frozen.

    It is made once for the same pictures, settings and seed, and kept in the user's cache folder
    (MOTET_CACHE names another); a damaged file is made again. Raises ConfigError for pictures of
    another size.
    """
    wanted = (spec.channels, spec.side, spec.side)
    if tuple(pictures.shape[1:]) != wanted or not len(pictures):
        raise ConfigError(
            f"the generator is of pictures {wanted}, and the public ones are "
            f"{tuple(pictures.shape)}; set generator.side and generator.channels"
        )
    path = cache_folder() / "generators" / f"{_digest(pictures, spec, seed)}.safetensors"
    made = untrained_generator(spec, seed)
    try:
        made.load_state_dict(load(path.read_bytes()))
    except (OSError, SafetensorError, RuntimeError):
        train_generator(made, pictures, spec, seed)
        write_atomic(path, save(made.state_dict()))
    return _frozen(made)


def train_generator(made: Generator, pictures: Tensor, spec: GeneratorSpec, seed: int) -> float:
    """Trains a generator as the decoder of a VAE, in place; the last epoch's loss per picture.

    Bernoulli reconstruction plus Kullback-Leibler divergence, summed over pixels and codes.
    Kingma and Welling, ICLR 2014.
    """
    with seeded(seed, "generator's encoder"):
        encoder = _Encoder(spec)
    made.requires_grad_(True)
    both = [*made.parameters(), *encoder.parameters()]
    adam = torch.optim.Adam(both, lr=spec.lr)
    rng = generator(seed, "generator's batches")
    total = 0.0
    for _ in range(spec.epochs):
        total = 0.0
        for rows in torch.randperm(len(pictures), generator=rng).split(spec.batch):
            loss = _loss(made, encoder, pictures[rows], rng)
            adam.zero_grad()
            (loss / len(rows)).backward()
            adam.step()
            total += float(loss.detach())
    return total / len(pictures)


def _loss(made: Generator, encoder: _Encoder, x: Tensor, rng: torch.Generator) -> Tensor:
    mean, log_var = encoder(x)
    z = mean + (log_var / 2).exp() * torch.randn(mean.shape, generator=rng)
    apart = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()
    loss: Tensor = F.binary_cross_entropy(made(z), x, reduction="sum") + apart
    return loss


def _enlarge(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(),
    )


def _frozen(made: Generator) -> Generator:
    made.requires_grad_(False)
    return made.eval()


def _digest(pictures: Tensor, spec: GeneratorSpec, seed: int) -> str:
    # Radii say how it is searched, not what it is.
    settings: dict[str, Any] = spec.model_dump(mode="json", exclude={"radii"})
    text = json.dumps([settings, seed, list(pictures.shape)], sort_keys=True)
    content = pictures.contiguous().float().numpy(force=True).tobytes()
    return blake2b(text.encode() + content, digest_size=12).hexdigest()
