"""FedAvg and its family against a plain PyTorch loop that does the same steps.

    python benchmarks/fedavg.py [ROUNDS]

A small CNN (two convolutions of 5 x 5, batch 32) on made-up pictures of 28 x 28, ten sites, one
epoch each. The plain loop loads the weights, takes the steps and averages, on tensors that are
ready, and adds to every gradient as many terms as the method does; nothing is reported in either.
A round of ours and one of theirs take turns in one process.
"""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

import motet
from motet.core import Dataset, Federation
from motet.core.events import Events
from motet.experiment import build
from motet.experiment.build import Parties, build_parties
from motet.experiment.runner import _federation
from motet.experiment.spec import parse_experiment

SITES = 10
ROWS = 320
LOCAL = {"lr": 0.05, "batch": 32}
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"local": LOCAL},
    "fedprox": {"local": LOCAL, "mu": 0.1},
    "scaffold": {"local": LOCAL},
    "feddyn": {"local": {**LOCAL, "weight_decay": 0.0, "clip": None}},
    "fedadam": {"local": LOCAL},
}


def main(rounds: int) -> None:
    """Prints, per method, the median ratio of its rounds to those of the plain loop."""
    torch.set_num_threads(1)
    versions = f"motet {motet.__version__}, torch {torch.__version__}"
    print(f"{versions}, 1 thread, {rounds} pairs of rounds")
    for name, options in METHODS.items():
        ours, theirs = measure({"name": name, "rounds": rounds + 1, "cohort": SITES, **options})
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        print(
            f"{name:9} {median(ratios):.3f} times the plain loop ({min(ratios):.3f} to "
            f"{max(ratios):.3f}); a plain round takes {median(theirs):.3f} s"
        )


def measure(method: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Seconds of each round but the first: the method's, and the plain loop's just after it."""
    fed, parties = federation(method)
    plain = PlainLoop(parties, method["name"])
    ours: list[float] = []
    theirs: list[float] = []
    started = time.perf_counter()

    def report(*args: object, **more: object) -> None:
        nonlocal started
        done = time.perf_counter()
        ours.append(done - started)
        plain.round()
        started = time.perf_counter()
        theirs.append(started - done)

    fed.report = report  # type: ignore[method-assign]
    fed.start()
    return ours[1:], theirs[1:]


class PlainLoop:
    """What a PyTorch user would write: load the weights, take the steps, average."""

    def __init__(self, parties: Parties, method: str) -> None:
        assert parties.build_server is not None
        self.model: Any = parties.build_server()
        self.weights = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.proximal = method == "fedprox"
        drifts = method in ("scaffold", "feddyn")
        parameters = list(self.model.parameters())
        self.drift = [torch.zeros_like(value) for value in parameters] if drifts else []
        # FedDyn's drift holds alpha * x as well, which is a weight decay.
        self.decay = 0.1 if method == "feddyn" else 0.0
        ready: list[Any] = [self.model.prepare(site.data) for site in parties.sites]
        self.sites = [(data.columns["image"], data.labels) for data in ready]

    def round(self) -> None:
        """One round of one epoch at every site."""
        model = self.model
        total = sum(len(labels) for _, labels in self.sites)
        mean = {key: torch.zeros_like(value) for key, value in self.weights.items()}
        encoder, head = model.encoders["image"], model.head
        for pictures, labels in self.sites:
            model.load_state_dict(self.weights)
            model.train()
            parameters = list(model.parameters())
            start = [value.detach().clone() for value in parameters]
            optimizer = torch.optim.SGD(parameters, lr=LOCAL["lr"], weight_decay=self.decay)
            for rows in torch.randperm(len(labels)).split(int(LOCAL["batch"])):
                optimizer.zero_grad()
                logits = head(F.gelu(encoder(pictures[rows])))
                F.cross_entropy(logits, labels[rows]).backward()
                if self.proximal:
                    for value, old in zip(parameters, start, strict=True):
                        value.grad.add_(value.detach() - old, alpha=0.1)
                for value, term in zip(parameters, self.drift, strict=False):
                    value.grad.add_(term)
                optimizer.step()
            for key, value in model.state_dict().items():
                mean[key] += value * (len(labels) / total)
        self.weights = mean


def federation(method: dict[str, Any]) -> tuple[Federation, Parties]:
    """The hub of a run on made-up rows, and its parties."""
    model = {"width": 64, "image": {"name": "cnn", "maps": [8, 16]}}
    experiment = parse_experiment(
        {
            "method": method,
            "data": {"name": "digits", "test": 10, "public": 0},
            "server": model,
            "classify": True,
            "common_start": True,
            "populations": [
                {"name": "site", "count": SITES, "modalities": ["image"], "models": [model]}
            ],
        }
    )
    rng = torch.Generator().manual_seed(0)
    count = SITES * ROWS + 10
    pictures = torch.randint(0, 256, (count, 1, 28, 28), generator=rng).to(torch.uint8)
    labels = torch.randint(0, 10, (count,), generator=rng)
    classes = tuple(map(str, range(10)))
    rows = Dataset({"image": pictures}, labels, classes=classes)
    build.load_data = lambda name, **options: rows  # type: ignore[attr-defined]
    parties = build_parties(experiment)
    fed = _federation(experiment, parties, None, Events())
    return fed, parties


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
