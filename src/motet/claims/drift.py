"""Claims of the baselines against drift, all in one setting: label skew, few sites per round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from motet.claims.base import Claim, Expectation
from motet.experiment.compare import Arm, Group
from motet.experiment.recipes import shipped_recipe
from motet.experiment.spec import with_settings

SEEDS = (200, 201, 202)
CALIBRATION = (0,)
SCORE = "accuracy@10"
METRICS = (SCORE, "accuracy", "MB up", "MB down")

# Arm -> setting -> accuracy@10 on the calibration seed; the best is the arm's own. Methods with two
# rates were tried on the grid of both; what stands here is the cross through the best.
CALIBRATED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "fedavg": {"method.local.lr": {"0.3": 73.67, "0.1": 73.18, "0.03": 71.14, "0.01": 68.22}},
    "fedsgd": {"method.lr": {"1": 31.11, "0.3": 58.79, "0.1": 65.39, "0.03": 53.27, "0.01": 29.58}},
    "fedprox": {"method.local.lr": {"0.3": 74.69, "0.1": 73.46, "0.03": 71.11, "0.01": 68.20}},
    "scaffold": {"method.local.lr": {"0.3": 75.46, "0.1": 78.49, "0.03": 78.50, "0.01": 75.75}},
    "feddyn": {"method.local.lr": {"0.3": 76.20, "0.1": 77.99, "0.03": 74.27, "0.01": 73.12}},
    "fedspeed": {"method.local.lr": {"0.3": 70.27, "0.1": 79.69, "0.03": 76.49, "0.01": 74.92}},
    "fednova": {"method.local.lr": {"0.3": 64.81, "0.1": 69.80, "0.03": 68.05, "0.01": 65.63}},
    "fedavg-unequal": {
        "method.local.lr": {"0.3": 68.36, "0.1": 69.59, "0.03": 66.86, "0.01": 63.06}
    },
    "fedavgm": {
        "method.local.lr": {"0.3": 75.75, "0.1": 74.73, "0.03": 73.18, "0.01": 69.57},
        "method.lr": {"1.0": 63.96, "0.3": 75.42, "0.1": 75.75},
    },
    "fedadagrad": {
        "method.local.lr": {"0.3": 75.53, "0.1": 75.67, "0.03": 74.10, "0.01": 72.95},
        "method.lr": {"0.1": 74.30, "0.03": 75.67, "0.01": 74.15},
    },
    "fedadam": {
        "method.local.lr": {"0.3": 74.13, "0.1": 76.75, "0.03": 75.16, "0.01": 71.45},
        "method.lr": {"0.1": 72.52, "0.03": 76.75, "0.01": 75.41},
    },
    "fedyogi": {
        "method.local.lr": {"0.3": 75.55, "0.1": 76.67, "0.03": 75.40, "0.01": 72.15},
        "method.lr": {"0.1": 70.73, "0.03": 76.67, "0.01": 75.62},
    },
}
# Method -> its own hyper-parameters in this setting.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "fedavg": {"weighting": "uniform"},
    "fedsgd": {},
    "fedprox": {"weighting": "uniform", "mu": 0.1},
    "scaffold": {},
    "feddyn": {"alpha": 0.1},
    "fedspeed": {"mu": 0.1, "rho": 0.1},
    "fednova": {"weighting": "uniform"},
    "fedavgm": {"weighting": "uniform"},
    "fedadagrad": {"weighting": "uniform"},
    "fedadam": {"weighting": "uniform"},
    "fedyogi": {"weighting": "uniform"},
}
TITLES = {
    "fedavg": "FedAvg",
    "fedsgd": "FedSGD",
    "fedprox": "FedProx",
    "scaffold": "SCAFFOLD",
    "feddyn": "FedDyn",
    "fedspeed": "FedSpeed",
    "fednova": "FedNova",
    "fedavgm": "FedAvgM",
    "fedadagrad": "FedAdagrad",
    "fedadam": "FedAdam",
    "fedyogi": "FedYogi",
}
IID = "populations.0.partition=iid"
EVERY_SITE = "method.cohort=20"
# One epoch over 10 to 1,000 rows: from 1 to about 30 steps.
UNEQUAL = (
    "method.weighting=samples",
    "method.local.steps=null",
    "method.local.epochs=1",
)


def chosen(name: str) -> list[str]:
    """The settings that were best on the calibration seed."""
    return [
        f"{field}={max(values, key=lambda value: values[value])}"
        for field, values in CALIBRATED[name].items()
    ]


def arm(full: str, title: str, group: Group = "baseline", *settings: str, rate_of: str = "") -> Arm:
    """A method in the common setting with its own rate, or that of another, and more settings.

    full: name of the arm, which begins with the method's.
    """
    name = full.split("-")[0]
    tuned = rate_of or (full if full in CALIBRATED else name)
    base = shipped_recipe("fashion-label-skew")
    shared = {key: base["method"][key] for key in ("rounds", "cohort")}
    if name != "fedsgd":
        shared["local"] = base["method"]["local"]
    values = {**base, "method": {"name": name, **shared, **METHODS[name]}}
    return Arm(full, with_settings(values, [*chosen(tuned), *settings]), title, group)


def all_arms() -> list[Arm]:
    """The arms among which the claims choose, so that those that two claims share run once."""
    return [
        *(arm(name, TITLES[name]) for name in METHODS if name != "fednova"),
        arm("fedavg-iid", "FedAvg, rows shared out evenly", "bound", IID),
        arm("fedsgd-all", "FedSGD, all sites", "option", EVERY_SITE),
        arm(
            "fedsgd-all-iid", "FedSGD, all sites, rows shared out evenly", "bound", EVERY_SITE, IID
        ),
        arm("feddyn-none", "FedDyn without dual vectors", "ablation", "method.dual=none"),
        arm("feddyn-reversed", "FedDyn, wrong sign", "control", "method.dual=reversed"),
        arm("fedspeed-reversed", "FedSpeed, wrong sign", "control", "method.dual=reversed"),
        arm("fedspeed-5", "FedSpeed, 5 local steps", "option", "method.local.steps=5"),
        arm("fedavg-5", "FedAvg, 5 local steps", "baseline", "method.local.steps=5"),
        arm("fednova-equal", "FedNova, equal steps", "control", rate_of="fedavg"),
        arm("fednova", "FedNova, unequal work", "method", *UNEQUAL),
        arm("fedavg-unequal", "FedAvg, unequal work", "baseline", *UNEQUAL),
    ]


def picked(own: str, *names: str) -> Callable[[], Sequence[Arm]]:
    """These arms, ``own`` first and as the method of the claim."""

    def arms() -> Sequence[Arm]:
        known = {item.name: item for item in all_arms()}
        return [replace(known[own], group="method"), *(known[name] for name in names)]

    return arms


def rates(*names: str) -> dict[str, list[str]]:
    """The settings that were tried for these arms."""
    return {
        name: [f"{field}={value}" for field, values in CALIBRATED[name].items() for value in values]
        for name in names
    }


def claim(
    name: str,
    title: str,
    paper: str,
    others: Sequence[str],
    *expectations: Expectation,
    notes: str = "",
) -> Claim:
    """A claim in the common setting, with ``others`` beside the method."""
    tuned = [arm for arm in (name, *others) if arm in CALIBRATED]
    return Claim(
        name=name,
        title=title,
        paper=paper,
        arms=picked(name, *others),
        reference=name,
        metrics=METRICS,
        expectations=expectations,
        seeds=SEEDS,
        calibration=CALIBRATION,
        rates=rates(*tuned),
        notes=notes,
    )


def above(arm: str, other: str, least: float, text: str = "") -> Expectation:
    """So many points more, in every seed."""
    told = text or f"at least {least:g} points above {TITLES[other]}, in every seed"
    return Expectation(told, arm, other, SCORE, every_least=least)


def level(arm: str, other: str, points: float, text: str = "") -> Expectation:
    """Within so many points, in every seed."""
    told = text or f"within {points:g} points of {TITLES[other]}, in every seed"
    return Expectation(told, arm, other, SCORE, every_least=-points, every_most=points)


FEDAVG = claim(
    "fedavg",
    "Local steps are worth rounds, and label skew costs FedAvg accuracy",
    "McMahan et al., AISTATS 2017: averaging models after local steps needs 10 to 100 times fewer "
    "rounds than averaging gradients, on even and on skewed rows.",
    ("fedsgd", "fedavg-iid"),
    above("fedavg", "fedsgd", 3),
    above("fedavg-iid", "fedavg", 3, "rows shared out evenly give at least 3 points more"),
)
FEDSGD = claim(
    "fedsgd",
    "FedSGD with all sites does not see how the rows are shared out",
    "McMahan et al., AISTATS 2017: with all sites it is gradient descent on all rows; it needs "
    "many more rounds than federated averaging.",
    ("fedsgd-all", "fedsgd-all-iid", "fedavg"),
    level("fedsgd-all", "fedsgd-all-iid", 0.5, "label skew changes it by at most 0.5 points"),
    above("fedavg", "fedsgd", 3, "FedAvg is at least 3 points ahead after as many rounds"),
)
FEDPROX = claim(
    "fedprox",
    "FedProx is level with FedAvg where all sites do equal work",
    "Li et al., MLSys 2020: the proximal term helps where devices do unequal work and drift; with "
    "equal, moderate work the curves are close.",
    ("fedavg",),
    Expectation(
        "within 1.5 points of FedAvg, on average", "fedprox", "fedavg", SCORE, least=-1.5, most=1.5
    ),
    notes="""
