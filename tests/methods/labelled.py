"""A tiny federation of labelled pictures, for tests of methods that classify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from motet.core import Dataset, Federation
from motet.core.events import Events
from motet.experiment import runner
from motet.experiment.build import Parties, build_parties
from motet.experiment.runner import Result, run
from motet.experiment.spec import Experiment, parse_experiment, with_settings

CLASSES = ("ring", "bar", "dot", "cross")
LOCAL = {"lr": 0.1, "batch": 8}


def rows(n: int = 96, styles: int = 2) -> Dataset:
    """Noisy 8 x 8 patterns of four classes; every other row is inverted (column "style")."""
    rng = torch.Generator().manual_seed(5)
    labels = torch.arange(n) % len(CLASSES)
    patterns = torch.randint(0, 256, (len(CLASSES), 1, 8, 8), generator=rng)
    noise = torch.randint(-70, 70, (n, 1, 8, 8), generator=rng)
    pictures = (patterns[labels] + noise).clamp(0, 255).to(torch.uint8)
    style = (torch.arange(n) // len(CLASSES)) % styles
    pictures = torch.where(style.view(-1, 1, 1, 1) == 1, 255 - pictures, pictures)
    about = {"style": tuple("plain" if item == 0 else "inverted" for item in style.tolist())}
    return Dataset({"image": pictures}, labels, classes=CLASSES, about=about)


def recipe(method: str | dict[str, Any], *settings: str) -> Experiment:
    """Three sites and the hub with one small perceptron, on ``rows``."""
    image = {"name": "pixel-mlp", "side": 8}
    model = {"width": 8, "image": image}
    values = {
        "method": method,
        "data": {"name": "digits", "test": 24, "public": 12},
        "server": model,
        "classify": True,
        "common_start": True,
        "populations": [
            {"name": "site", "count": 3, "modalities": ["image"], "models": [model]},
        ],
    }
    return parse_experiment(with_settings(values, settings))


def parties(wanted: Experiment, data: Dataset | None = None) -> Parties:
    """The parties of a recipe on the made-up rows."""
    with pytest.MonkeyPatch.context() as patch:
        found = rows() if data is None else data
        patch.setattr("motet.experiment.build.load_data", lambda name, **options: found)
        return build_parties(wanted)


def go(
    method: str | dict[str, Any],
    *settings: str,
    data: Dataset | None = None,
    folder: Path | None = None,
) -> Result:
    """One run on the made-up rows."""
    wanted = recipe(method, *settings)
    return run(wanted, folder=folder, parties=parties(wanted, data))


def federation(
    method: str | dict[str, Any], *settings: str, data: Dataset | None = None
) -> Federation:
    """The hub of a run that has not begun; ``fed.start()`` begins it."""
    wanted = recipe(method, *settings)
    return runner._federation(wanted, parties(wanted, data), None, Events())
