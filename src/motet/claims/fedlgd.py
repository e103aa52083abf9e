"""FedLGD's claim: what its global rows do. The gain in accuracy over FedAvg does not show here."""

from __future__ import annotations

from collections.abc import Sequence

from motet.claims.base import Claim, Expectation
from motet.experiment.compare import Arm
from motet.experiment.recipes import shipped_recipe
from motet.experiment.spec import with_settings

ACCURACY = "accuracy@3"
# Output rows of the network whose gradients are compared: filters, embedding, classes.
ROWS = 16 + 16 + 64 + 10
ALONE = ("method.anchors=0", "method.painting.refresh=0")
REAL = (*ALONE, "method.painting.first=0", "method.start=real")
NOTES = """
The paper's gain over FedAvg on the same virtual rows does NOT show at this scale, and is not asked
for: FedLGD is a little below it. What is checked is the mechanism: the global rows come to hold
what the sites' updates teach, and turning their labels, or the sign of the target, ruins the
model. Three lines that held in the card's own trial are missed here by little: in single seeds
the gain over noise is just under 4 points and the loss against FedAvg just over 3, and two virtual
rows beat two real ones by less than 3. They are left as they are.

All arms take exactly 8 local steps per round; accuracy is the mean of the last three rounds, over
real test pictures of all four styles. The step size of the sites' values, 50 in place of the
paper's 1, was chosen on seed 0 among 1, 10 and 50 by the accuracy of FedAvg on virtual rows: the
features lie behind one more dense layer here and are smaller.
"""


def arms() -> Sequence[Arm]:
    """FedLGD, its ablations and controls, and FedAvg on the same few rows per class."""
    base = shipped_recipe("fedlgd-styles")

    def changed(*settings: str) -> dict[str, object]:
        return with_settings(base, settings)

    return [
        Arm("fedlgd", changed("method.probe=200"), "FedLGD"),
        Arm("unaligned", changed("method.weight=0"), "FedLGD, lambda 0", "ablation"),
        Arm("virtual", changed(*ALONE), "FedAvg, initial virtual rows", "baseline"),
        Arm("real", changed(*REAL), "FedAvg, 5 real rows per class", "baseline"),
        Arm("never", changed("method.painting.match=0"), "global rows stay noise", "control"),
        Arm(
            "labels", changed("method.shift=1"), "global labels off by one at the sites", "control"
        ),
        Arm(
            "sign",
            changed("method.sign=-1", "method.probe=200"),
            "matching away from the update",
            "control",
        ),
        Arm("virtual-2", changed(*ALONE, "method.virtual=2"), "FedAvg, 2 virtual rows", "baseline"),
        Arm("real-2", changed(*REAL, "method.virtual=2"), "FedAvg, 2 real rows", "baseline"),
    ]


CLAIM = Claim(
    name="fedlgd",
    title="FedLGD's global rows hold what the sites' updates teach",
    paper=(
        "Huang, Jin, Zhao, Xu, Li, TMLR 2024: with the same tiny distilled sets, training that is "
        "aligned by a distilled global set beats FedAvg and others; the global set repairs the "
        "heterogeneity that local distillation adds."
    ),
    arms=arms,
    reference="fedlgd",
    metrics=(ACCURACY, "log probe", "log unlike_first", "best log left", "MB down", "MB up"),
    expectations=(
        Expectation(
            "at least 4 points above global rows that stay noise, in every seed",
            "fedlgd",
            "never",
            ACCURACY,
            every_least=4,
        ),
        Expectation(
            "at least 6 points above global labels that are off by one, in every seed",
            "fedlgd",
            "labels",
            ACCURACY,
            every_least=6,
        ),
        Expectation(
            "at least 10 points above the wrong sign, in every seed",
            "fedlgd",
            "sign",
            ACCURACY,
            every_least=10,
        ),
        Expectation(
            "no more than 3 points below FedAvg on the initial virtual rows, in every seed",
            "fedlgd",
            "virtual",
            ACCURACY,
            every_least=-3,
        ),
        Expectation(
            "a network taught by the global rows alone is at least 10 points above one taught by "
            "those of the wrong sign, in every seed",
            "fedlgd",
            "sign",
            "log probe",
            every_least=10,
        ),
        Expectation(
            "the first matching starts below half of the compared rows, in every seed",
            "fedlgd",
            metric="log unlike_first",
            every_most=ROWS / 2,
        ),
        Expectation(
            "with the wrong sign it starts above their number, in every seed",
            "sign",
            metric="log unlike_first",
            every_least=ROWS,
        ),
        Expectation(
            "every matching ends at 0.3 of its start or less, in every seed",
            "fedlgd",
            metric="best log left",
            every_most=0.3,
        ),
        Expectation(
            "virtual rows end at 0.3 of their first distance or less, at every site and seed",
            "fedlgd",
            metric="log distilled",
            every_most=0.3,
        ),
        Expectation(
            "two virtual rows per class teach FedAvg at least 3 points more than two real ones",
            "virtual-2",
            "real-2",
            ACCURACY,
            least=3,
        ),
    ),
    seeds=(200, 201, 202),
    calibration=(0, 1),
    notes=NOTES,
)
