"""A tiny federation of graph nodes, for tests of methods that learn on graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from motet.core import Federation
from motet.core.events import Events
from motet.experiment import runner
from motet.experiment.build import build_parties
from motet.experiment.runner import Result, run
from motet.experiment.spec import Experiment, parse_experiment, with_settings

FEATURES = 8
OPTIONS = {"communities": 2, "parts": 2, "nodes": 20, "classes": 2, "words": FEATURES}
MODEL = {"width": 4, "graph": {"name": "gcn", "features": FEATURES, "hidden": 4}}


def recipe(method: str | dict[str, Any], *settings: str) -> Experiment:
    """Four sites, two of each community, 20 nodes each, of which about 8 are labelled."""
    values = {
        "method": method,
        "data": {
            "name": "communities",
            "options": {**OPTIONS, "same": 0.3, "other": 0.1},
            "test": 40,
            "public": 0,
            "private": 32,
        },
        "server": MODEL,
        "classify": True,
        "common_start": True,
        "populations": [
            {
                "name": "site",
                "count": 4,
                "modalities": ["graph"],
                "partition": {"name": "natural", "by": "part"},
                "models": [MODEL],
            }
        ],
    }
    return parse_experiment(with_settings(values, settings))


def go(method: str | dict[str, Any], *settings: str, folder: Path | None = None) -> Result:
    """One run on a made-up graph."""
    return run(recipe(method, *settings), folder=folder)


def federation(method: str | dict[str, Any], *settings: str) -> Federation:
    """The hub of a run that has not begun; ``fed.start()`` begins it."""
    wanted = recipe(method, *settings)
    return runner._federation(wanted, build_parties(wanted), None, Events())
