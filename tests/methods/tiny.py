"""A tiny federation of real parts for tests of methods: four sites, small pictures, short texts."""

from __future__ import annotations

from typing import Any

import torch

from motet.core import Dataset
from motet.experiment import build
from motet.experiment.build import Parties, build_parties
from motet.experiment.spec import Experiment, parse_experiment, with_settings

WORDS = ("cat", "dog", "sun", "moon")
TASK = {
    "lr": 0.005,
    "epochs": 1,
    "cosine": False,
    "clip": None,
    "loss": {"name": "infonce"},
}
PRIVATE = {
    "lr": 0.005,
    "epochs": 1,
    "batch": 16,
    "clip": None,
    "margin": 0,
    "separation": 0,
    "pair": {"name": "infonce"},
}
DISTIL = {"lr": 0.005, "epochs": 2, "weight": 1.0}


def pairs(rows: int = 96) -> Dataset:
    """Pictures of four noisy colour patterns with texts that name them."""
    rng = torch.Generator().manual_seed(1)
    labels = torch.arange(rows) % len(WORDS)
    patterns = torch.randint(0, 256, (len(WORDS), 3, 8, 8), generator=rng)
    noise = torch.randint(-60, 60, (rows, 3, 8, 8), generator=rng)
    pictures = (patterns[labels] + noise).clamp(0, 255).to(torch.uint8)
    texts = tuple(f"{WORDS[label]} number {row % 7}" for row, label in enumerate(labels.tolist()))
    return Dataset(
        {"image": pictures, "text": texts},
        labels=labels,
        classes=WORDS,
        about={"concept": torch.arange(rows)},
    )


def recipe(*settings: str, method: dict[str, Any] | None = None) -> dict[str, Any]:
    """Plain values of a recipe on ``pairs``; methods get what they know of the usual parts."""
    image, text = {"name": "hog-mlp", "hidden": 8}, {"name": "hashed-mlp", "hidden": 8, "bins": 64}
    whole = {"width": 8, "image": image, "text": text}
    values: dict[str, Any] = {
        "method": method
        or {
            "name": "creamfl",
            "rounds": 2,
            "cohort": 4,
            "server": TASK,
            "distil": DISTIL,
            "private": PRIVATE,
            "batch": 16,
        },
        "data": {"name": "emoji", "unit": "concept", "test": 16, "public": 24},
        "server": whole,
        "populations": [
            {
                "name": "image",
                "count": 1,
                "modalities": ["image"],
                "models": [{"width": 8, "image": image}],
            },
            {
                "name": "text",
                "count": 1,
                "modalities": ["text"],
                "models": [{"width": 8, "text": text}],
            },
            {"name": "pair", "count": 2, "modalities": ["image", "text"], "models": [whole]},
        ],
    }
    return with_settings(values, settings)


def experiment(*settings: str, method: dict[str, Any] | None = None) -> Experiment:
    """The same, checked."""
    return parse_experiment(recipe(*settings, method=method))


def parties(made: Experiment, monkeypatch: Any) -> Parties:
    """Its parties on ``pairs``, whatever data set it names."""
    monkeypatch.setattr(build, "load_data", lambda name, **options: pairs())
    return build_parties(made)
