"""Motet's own time per exchange: all of an ask that is not the site's own work.

    python benchmarks/exchange.py

Runs the standard CreamFL recipe in memory, in plain and in strict-wire mode, and takes the time
inside the method's site function off the time of the ask around it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from motet.core import Group, Replies, Site, Tree
from motet.experiment.build import build_parties
from motet.experiment.recipes import shipped_recipe
from motet.experiment.runner import run
from motet.experiment.spec import parse_experiment, with_settings
from motet.methods.creamfl import CreamFL


def main() -> None:
    """Prints the median over rounds, per exchange with one site."""
    inside: list[float] = []
    around: list[tuple[float, int]] = []
    watch(CreamFL, "contrast", inside)
    ask = Group.ask

    def timed(group: Group, op: Callable[..., Any], **payload: Any) -> Replies:
        if op.__name__ != "contrast":
            return ask(group, op, **payload)
        start = time.perf_counter()
        replies = ask(group, op, **payload)
        around.append((time.perf_counter() - start, len(group)))
        return replies

    Group.ask = timed  # type: ignore[method-assign, assignment]
    for strict in ("false", "true"):
        inside.clear()
        around.clear()
        values = with_settings(shipped_recipe("creamfl-emoji"), [f"engine.strict={strict}"])
        experiment = parse_experiment(values)
        run(experiment, parties=build_parties(experiment))
        own: list[float] = []
        for seconds, sites in around[1:]:
            work = sum(inside[len(own) * sites + sites : len(own) * sites + 2 * sites])
            own.append((seconds - work) / sites * 1e3)
        print(
            f"strict {strict}: {median(own):.2f} ms per exchange "
            f"({min(own):.2f} to {max(own):.2f} over {len(own)} rounds)"
        )


def watch(cls: type[CreamFL], name: str, seconds: list[float]) -> None:
    """Times every call of a method's site function."""
    function = getattr(cls, name)

    def timed(self: CreamFL, site: Site, **payload: Any) -> Tree:
        start = time.perf_counter()
        value: Tree = function(self, site, **payload)
        seconds.append(time.perf_counter() - start)
        return value

    timed.__name__ = name
    timed.__motet_operation__ = function.__motet_operation__  # type: ignore[attr-defined]
    setattr(cls, name, timed)


if __name__ == "__main__":
    main()
