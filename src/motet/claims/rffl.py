"""RFFL's claim: who brings more gets more, and who brings nothing is shut out."""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import Tensor

from motet.claims.base import FAIRNESS, Claim, Expectation
from motet.core import Federation, Group
from motet.experiment.compare import Arm
from motet.experiment.recipes import shipped_recipe
from motet.experiment.spec import with_settings
from motet.methods.rffl import RFFL

Plain: TypeAlias = dict[str, Any]
HONEST = "honest sites' accuracy"
ACTIVE = "log active"
BAD = "dishonest"
# 1 to 10 classes, about 100 rows at each site.
CLASSES = (
    "{name: class_groups, rows: [100, 33, 20, 14, 10], groups: [[0], [1, 2, 3], [4, 5, 6, 7, 8], "
    "[3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]}"
)
SPLITS = {
    "power": ("sizes by i^1.5", ()),
    "classes": (
        "1 to 10 classes",
        (f"populations.honest.partition={CLASSES}", "data.private=null"),
    ),
    "uniform": ("equal sites", ("populations.honest.partition=iid",)),
}
# As many rows as each of the five honest sites has, of all classes.
TWO_MORE = {"name": "class_groups", "groups": [list(range(10))], "rows": 12}
# Uniform noise whose norm over 4,810 numbers is that of a clipped update, 0.5.
LIARS = [f"{BAD}-1", f"{BAD}-2"]
NOISE = {"name": "free-rider", "update": "noise", "std": 0.0125, "sites": LIARS}
SIGNS = {"name": "random-signs", "sites": LIARS}
# What makes them dishonest: title, fields of the recipe, fields of their population.
ATTACKS: dict[str, tuple[str, Plain, Plain]] = {
    "riders": ("free-riders", {"attack": NOISE}, {}),
    "signs": ("senders of random signs", {"attack": SIGNS}, {}),
    "flips": ("sites that say the next digit", {}, {"shift_labels": 1}),
}


class Equal(RFFL):
    """The control: reputation shuts out, but all who stay get everything."""

    def judge(self, fed: Federation, sites: Group, reputation: Tensor) -> dict[str, float]:
        """As RFFL, and 1 for everyone."""
        return dict.fromkeys(super().judge(fed, sites, reputation), 1.0)


def arms() -> list[Arm]:
    """RFFL, FedAvg and sites alone for every split; RFFL and FedAvg under every attack."""
    found: list[Arm] = []
    for split, (title, settings) in SPLITS.items():
        values = with_settings(shipped_recipe("rffl-digits"), settings)
        equal: Plain = {**values, "method": Equal(**fields(values))}
        found += [
            Arm(f"{split}-rffl", values, f"RFFL, {title}"),
            Arm(f"{split}-fedavg", other(values, "fedavg"), f"FedAvg, {title}", "baseline"),
            Arm(f"{split}-alone", other(values, "local-only"), f"sites alone, {title}", "baseline"),
            Arm(f"{split}-equal", equal, f"everything to everyone, {title}", "control"),
        ]
    own = with_settings(shipped_recipe("rffl-digits"), ["method.subtract_own=true"])
    found.append(Arm("power-own", own, "own part left out of the reward, sizes by i^1.5", "option"))
    for attack in ATTACKS:
        rffl, fedavg = attacked(attack)
        title = ATTACKS[attack][0]
        found.append(Arm(f"{attack}-rffl", rffl, f"RFFL, two {title}"))
        found.append(Arm(f"{attack}-fedavg", fedavg, f"FedAvg, two {title}", "baseline"))
    return found


def fields(values: Plain) -> Plain:
    """The fields of a recipe's method."""
    return {name: value for name, value in values["method"].items() if name != "name"}


def other(values: Plain, method: str) -> Plain:
    """The same recipe with another method."""
    return {**values, "method": {"name": method, **fields(values)}}