What does not hold: FedProx is a hair more than 1.5 points above FedAvg (1.52), in its own favour.
Both run with the learning rate that was best for them, 0.3. On the calibration seed the gap shrinks
with the rate: 1.0 points at 0.3, 0.3 at 0.1, none at 0.03.
""",
)
SCAFFOLD = claim(
    "scaffold",
    "Control variates make up for label skew",
    "Karimireddy et al., ICML 2020: SCAFFOLD needs far fewer rounds than FedAvg and FedProx on "
    "dissimilar sites, also where few of them take part.",
    ("fedavg", "fedprox"),
    above("scaffold", "fedavg", 3),
    above("scaffold", "fedprox", 3),
    Expectation(
        "twice FedAvg's bytes up", "scaffold", "fedavg", "MB up", ratio=1.9, most_ratio=2.1
    ),
)
FEDDYN = claim(
    "feddyn",
    "Dual vectors make up for label skew, for FedAvg's bytes",
    "Acar et al., ICLR 2021: FedDyn needs several times fewer rounds than FedAvg, FedProx and "
    "SCAFFOLD, under skew and partial participation.",
    ("fedavg", "fedprox", "scaffold", "feddyn-none", "feddyn-reversed"),
    above("feddyn", "fedavg", 3),
    above("feddyn", "feddyn-none", 3, "the dual vectors are worth at least 3 points"),
    above("feddyn", "feddyn-reversed", 3, "with the wrong sign it is at least 3 points worse"),
    Expectation("FedAvg's bytes up", "feddyn", "fedavg", "MB up", ratio=0.99, most_ratio=1.01),
)
FEDSPEED = claim(
    "fedspeed",
    "FedSpeed gains under label skew, and more local steps do not hurt it",
    "Sun et al., ICLR 2023: FedSpeed beats FedAvg and FedProx by a clear margin in the same number "
    "of rounds, and a larger local interval does not degrade it.",
    ("fedavg", "fedprox", "feddyn", "scaffold", "fedspeed-reversed", "fedspeed-5", "fedavg-5"),
    above("fedspeed", "fedavg", 3),
    above("fedspeed", "fedprox", 3),
    above("fedspeed", "feddyn", -1, "at most 1 point below FedDyn, in every seed"),
    above("fedavg", "fedspeed-reversed", 0, "with the wrong sign it is below FedAvg"),
    above("fedspeed-5", "fedavg-5", 3, "with 5 local steps, too, 3 points above FedAvg"),
    Expectation("20 local steps are no worse than 5", "fedspeed", "fedspeed-5", SCORE, least=0),
)
FEDNOVA = claim(
    "fednova",
    "Normalising makes up for unequal local work",
    "Wang et al., NeurIPS 2020: with unequal numbers of local steps FedNova beats FedAvg by 6 to 9 "
    "points on CIFAR-10; with equal ones it is FedAvg.",
    ("fedavg-unequal", "fednova-equal", "fedavg"),
    above("fednova", "fedavg-unequal", 0, "above FedAvg under unequal work, in every seed"),
    level("fednova-equal", "fedavg", 0, "with equal steps it is FedAvg, exactly"),
    notes="""
