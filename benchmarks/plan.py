"""Writes the plan of a work: which rows, which first weights, which batches in which order.

    python -m benchmarks.plan WORK FOLDER [--quick]

The order is the one in which Motet's own random numbers put them: a recording run goes through
all rounds without training. Every other contender, and every engine, then does the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.rows import Recording, recipe, register
from benchmarks.works import Work, save_weights, work_named
from motet.core.tree import weights_of
from motet.experiment.build import build_parties
from motet.experiment.runner import run
from motet.experiment.spec import parse_experiment


def main() -> None:
    """Writes x.npy, plan.npz and first.npz into the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    register()
    write_plan(work_named(options.work, options.quick), options.quick, options.folder)


def write_plan(work: Work, quick: bool, folder: Path) -> None:
    """Records a run, and writes what came by."""
    torch.set_num_threads(1)
    experiment = parse_experiment(recipe(work, quick, "benchmark-record", "serial", 1))
    parties = build_parties(experiment)
    run(experiment, parties=parties)
    assert parties.build_server is not None
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder / "first.npz", plain_names(weights_of(parties.build_server())))
    ids = list(Recording.rows)
    place = torch.zeros(max(ids) + 1, dtype=torch.int64)
    place[torch.tensor(ids)] = torch.arange(len(ids))
    rounds = [torch.stack(Recording.seen[number]) for number in range(work.rounds)]
    order = place[torch.stack(rounds)]
    assert order.shape == (work.rounds, work.cohort, work.steps, work.batch)
    np.save(folder / "x.npy", torch.stack([x for x, _ in Recording.rows.values()]).numpy())
    labels = np.array([label for _, label in Recording.rows.values()], dtype=np.int64)
    np.savez(folder / "plan.npz", order=order.numpy(), y=labels)


def plain_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of Motet's model by the names that they have in the plain network."""
    found = {}
    for name, value in weights.items():
        parts = name.split(".")
        found[".".join(parts[2:] if parts[0] == "encoders" else parts)] = value
    return found


if __name__ == "__main__":
    main()
