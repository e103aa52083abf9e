"""KnFu's claim: its weights avoid the harm of a common teacher and keep the gain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from motet.claims.base import Claim, Expectation
from motet.experiment.compare import Arm
from motet.experiment.recipes import shipped_recipe
from motet.experiment.spec import with_settings

MILD = ("populations.site.partition.alpha=1.0", "data.private=300")
NOTES = """
The metric is the mean over sites of the accuracy on test rows with the site's own label mix (the
paper's ALMA). Uniform weights are FedMD's teacher on probabilities; *reversed* weights favour the
sites that are most unlike. Two settings make up the claim: under strong skew the weights avoid
harm, and training alone is at least as good, as the paper itself says; under mild skew with few
rows they keep the gain.
"""


def arms() -> Sequence[Arm]:
    """KnFu with several beta, a common teacher and no teacher, under strong and mild skew."""
    base = shipped_recipe("knfu-fashion")

    def changed(*settings: str) -> dict[str, Any]:
        return with_settings(base, settings)

    alone = "method.distil_epochs=0"
    return [
        Arm("knfu", base, "KnFu, beta 10"),
        Arm("beta-1", changed("method.beta=1"), "KnFu, beta 1", "ablation"),
        Arm("uniform", changed("method.beta=0"), "one teacher for all", "baseline"),
        Arm("reversed", changed("method.beta=-10"), "reversed weights", "control"),
        Arm("local", changed(alone), "sites alone", "baseline"),
        Arm("mild-knfu", changed(*MILD), "mild skew: KnFu, beta 10"),
        Arm(
            "mild-beta-100",
            changed(*MILD, "method.beta=100"),
            "mild skew: KnFu, beta 100",
            "ablation",
        ),
        Arm(
            "mild-uniform",
            changed(*MILD, "method.beta=0"),
            "mild skew: one teacher for all",
            "baseline",
        ),
        Arm("mild-local", changed(*MILD, alone), "mild skew: sites alone", "baseline"),
    ]


METRIC = "sites' accuracy"
CLAIM = Claim(
    name="knfu",
    title="KnFu avoids the harm that a common teacher does, and keeps the gain",
    paper="Seyedmohammadi et al., arXiv 2403.11892: KnFu beats other knowledge fusion, and with "
    "large, very different local data nothing beats training alone.",
    arms=arms,
    reference="knfu",
    metrics=(METRIC, "MB up", "MB down"),
    expectations=(
        Expectation(
            "strong skew: at least 8 above one teacher for all, every seed",
            "knfu",
            "uniform",
            METRIC,
            every_least=8,
        ),
        Expectation(
            "strong skew: at least 30 above reversed weights, every seed",
            "knfu",
            "reversed",
            METRIC,
            every_least=30,
        ),
        Expectation(
            "strong skew: sites alone at most 1 below, every seed",
            "local",
            "knfu",
            METRIC,
            every_least=-1,
        ),
        Expectation(
            "mild skew: at least 1 above sites alone",
            "mild-knfu",
            "mild-local",
            METRIC,
            least=1,
        ),
        Expectation(
            "mild skew: at least 1 above one teacher for all",
            "mild-knfu",
            "mild-uniform",
            METRIC,
            least=1,
        ),
    ),
    seeds=(200, 201, 202),
    calibration=(0, 1),
    notes=NOTES,
)