What does not hold at this scale: FedNova is not above FedAvg in every seed, nor on average; the
difference changes its sign between seeds. On the calibration seed it was level with FedAvg after
five local epochs, too, and 1.5 points below it with 10 sites that all take part. That FedNova's
fixed point is the optimum of all sites' loss and FedAvg's is not is tested on quadratics.
""",
)
FEDAVGM = claim(
    "fedavgm",
    "Momentum at the hub smooths rounds of few, unlike sites",
    "Hsu et al., 2019: server momentum makes up for much of what label skew costs FedAvg.",
    ("fedavg",),
    Expectation("above FedAvg, on average", "fedavgm", "fedavg", SCORE, least=0),
)
FEDADAGRAD = claim(
    "fedadagrad",
    "FedAdagrad is level with FedAvg on dense pictures",
    "Reddi et al., ICLR 2021: adaptive hub optimisers beat FedAvg, FedAdagrad most where "
    "gradients are sparse; on CIFAR-10 it is level with FedAvg.",
    ("fedavg",),
    Expectation("at most 3 points below FedAvg", "fedadagrad", "fedavg", SCORE, least=-3),
)
FEDADAM = claim(
    "fedadam",
    "Adam at the hub beats plain averaging",
    "Reddi et al., ICLR 2021: with both rates tuned FedAdam beats FedAvg, on CIFAR-10 by 5 points.",
    ("fedavg", "fedavgm", "fedyogi"),
    Expectation("above FedAvg, on average", "fedadam", "fedavg", SCORE, least=0),
    Expectation("level with FedYogi (2 points)", "fedadam", "fedyogi", SCORE, least=-2, most=2),
)
FEDYOGI = claim(
    "fedyogi",
    "Yogi at the hub beats plain averaging",
    "Reddi et al., ICLR 2021: with both rates tuned FedYogi beats FedAvg, on CIFAR-10 by 5 points.",
    ("fedavg", "fedavgm", "fedadagrad"),
    Expectation("above FedAvg, on average", "fedyogi", "fedavg", SCORE, least=0),
)
