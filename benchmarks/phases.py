"""Where a round of many small sites goes, from question to mean.

    python -m benchmarks.phases [--work mlp] [--rounds 20]

A profiler of Python's would slow what is written in Python; here a clock is read at a few places
alone.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any, cast

import torch

from benchmarks.rows import Halting, recipe, register
from benchmarks.works import WORKS
from motet.core import Federation
from motet.core.exchange import Exchange
from motet.engines.coalesced import _Run
from motet.engines.rules import StackedSGD
from motet.engines.stacked import _Chunk
from motet.engines.tape import Tape
from motet.experiment.build import build_parties
from motet.experiment.runner import run
from motet.experiment.spec import parse_experiment

BEFORE, AFTER = "a site, from its question to its fit", "a site, from its fit to its answer"
PLACES = {
    (_Chunk, "__init__"): "models into stacks",
    (_Chunk, "_gather"): "rows into batches",
    (Tape, "__call__"): "forward and backward passes",
    (StackedSGD, "update"): "steps of the optimiser",
    (_Chunk, "write_back"): "stacks into models",
    (Exchange, "take"): "the hub, from an answer to its part of the mean",
}
ORDER = (BEFORE, *list(PLACES.values())[:-1], AFTER, PLACES[Exchange, "take"])


class Clock:
    """Seconds at each place in the round under way, and in each one that is over."""

    def __init__(self) -> None:
        self.now: defaultdict[str, float] = defaultdict(float)
        self.rounds: list[dict[str, float]] = []
        self._started = time.perf_counter()

    def time(self, owner: type, name: str, told: Callable[..., str]) -> None:
        """Adds up how long a function takes, under what is told of its arguments."""
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.now[told(*args)] += time.perf_counter() - started

        setattr(owner, name, timed)

    def end_round(self) -> None:
        """Ends the round, and begins the next."""
        now = time.perf_counter()
        self.rounds.append({**self.now, "all": now - self._started})
        self.now.clear()
        self._started = time.perf_counter()


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default="mlp", choices=[n for n in WORKS if n.startswith("mlp")])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    register()
    # One more to warm up.
    work = replace(WORKS[options.work], rounds=options.rounds + 1)
    WORKS[work.name] = work
    experiment = parse_experiment(recipe(work, False, "benchmark-fedavg", "coalesced", 1))
    parties = build_parties(experiment)
    clock = Clock()
    for (owner, name), told in PLACES.items():
        clock.time(owner, name, lambda *_, told=told: told)
    clock.time(_Run, "go_on", lambda run, found=None: BEFORE if found is None else AFTER)

    def halt(_: Federation) -> None:
        clock.end_round()

    Halting.halt = cast("Callable[[Federation], None]", staticmethod(halt))
    run(experiment, parties=parties)
    print(f"{work.title}; median of {options.rounds} rounds, microseconds per site")
    for line in lines(clock.rounds[1:], work.cohort):
        print(line)
    print(f"torch {torch.__version__}, {experiment.engine.threads} thread")


def lines(rounds: list[dict[str, float]], sites: int) -> list[str]:
    """A line per place, with its share."""
    whole = median(told["all"] for told in rounds)
    found = {name: median(told.get(name, 0.0) for told in rounds) for name in ORDER}
    found["all else"] = whole - sum(found.values())
    found["all"] = whole
    return [
        f"{name:50} {seconds / sites * 1e6:7.0f} {seconds / whole:7.1%}"
        for name, seconds in found.items()
    ]


if __name__ == "__main__":
    main()
