"""A federation so small that every method can run on it in every way: made-up pictures and texts.

Six sites: two with pictures, two with texts, two with pairs; all models differ, unless a method
asks for equal ones. A method for labelled rows has six sites with pictures and one model.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from motet.core import Dataset, Method
from motet.experiment.build import Parties, build_parties
from motet.experiment.runner import Result, run
from motet.experiment.spec import Experiment, parse_experiment, with_settings
from motet.methods.registry import method_class

CLASSES = ("cat", "sun", "car", "tree")
PUBLIC = 24
TEST = 16
ROUNDS = 2
# What any method may have as a hyper-parameter, small.
SMALL = {"rounds": ROUNDS, "cohort": 4, "epochs": 1, "batch": 16, "lr": 0.01}

EQUAL = [
    "populations.pair.models=[{width: 8, image: {name: hog-mlp, hidden: 8}, "
    "text: {name: hashed-mlp, hidden: 8, bins: 32}}]",
    "populations.image.models=[{width: 8, image: {name: hog-mlp, hidden: 8}}]",
    "populations.text.models=[{width: 8, text: {name: hashed-mlp, hidden: 8, bins: 32}}]",
]


def labelled(image: str) -> list[str]:
    """Another encoder for hub and sites of the labelled federation."""
    return [f"server.image={{{image}}}", f"populations.site.models.0.image={{{image}}}"]


CNN = labelled("name: cnn, side: 8, channels: 3, maps: [2], kernel: 3, norm: batch")
VIT = labelled("name: vit, side: 8, channels: 3, grid: 2, depth: 2, heads: 2")
PEERS = [*labelled("name: random-features, side: 8, channels: 3"), "server=null"]
GRAPH = [
    "data={name: communities, test: 60, public: 0, private: 48, "
    "options: {communities: 3, parts: 2, nodes: 20, classes: 2, words: 8}}",
    "server={width: 8, graph: {name: gcn, features: 8, hidden: 8}}",
    "populations.site.modalities=[graph]",
    "populations.site.partition={name: natural, by: part}",
    "populations.site.models=[{width: 8, graph: {name: gcn, features: 8, hidden: 8}}]",
]
# What a method needs of its recipe beside that: method -> settings.
NEEDS: dict[str, list[str]] = {
    "modal-fedavg": EQUAL,
    "fediot": EQUAL,
    "fedbn": CNN,
    "fedwon": CNN,
    "fedlgd": [*CNN, "method.painting={first: 2, refresh: 1, match: 1, batch: 4}"],
    "fedpeft": [*VIT, "method.tuning={prototype: adapter, bottleneck: 2}"],
    "sfprompt": VIT,
    "split-tuning": VIT,
    "fot": ["method.tasks=2", "data.public=0"],
    "bristle": PEERS,
    "gossip": PEERS,
    "fedpub": GRAPH,
}


@dataclass(frozen=True)
class Case:
    """One method with some settings."""

    name: str
    settings: tuple[str, ...] = ()


# Further ways of a method in which other things travel.
VARIANTS = {
    "creamfl with public rows": Case("creamfl", ("method.public_rows=10",)),
    "creamfl with anchors": Case("creamfl", ("method.anchors=true",)),
    "frl with liars": Case(
        "frl", ("attack={name: reversed-ranks, share: 0.34}", "method.cohort=6")
    ),
    "fedavg by medians": Case("fedavg", ("protect.robust={name: median}",)),
    "fedpeft with lora": Case("fedpeft", ("method.tuning={prototype: lora, rank: 2}",)),
}


@cache
def data(count: int = 94) -> Dataset:
    """Pictures of four noisy patterns, with texts that name them."""
    rng = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % len(CLASSES)
    patterns = torch.randint(0, 256, (len(CLASSES), 3, 8, 8), generator=rng)
    noise = torch.randint(-50, 50, (count, 3, 8, 8), generator=rng)
    image = (patterns[labels] + noise).clamp(0, 255).to(torch.uint8)
    text = tuple(f"{CLASSES[i]} no {row % 9}" for row, i in enumerate(labels.tolist()))
    about = {"task": torch.arange(count) // len(CLASSES) % 2}
    return Dataset({"image": image, "text": text}, labels=labels, classes=CLASSES, about=about)


def small(cls: type[BaseModel]) -> dict[str, Any]:
    """Small values for the hyper-parameters that this method or part of one has."""
    values: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        kinds = [field.annotation, *typing.get_args(field.annotation)]
        parts = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if name in SMALL:
            values[name] = SMALL[name]
        elif parts:
            values[name] = small(parts[0])
    return values


def paired(case: Case) -> bool:
    """Whether the method learns from pictures with texts; the others learn from labels."""
    return method_class(case.name).setting == Method.setting


def recipe(method: str) -> dict[str, Any]:
    """Plain values of the recipe that a method is tried with."""
    return recipe_of_pairs(method) if paired(Case(method)) else recipe_of_labels(method)


def recipe_of_labels(method: str) -> dict[str, Any]:
    """Six sites and the hub with one small perceptron on pixels."""
    model = {"width": 8, "image": {"name": "pixel-mlp", "side": 8, "channels": 3}}
    sites = {"name": "site", "count": 6, "modalities": ["image"], "models": [model]}
    return {
        "method": {"name": method, **small(method_class(method))},
        "data": {"name": "emoji", "test": TEST, "public": PUBLIC},
        "server": model,
        "classify": True,
        "common_start": True,
        "populations": [sites],
    }


def recipe_of_pairs(method: str) -> dict[str, Any]:
    """Sites with pictures, texts or both, and models of all sizes."""

    def image(hidden: int) -> dict[str, Any]:
        return {"name": "hog-mlp", "hidden": hidden}

    def text(hidden: int) -> dict[str, Any]:
        return {"name": "hashed-mlp", "hidden": hidden, "bins": 32}

    def sites(name: str, *models: dict[str, Any]) -> dict[str, Any]:
        modalities = sorted(models[0])
        sized = [{"width": 8, **model} for model in models]
        return {"name": name, "count": 2, "modalities": modalities, "models": sized}

    return {
        "method": {"name": method, **small(method_class(method))},
        "data": {"name": "emoji", "test": TEST, "public": PUBLIC},
        "server": {"width": 8, "image": image(8), "text": text(8)},
        "populations": [
            sites("image", {"image": image(4)}, {"image": image(6)}),
            sites("text", {"text": text(4)}, {"text": text(6)}),
            sites(
                "pair", {"image": image(4), "text": text(6)}, {"image": image(6), "text": text(4)}
            ),
        ],
    }


def coded(name: str, **codecs: str) -> str:
    """A setting that packs, of these kinds, those that this method sends or takes."""
    kinds = {
        kind
        for operation in method_class(name).operations().values()
        for kind in (*operation.sends.values(), *operation.takes.values())
    }
    packed = [f"{kind}: {codec}" for kind, codec in codecs.items() if kind in kinds]
    return "protect.compress={" + ", ".join(packed) + "}"


def experiment(case: Case, *settings: str) -> Experiment:
    """The recipe with what the method needs, and with these settings."""
    wanted = [*NEEDS.get(case.name, []), *case.settings, *settings]
    return parse_experiment(with_settings(recipe(case.name), wanted))


def parties(wanted: Experiment) -> Parties:
    """The parties of a recipe on the made-up data."""
    with pytest.MonkeyPatch.context() as patch:
        if wanted.data.name == "emoji":
            patch.setattr("motet.experiment.build.load_data", lambda name, **options: data())
        return build_parties(wanted)


def try_out(
    case: Case, *settings: str, folder: Path | None = None, listeners: Sequence[Any] = ()
) -> Result:
    """One run of a method."""
    wanted = experiment(case, *settings)
    return run(wanted, folder=folder, listeners=listeners, parties=parties(wanted))
