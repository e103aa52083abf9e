"""The works as Motet's recipes, on rows that are made up; and how a round is gone through alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.works import CLASSES, Work, work_named
from motet.core import Dataset, Federation, Kind, Site, Tree, at_site
from motet.data import registry as data_registry
from motet.data.registry import DatasetInfo
from motet.methods import registry as method_registry
from motet.methods.fedavg import FedAvg

TEST = 10
WORDS = 400


def register() -> None:
    """Makes the rows and the methods of the benchmark known to recipes of this process."""
    here = __name__
    info = DatasetInfo("benchmark", "made up", "benchmarks", "none", f"{here}:load_rows")
    data_registry._BY_NAME["benchmark"] = info
    method_registry.METHODS["benchmark-fedavg"] = f"{here}:Halting"
    method_registry.METHODS["benchmark-record"] = f"{here}:Recording"


def recipe(work: Work, quick: bool, method: str, engine: str, threads: int) -> dict[str, Any]:
    """A work as a recipe."""
    model = {"width": work.width, work.modality: dict(work.encoder)}
    local = {"lr": work.lr, "batch": work.batch, "steps": work.steps}
    population = {"name": "site", "count": work.sites, "modalities": [work.modality]}
    return {
        "title": work.title,
        "method": {"name": method, "rounds": work.rounds, "cohort": work.cohort, "local": local},
        "data": {
            "name": "benchmark",
            "options": {"work": work.name, "quick": quick},
            "test": TEST,
            "public": work.public,
        },
        "server": model,
        "classify": True,
        "common_start": True,
        "engine": {"name": engine, "threads": threads},
        "populations": [{**population, "models": [model]}],
    }


def load_rows(*, work: str, quick: bool = False) -> Dataset:
    """Rows of ten classes: noise around a picture, or around the words, of each class."""
    wanted = work_named(work, quick)
    rng = torch.Generator().manual_seed(0)
    count = wanted.sites * wanted.rows + TEST + wanted.public
    labels = torch.randint(0, CLASSES, (count,), generator=rng)
    made = _pictures if wanted.modality == "image" else _texts
    classes = tuple(map(str, range(CLASSES)))
    return Dataset({wanted.modality: made(wanted, labels, rng)}, labels, classes=classes)


def _pictures(work: Work, labels: Tensor, rng: torch.Generator) -> Tensor:
    models = torch.randint(0, 256, (CLASSES, *work.shape), generator=rng)
    found = torch.empty(len(labels), *work.shape, dtype=torch.uint8)
    for part in torch.arange(len(labels)).split(10_000):
        noise = torch.randint(0, 256, (len(part), *work.shape), generator=rng)
        found[part] = ((models[labels[part]] + 3 * noise) // 4).to(torch.uint8)
    return found


def _texts(work: Work, labels: Tensor, rng: torch.Generator) -> tuple[str, ...]:
    texts = []
    for label in labels.tolist():
        length = int(torch.randint(6, 13, (), generator=rng))
        words = torch.randint(0, WORDS, (length,), generator=rng)
        # Words of the class's own numbers come more often.
        words = torch.where(torch.rand(len(words), generator=rng) < 0.3, words // 10 * 10, words)
        texts.append(" ".join(f"w{int(word) + label}" for word in words))
    return tuple(texts)


class Halting(FedAvg):
    """FedAvg that calls ``halt`` after every round in place of evaluating the model."""

    halt: ClassVar[Callable[[Federation], None]]

    def run(self, fed: Federation) -> None:
        """FedAvg's rounds; what follows one is the next one's, up to its end."""
        fed.report = lambda *args, **more: type(self).halt(fed)  # type: ignore[method-assign]
        super().run(fed)


class Recording(FedAvg):
    """FedAvg whose sites note which rows they would train on, and leave the weights alone.

    seen: of every round and site, the rows' ids [steps, batch]. rows: id -> the row as the model
    reads it, and its label.
    """

    seen: ClassVar[dict[int, list[Tensor]]] = {}
    rows: ClassVar[dict[int, tuple[Tensor, int]]] = {}

    def run(self, fed: Federation) -> None:
        """FedAvg's rounds, without an evaluation."""
        fed.report = lambda *args, **more: None  # type: ignore[method-assign]
        super().run(fed)

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        """Of the same name as FedAvg's, so that its random numbers are the same."""
        steps = []
        for batch in self.local.batches(site, site.data):
            (inputs,) = batch.inputs.values()
            assert batch.labels is not None
            for row, x, label in zip(batch.rows.tolist(), inputs, batch.labels, strict=True):
                self.rows.setdefault(row, (x, int(label)))
            steps.append(batch.rows)
        self.seen.setdefault(site.round, []).append(torch.stack(steps))
        return {"weights": weights, "samples": len(site.data)}
