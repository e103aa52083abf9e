"""Motet: the work as a recipe, run by the function that every user calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch

import motet
from benchmarks.contenders.gate import Gate, arguments
from benchmarks.plan import plain_names
from benchmarks.rows import Halting, recipe, register
from motet.core import Federation, weights_of
from motet.experiment.build import build_parties
from motet.experiment.runner import run
from motet.experiment.spec import parse_experiment


def main() -> None:
    """Plays rounds as told."""
    gate = Gate()
    work, _, options = arguments()
    register()
    plain = recipe(work, options.quick, "benchmark-fedavg", options.engine, options.threads)
    experiment = parse_experiment(plain)
    parties = build_parties(experiment)

    def halt(fed: Federation) -> None:
        gate.finish(lambda: plain_names(weights_of(fed.model)))
        gate.begin()

    # A plain function in a class would become a method.
    Halting.halt = cast("Callable[[Federation], None]", staticmethod(halt))
    gate.ready(versions={"motet": motet.__version__, "torch": torch.__version__})
    gate.begin()
    run(experiment, parties=parties)


if __name__ == "__main__":
    main()
