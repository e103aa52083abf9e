"""FedWon's claim: one network without norms serves sites of different drawing styles best."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from motet.claims.base import Claim, Expectation
from motet.core.batch import Dataset
from motet.evaluate.suite import evaluate
from motet.experiment.compare import Arm
from motet.experiment.recipes import shipped_recipe
from motet.experiment.runner import run
from motet.experiment.spec import with_settings

RECEIVED = "sites' accuracy as received"
GRID = ("method.local.lr=0.03", "method.local.lr=0.1", "method.local.lr=0.3")
TINY = ("method.local.lr=0.01", "method.local.lr=0.03")
SHARED = ("rounds", "cohort", "local")
STYLES = ("plain", "inverted", "contrast", "noise")
NOTES = """
Accuracy is the hub's model on test pictures of all four styles. FedBN has no model for all, so it
is compared at the sites, each on its own style with the model as it was received. Learning rates
are the best of the grid on seeds 0 and 1 for each arm. Gradients are cut at a norm of 5, in place
of the adaptive clipping, in all arms but the one that has it; that one's limit is 0.16.

Batch norm in two dimensions can be trained on batches of one picture, since it takes its
statistics over the positions.
"""


def arms() -> Sequence[Arm]:
    """FedWon, with adaptive clipping and on tiny batches, and networks with the usual norms."""
    base = shipped_recipe("fedwon-styles")
    agc = ["method.agc=0.16", "method.local.clip=null", "method.local.lr=0.3"]
    return [
        Arm("fedwon", base, "FedWon"),
        Arm("fedwon-agc", with_settings(base, agc), "FedWon, adaptive clipping", "option"),
        Arm("batch", averaged(base, "batch", 0.3), "FedAvg, batch norm", "baseline"),
        Arm("fedbn", averaged(base, "batch", 0.03, "fedbn"), "FedBN", "baseline"),
        Arm("group", averaged(base, "group", 0.1), "FedAvg, group norm", "baseline"),
        Arm("none", averaged(base, "none", 0.3), "FedAvg, no norm, plain convolutions", "control"),
        Arm("fedwon-1", tiny(base, 1, 0.01), "FedWon, batches of 1", "option"),
        Arm("fedwon-2", tiny(base, 2, 0.03), "FedWon, batches of 2", "option"),
        Arm("batch-1", tiny(averaged(base, "batch"), 1, 0.01), "batch norm, 1", "baseline"),
        Arm("batch-2", tiny(averaged(base, "batch"), 2, 0.01), "batch norm, 2", "baseline"),
    ]


def averaged(
    base: dict[str, Any], norm: str, lr: float = 0.1, method: str = "fedavg"
) -> dict[str, Any]:
    """The same experiment with another method, on a network with this norm."""
    kept = {name: base["method"][name] for name in SHARED}
    settings = [f"server.image.norm={norm}", f"method.local.lr={lr}"]
    settings += [
        f"populations.{population['name']}.models.0.image.norm={norm}"
        for population in base["populations"]
    ]
    return with_settings({**base, "method": {"name": method, **kept}}, settings)


def tiny(base: dict[str, Any], batch: int, lr: float) -> dict[str, Any]:
    """The same experiment with batches of so many pictures."""
    return with_settings(base, [f"method.local.batch={batch}", f"method.local.lr={lr}"])


def unseen_styles(seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Each style in turn is left out of training, and the model is tested on it alone."""
    base = shipped_recipe("fedwon-styles")
    ours = [unseen(base, seed) for seed in seeds]
    theirs = [unseen(averaged(base, "batch", 0.3), seed) for seed in seeds]
    gaps = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    return [
        {
            "text": "on a style that no site has, at least the accuracy of FedAvg with batch norm",
            "figure": f"{fmean(ours):.1f} against {fmean(theirs):.1f}, smallest {min(gaps):+.1f}",
            "holds": fmean(gaps) >= 0,
        }
    ]


def unseen(recipe: dict[str, Any], seed: int) -> float:
    """Mean accuracy over the styles, each of a model that was trained without it."""
    found = []
    for style in STYLES:
        others = [item for item in recipe["populations"] if item["name"] != style]
        result = run({**recipe, "populations": others, "seed": seed})
        assert result.model is not None
        test: Dataset = result.test.where("style", style)
        found.append(evaluate(result.model, test)["accuracy"][0])
    return fmean(found)


CLAIM = Claim(
    name="fedwon",
    title="FedWon's one network without norms serves sites of different styles best",
    paper=(
        "Zhuang, Lyu, ICLR 2024: on multi-domain data, federated averaging of a network without "
        "normalisation beats that of one with batch norm, and FedBN; it works with batches of one "
        "and in domains that no site has."
    ),
    arms=arms,
    reference="fedwon",
    metrics=("accuracy", RECEIVED, "accuracy@3"),
    expectations=(
        Expectation("at least 5 points above FedAvg with batch norm", "fedwon", "batch", least=5),
        Expectation(
            "at least 2 points above FedBN, each site on its own style",
            "fedwon",
            "fedbn",
            RECEIVED,
            least=2,
        ),
        Expectation("above FedAvg with group norm", "fedwon", "group", least=0),
        Expectation(
            "not for want of norms alone: above plain convolutions", "fedwon", "none", least=0
        ),
        Expectation(
            "with batches of 1, at most 10 points below its own batches of 32",
            "fedwon-1",
            "fedwon",
            least=-10,
        ),
        Expectation(
            "with batches of 2, at most 10 points below its own batches of 32",
            "fedwon-2",
            "fedwon",
            least=-10,
        ),
        Expectation("with batches of 1, above batch norm", "fedwon-1", "batch-1", least=0),
    ),
    seeds=(200, 201, 202),
    calibration=(0, 1),
    checks=unseen_styles,
    rates={
        "fedwon": GRID,
        "fedwon-agc": GRID,
        "batch": GRID,
        "fedbn": GRID,
        "group": GRID,
        "none": GRID,
        "fedwon-1": TINY,
        "fedwon-2": TINY,
        "batch-1": TINY,
        "batch-2": TINY,
    },
    notes=NOTES,
)
