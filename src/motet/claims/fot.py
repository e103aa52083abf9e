"""FOT's claim: five tasks in a row, hardly anything forgotten, and no old row kept."""

from __future__ import annotations

from motet.claims.base import Claim, Expectation
from motet.experiment.compare import Arm, Group
from motet.experiment.recipes import shipped_recipe
from motet.experiment.spec import with_settings

LR = "method.local.lr="
GRID = tuple(f"{LR}{rate}" for rate in (0.03, 0.1, 0.3))
ARMS: tuple[tuple[str, str, Group, tuple[str, ...]], ...] = (
    ("fot", "FOT", "method", ()),
    ("fedavg", "FedAvg on the same tasks", "baseline", ("method.project=false", f"{LR}0.1")),
    ("keep-99", "FOT that protects more (keep 0.99)", "option", ("method.keep=0.99",)),
    ("keep-80", "FOT that protects less (keep 0.80)", "option", ("method.keep=0.8",)),
    ("small-sketch", "FOT with sketches of half the size", "option", ("method.sketch=0.5",)),
)


def arms() -> list[Arm]:
    """FOT, the same without projection, and how much it protects."""
    values = shipped_recipe("fot-digits")
    return [
        Arm(name, with_settings(values, settings), title, group)
        for name, title, group, settings in ARMS
    ]


NOTES = """
What does not hold at this scale: the paper's forgetting of at most 2 points. It is about 10 here,
against more than 50 of FedAvg; protecting more (keep 0.99) leaves too little room to learn.

Both methods have the learning rate that was best for them on two other seeds (0.03, 0.1, 0.3; FOT
0.3, FedAvg 0.1). *log learnt* is the least accuracy of any task right after it was learnt, and
*log FGT* the mean fall of the earlier tasks since then. In the first task FOT is FedAvg, bit by
bit, at equal rates.
"""

CLAIM = Claim(
    name="fot",
    title="FOT forgets little, with no replay",
    paper="Bakman, Yaldiz, Ezzeldin, Avestimehr, ICLR 2024: forgetting falls while the final "
    "accuracy rises, with no replay and no further training at the sites.",
    arms=arms,
    reference="fot",
    metrics=("log ACC", "log FGT", "log learnt", "MB up", "MB down"),
    expectations=(
        Expectation(
            "final accuracy over all tasks more than 10 points above FedAvg's, in every seed",
            "fot",
            "fedavg",
            metric="log ACC",
            every_least=10,
        ),
        Expectation(
            "forgetting at most half of FedAvg's, on the mean",
            "fot",
            "fedavg",
            metric="log FGT",
            most_ratio=0.5,
        ),
        Expectation(
            "accuracy on every new task right after it at least 75, in every seed",
            "fot",
            metric="log learnt",
            every_least=75,
        ),
    ),
    seeds=(200, 201, 202),
    calibration=(0, 1),
    rates=dict.fromkeys(("fot", "fedavg"), GRID),
    notes=NOTES,
)
