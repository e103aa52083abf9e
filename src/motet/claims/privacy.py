"""The claim of central differential privacy: a usable model at a budget, and noise in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from motet.claims.base import Claim, Expectation
from motet.experiment.compare import Arm
from motet.experiment.recipes import shipped_recipe

# Noise multipliers that spend these budgets over the recipe's 40 rounds: dp-accounting, RDP.
BUDGETS = {"eps-8": (8.0, 1.52), "eps-2": (2.0, 4.01)}


def arms() -> Sequence[Arm]:
    """Two budgets, and the same noise in other places or with an adaptive clip."""
    values = shipped_recipe("private-digits")
    private = values["protect"]["privacy"]

    def under(**changes: Any) -> dict[str, Any]:
        return {**values, "protect": {"privacy": {**private, **changes}}}

    local = {"mode": "local", "sampling": "fixed", "epsilon": None}
    kept = {key: value for key, value in private.items() if key != "epsilon"}
    return [
        *(
            Arm(name, under(epsilon=epsilon, noise=noise), f"epsilon {epsilon:g}")
            for name, (epsilon, noise) in BUDGETS.items()
        ),
        Arm("open", {**values, "protect": {}}, "no privacy", "baseline"),
        Arm("adaptive", under(adaptive={}), "epsilon 8, clip that adapts", "option"),
        Arm("local", {**values, "protect": {"privacy": {**kept, **local}}}, "at sites", "control"),
    ]


NOTES = """
Learning rate and clip were chosen on seed 0, at both budgets. The control adds the noise that the
hub adds once to the sum at every one of the 25 sites instead: its variance is 25 times as large,
and what it protects from is the hub itself. Its epsilon is much larger all the same, since nobody
is hidden by the drawing of sites: the report of such a run has it.
"""

CLAIM = Claim(
    name="privacy",
    title="Privacy of whole sites at a budget of 8 leaves a usable model",
    paper="McMahan, Ramage, Talwar, Zhang, ICLR 2018: with enough sites, user-level privacy costs "
    "rounds and little accuracy; less budget costs more.",
    arms=arms,
    reference="eps-8",
    metrics=("accuracy", "accuracy@3"),
    expectations=(
        Expectation(
            "epsilon 8 within 15 points of no privacy, in every seed",
            "eps-8",
            "open",
            every_least=-15,
        ),
        Expectation("epsilon 2 is below epsilon 8, in every seed", "eps-8", "eps-2", every=True),
        Expectation("no privacy is above epsilon 8, on the mean", "open", "eps-8", least=0),
        Expectation(
            "the same noise at every site, in place of once, is worse in every seed",
            "eps-8",
            "local",
            every=True,
        ),
    ),
    seeds=(200, 201, 202),
    calibration=(0,),
    notes=NOTES,
)
