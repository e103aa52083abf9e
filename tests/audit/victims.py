"""Small models and pictures that the tests of attacks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from motet.audit.generators import Generator, GeneratorSpec, untrained_generator
from motet.audit.upload import Upload, upload_of
from motet.core.batch import Batch, Output
from motet.core.rng import seeded


class Net(nn.Module):
    """Class scores of pictures by these layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, batch: Batch) -> Output:
        return Output(self.layers(batch.inputs["image"]))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def convolutions(side: int = 8, classes: int = 4, bias: bool = True) -> Net:
    with seeded(0, "convolutions"):
        return Net(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * (side // 2) ** 2, classes, bias=bias),
        )


def smooth(side: int = 8, classes: int = 4) -> Net:
    """A net with sigmoids and large weights, as in the demonstration of DLG."""
    with seeded(0, "smooth"):
        net = Net(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.Sigmoid(),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(6 * side**2, classes),
        )
        for value in net.parameters():
            nn.init.uniform_(value, -0.5, 0.5)
        return net


def perceptron(side: int = 8, classes: int = 4) -> Net:
    with seeded(0, "perceptron"):
        return Net(
            nn.Flatten(), nn.Linear(side**2, 12), nn.ReLU(), nn.Linear(12, classes)
        )  # fmt: skip


def pictures(count: int = 1, side: int = 8, seed: int = 0) -> Tensor:
    """Smooth blobs in 0..1: [count, 1, side, side]."""
    places = torch.linspace(0, 1, side)
    centre = 0.2 + 0.6 * torch.rand((count, 2), generator=rng(seed))
    across = (places[None, :] - centre[:, :1]).square()
    down = (places[None, :] - centre[:, 1:]).square()
    return torch.exp(-8 * (down[:, :, None] + across[:, None, :])).unsqueeze(1)


def contrasted(radii: tuple[float, ...] = (200.0, 1000.0)) -> Generator:
    """A generator of random weights whose pictures of 8 x 8 are not all grey."""
    made = untrained_generator(GeneratorSpec(side=8, latent=6, maps=(8, 8, 8), radii=radii), 0)
    for name, value in made.named_parameters():
        if name.endswith("weight"):
            value.mul_(3)
    return made


def upload(model: Net | None = None, count: int = 1, label: int = 2, side: int = 8) -> Upload:
    labels = (torch.arange(count) + label) % 4
    return upload_of(model or convolutions(side), pictures(count, side), labels)
