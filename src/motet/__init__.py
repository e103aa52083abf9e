"""Motet: multimodal federated learning among sites with their own data, modalities and models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from motet.claims import claim_named, run_claim
    from motet.core import (
        SGD,
        Adam,
        Batch,
        Dataset,
        Federation,
        Kind,
        Method,
        MotetError,
        Output,
        Replies,
        Site,
        Tree,
        at_site,
        load,
        weights_of,
    )
    from motet.data import load_data
    from motet.experiment.compare import Arm, compare
    from motet.experiment.preview import preview
    from motet.experiment.report import write_report
    from motet.experiment.runner import Result, resume, run
    from motet.experiment.spec import Experiment
    from motet.experiment.targets import load_experiment

    __version__: str
    recipe = load_experiment

_MODULES = {
    "claims": ("claim_named", "run_claim"),
    "core": (
        "SGD",
        "Adam",
        "Batch",
        "Dataset",
        "Federation",
        "Kind",
        "Method",
        "MotetError",
        "Output",
        "Replies",
        "Site",
        "Tree",
        "at_site",
        "load",
        "weights_of",
    ),
    "data": ("load_data",),
    "experiment.compare": ("Arm", "compare"),
    "experiment.preview": ("preview",),
    "experiment.report": ("write_report",),
    "experiment.runner": ("Result", "resume", "run"),
    "experiment.spec": ("Experiment",),
    "experiment.targets": ("load_experiment",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
# Short names for what reads better so: motet.run(motet.recipe("creamfl")).
_ALIASES = {"recipe": "load_experiment"}

__all__ = [
    "SGD",
    "Adam",
    "Arm",
    "Batch",
    "Dataset",
    "Experiment",
    "Federation",
    "Kind",
    "Method",
    "MotetError",
    "Output",
    "Replies",
    "Result",
    "Site",
    "Tree",
    "__version__",
    "at_site",
    "claim_named",
    "compare",
    "load",
    "load_data",
    "load_experiment",
    "preview",
    "recipe",
    "resume",
    "run",
    "run_claim",
    "weights_of",
    "write_report",
]


def __getattr__(name: str) -> object:
    # Torch takes seconds to import: it comes with what needs it, not with the package.
    if name == "__version__":
        from importlib.metadata import version

        return version("motet")
    wanted = _ALIASES.get(name, name)
    if wanted not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[wanted]}"), wanted)


def __dir__() -> list[str]:
    return sorted(__all__)
