"""The works that all contenders do: sizes, and the models in plain PyTorch. Torch alone is needed.

A work's rows, initial weights, cohorts and batches are in its plan (``plan.py``), which all
contenders read, so that all take the same steps on the same data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS_OF_LOSS = 1000
CLASSES = 10


@dataclass(frozen=True)
class Work:
    """One work: ``cohort`` of ``sites`` take ``steps`` of ``batch`` rows in every round.

    encoder: Motet's name and options of the encoder, which ``network`` rebuilds in plain PyTorch.
    rounds: how many are played. The first warms up and the last is profiled; neither is counted.
    """

    name: str
    title: str
    sites: int
    cohort: int
    rows: int
    steps: int
    batch: int
    lr: float
    width: int
    encoder: dict[str, Any]
    modality: str = "image"
    shape: tuple[int, ...] = (1, 28, 28)
    public: int = 0
    rounds: int = 9


def _mlp(cohort: int, rounds: int = 9) -> Work:
    name = "mlp" if cohort == 100 else f"mlp-{cohort}"
    title = f"MLP 784-64-10, {cohort:,} of 1,000 sites, 5 steps of batch 10"
    encoder = {"name": "pixel-mlp"}
    return Work(name, title, 1000, cohort, 50, 5, 10, 0.1, 64, encoder, rounds=rounds)


WORKS = {
    work.name: work
    for work in (
        _mlp(100),
        _mlp(1),
        _mlp(10),
        _mlp(1000, rounds=7),
        Work(
            "cnn",
            "CNN 32-64 on 28 x 28, 10 of 100 sites, 10 steps of batch 20",
            *(100, 10, 100, 10, 20, 0.1, 128),
            {"name": "cnn", "maps": [32, 64]},
        ),
        Work(
            "resnet",
            "ResNet-8 with GroupNorm on 32 x 32, 10 sites, 5 steps of batch 20",
            *(10, 10, 100, 5, 20, 0.05, 64),
            {"name": "resnet-gn"},
            shape=(3, 32, 32),
        ),
        Work(
            "transformer",
            "Text transformer of 2 layers and 128 units, 10 sites, 5 steps of batch 20",
            *(10, 10, 100, 5, 20, 0.05, 64),
            {"name": "transformer", "dim": 128},
            modality="text",
            public=50,
        ),
    )
}


def work_named(name: str, quick: bool = False) -> Work:
    """A work; ``quick`` makes it so small that it shows no more than that all is well."""
    work = WORKS[name]
    if not quick:
        return work
    cohort = min(work.cohort, 3)
    title = f"{work.title.partition(',')[0]}, {cohort} sites, 2 steps of batch 5"
    return replace(
        work, title=title, sites=cohort + 1, cohort=cohort, rows=20, steps=2, batch=5, rounds=4
    )


class Plan:
    """What every contender reads: rows ready for the model, labels, first weights, batches.

    x: [n, ...]; y: int64 [n]; order: int64 [rounds, cohort, steps, batch], positions in x and y.
    """

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "plan.npz") as file:
            self.order = torch.from_numpy(file["order"])
            self.y = torch.from_numpy(file["y"])
        x = torch.from_numpy(np.load(folder / "x.npy"))
        # Pictures in bytes are made ready here once: no contender but Motet does so step by step.
        self.x = x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x
        self.weights = load_weights(folder / "first.npz")

    def rows(self, number: int, member: int) -> Tensor:
        """Positions of one member's rows in the order in which a round takes them."""
        return self.order[number, member].flatten()


def load_weights(path: Path) -> dict[str, Tensor]:
    """Name -> weights of the plain network."""
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Writes them as numpy arrays."""
    arrays: dict[str, Any] = {name: value.detach().numpy() for name, value in weights.items()}
    np.savez(path, **arrays)


def network(work: Work, weights: dict[str, Tensor]) -> nn.Module:
    """The work's network in plain PyTorch, with these weights."""
    kind = work.encoder["name"]
    makers = {"pixel-mlp": MLP, "cnn": CNN, "resnet-gn": ResNet, "transformer": Transformer}
    made = makers[kind](work)
    made.load_state_dict(weights)
    return made


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(784, work.width))
        self.head = nn.Linear(work.width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [n, 1, 28, 28] -> logits [n, classes]."""
        return self.head(F.gelu(self.layers(x.flatten(1))))


class CNN(nn.Module):
    """Two convolutions, each with ReLU and pooling, Linear, GELU, Linear."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        first, second = work.encoder["maps"]
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, first, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(first, second, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.out = nn.Linear(second * 49, work.width)
        self.head = nn.Linear(work.width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [n, 1, 28, 28] -> logits [n, classes]."""
        return self.head(F.gelu(self.out(self.layers(x).flatten(1))))


class Block(nn.Module):
    """Two convolutions with GroupNorm beside a short cut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, out)
        self.shortcut: nn.Module = nn.Identity()
        if channels != out:
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.GroupNorm(8, out))

    def forward(self, x: Tensor) -> Tensor:
        """Feature map [n, channels, h, w] -> [n, out, h / stride, w / stride]."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """A stem and three blocks of 16, 32 and 64 channels, pooling, Linear, GELU, Linear."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        stem = (nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.GroupNorm(8, 16), nn.ReLU())
        blocks = (Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.trunk = nn.Sequential(*stem, *blocks)
        self.project = nn.Linear(64, work.width)
        self.head = nn.Linear(work.width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels in -1..1 [n, 3, 32, 32] -> logits [n, classes]."""
        cells = F.adaptive_avg_pool2d(self.trunk(x), 1).flatten(1)
        return self.head(F.gelu(self.project(cells)))


class Transformer(nn.Module):
    """Two pre-norm layers over the pieces of a text, mean, Linear, GELU, Linear."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        dim = work.encoder["dim"]
        self.embedding = nn.Embedding(2048, dim, padding_idx=0)
        self.places = nn.Parameter(torch.empty(32, dim))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, 4, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, work.width)
        self.head = nn.Linear(work.width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Piece numbers [n, 32], 0 where there is none -> logits [n, classes]."""
        mask = x != 0
        longest = int(mask.sum(dim=1).max())
        x, mask = x[:, :longest], mask[:, :longest]
        local = self.embedding(x) + self.places[:longest]
        for layer in self.layers:
            local = layer(local, src_key_padding_mask=~mask)
        kept = mask.unsqueeze(-1).to(local.dtype)
        mean = (self.norm(local) * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
        return self.head(F.gelu(self.project(mean)))


def loss_of(work: Work, plan: Plan, weights: dict[str, Tensor]) -> float:
    """The loss on the plan's first rows."""
    with torch.no_grad():
        logits = network(work, weights).eval()(plan.x[:ROWS_OF_LOSS])
        return float(F.cross_entropy(logits, plan.y[:ROWS_OF_LOSS]))