def attacked(attack: str) -> tuple[Plain, Plain]:
    """Equal sites and two dishonest ones, under RFFL and under FedAvg."""
    _, more, site = ATTACKS[attack]
    values = {**with_settings(shipped_recipe("rffl-digits"), SPLITS["uniform"][1]), **more}
    honest = values["populations"][0]
    bad = {**honest, "name": BAD, "count": 2, "partition": TWO_MORE, **site}
    values["populations"] = [honest, bad]
    return values, other(values, "fedavg")


def expectations() -> list[Expectation]:
    """What the method's authors claim, at this scale."""
    found = []
    for split, least in (("power", 85), ("classes", 95)):
        title = SPLITS[split][0]
        found += [
            Expectation(
                f"{title}: accuracies and those of sites alone correlate by {least} or more of "
                "100, in every seed",
                f"{split}-rffl",
                metric=FAIRNESS,
                every_least=least,
            ),
            Expectation(
                f"{title}: FedAvg treats all alike (no correlation: 0)",
                f"{split}-fedavg",
                metric=FAIRNESS,
                every_least=0,
                every_most=0,
            ),
            Expectation(
                f"{title}: with everything to everyone (control) the correlation is at most 50",
                f"{split}-equal",
                metric=FAIRNESS,
                most=50,
            ),
        ]
    for attack, (title, _, _) in ATTACKS.items():
        if attack != "flips":
            found += [
                Expectation(
                    f"both {title} are shut out, in every seed",
                    f"{attack}-rffl",
                    metric=f"log {BAD} sites' reputation",
                    every_most=0,
                ),
                Expectation(
                    f"all five honest sites beside {title} stay, in every seed",
                    f"{attack}-rffl",
                    metric=ACTIVE,
                    every_least=5,
                    every_most=5,
                ),
            ]
        found.append(
            Expectation(
                f"honest sites beside {title} are at most 3 points below FedAvg",
                f"{attack}-rffl",
                f"{attack}-fedavg",
                HONEST,
                "accuracy",
                least=-3,
            )
        )
    found.append(
        Expectation(
            f"{ATTACKS['flips'][0]} have less reputation than the others, in every seed",
            "flips-rffl",
            "flips-rffl",
            f"log {BAD} sites' reputation",
            "log honest sites' reputation",
            every_most=0,
        )
    )
    return found


NOTES = """
What does not hold is the control, and it says what the fairness here comes from. Where all who stay
get the whole sum, accuracies correlate with those of sites alone just as well, and their mean is
the same to a tenth of a point: what sets the models apart is that every site keeps its own updates,
not what it is given. Entries are kept by size, and the largest half of them has 97 % of the squared
length of the sum; over the runs with sizes by i^1.5 rewards had more than 99 % of it on average.
So a correlation with sites alone does not show, by itself, that rewards are what makes it fair.

What is shut out beside liars: with 1 to 10 classes, the honest site that has one class, in round 10
of every seed (counted from 0, the first in which anyone can be), and in one seed the one with three
classes in round 25. Free-riders and senders of random signs go in round 10 as well, all of them.
Two of seven that say the next digit are never shut out with the paper's threshold, but have the two
lowest reputations in every seed.

With equal sites the correlation is about chance differences between them; nothing is claimed of it.
Wrong digits cost FedAvg eleven points and RFFL's honest sites none: they keep their own updates.
Dishonest sites have as many rows as honest ones. Nothing was chosen on any seed.
"""

CLAIM = Claim(
    name="rffl",
    title="RFFL gives more to those who bring more, and shuts out those who bring nothing",
    paper=(
        "Xu, Lyu, FL-ICML 2021: rewarded by reputation, what participants get correlates with what "
        "they reach alone, mostly above 90 of 100; free-riders and attackers are removed; the best "
        "participants are on a par with FedAvg."
    ),
    arms=arms,
    reference="power-rffl",
    metrics=(FAIRNESS, HONEST, "accuracy", ACTIVE, "MB down", "MB up"),
    expectations=tuple(expectations()),
    seeds=(200, 201, 202),
    alone={f"{split}-{arm}": f"{split}-alone" for split in SPLITS for arm in ("rffl", "fedavg")}
    | {f"{split}-equal": f"{split}-alone" for split in SPLITS}
    | {"power-own": "power-alone"},
    notes=NOTES,
)
