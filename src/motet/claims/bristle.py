"""Bristle's claim: judged class by class, rare classes get through and lies do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from motet.claims.base import Claim, Expectation
from motet.experiment.compare import Arm, Group
from motet.experiment.recipes import shipped_recipe
from motet.experiment.spec import with_settings

Plain: TypeAlias = dict[str, Any]
Attack: TypeAlias = Literal["clean", "flip", "noise"]
METRIC = "benign sites' accuracy"
LR = "method.step.lr="
# What each rule did best with on the calibration seeds, without attackers.
RATES = {
    "bristle": 0.5,
    "mean": 2.0,
    "median": 2.0,
    "trimmed-mean": 2.0,
    "krum": 0.5,
    "none": 0.1,
}
GRID = tuple(f"{LR}{rate}" for rate in (0.02, 0.1, 0.5, 2.0))
RULES = ("mean", "median", "trimmed-mean", "krum")
TITLES = {
    "bristle": "Bristle",
    "mean": "mean",
    "median": "median",
    "trimmed-mean": "trimmed mean",
    "krum": "Krum",
    "none": "no exchange",
}
ATTACKS = {
    "clean": "no attack",
    "flip": "half of the peers say the next digit",
    "noise": "half of the peers send noise",
}
EQUAL_CLASSES = "{name: iid}"


def recipe(rule: str, attack: Attack, partition: str = "") -> Plain:
    """The shipped recipe with another rule, attack or partition."""
    values = shipped_recipe("bristle-digits")
    if rule != "bristle":
        fields = {name: values["method"][name] for name in ("rounds", "step")}
        # Of 10 peers Krum can stand no more than 3.
        byzantine = 3 if rule == "krum" and attack == "clean" else 4
        values["method"] = {"name": "gossip", "rule": rule, "byzantine": byzantine, **fields}
    settings = [f"{LR}{RATES[rule]}"]
    if attack == "clean":
        values["populations"] = values["populations"][:1]
    if attack == "noise":
        settings += ["populations.liar.shift_labels=0", "method.noisy=liar"]
    if partition:
        names = [population["name"] for population in values["populations"]]
        settings += [f"populations.{name}.partition={partition}" for name in names]
    return with_settings(values, settings)


def arms() -> list[Arm]:
    """Every rule under every attack, and ablations of Bristle where half of the peers lie."""
    found: list[Arm] = []
    for attack in ("flip", "clean", "noise"):
        for rule in ("bristle", *RULES):
            group: Group = "method" if rule == "bristle" else "baseline"
            found.append(_arm(f"{rule}-{attack}", recipe(rule, attack), rule, attack, group))
    found.append(_arm("none", recipe("none", "clean"), "none", "clean", "baseline"))
    for rule in ("bristle", "krum"):
        title = f"{TITLES[rule]}, all classes everywhere, {ATTACKS['flip']}"
        group = "option" if rule == "bristle" else "baseline"
        found.append(Arm(f"{rule}-iid", recipe(rule, "flip", EQUAL_CLASSES), title, group))
    lies = recipe("bristle", "flip")
    for name, title, setting in (
        ("uniform", "peers to test at random", "method.select=uniform"),
        ("drift", "foreign columns trained as well", "method.foreign=trained"),
        ("ring", "one letter per iteration, on a ring", "method.pattern=ring"),
    ):
        kind: Group = "option" if name == "ring" else "ablation"
        full = f"Bristle, {title}, {ATTACKS['flip']}"
        found.append(Arm(name, with_settings(lies, [setting]), full, kind))
    return found


def _arm(name: str, values: Plain, rule: str, attack: str, group: Group) -> Arm:
    return Arm(name, values, f"{TITLES[rule]}, {ATTACKS[attack]}", group)


def expectations() -> Sequence[Expectation]:
    """What the method's authors claim, at this scale."""
    flip = "bristle-flip"
    found = [
        Expectation(
            "accuracy on all 10 digits of peers who have 4, half of the peers lying, at least 80",
            flip,
            metric=METRIC,
            least=80,
        ),
        Expectation("liars cost at most 5 points", flip, "bristle-clean", metric=METRIC, least=-5),
    ]
    for other in (*(f"{rule}-flip" for rule in RULES), "none"):
        rule = TITLES[other.removesuffix("-flip")]
        text = f"at least 1.5 times {rule} among liars"
        found.append(Expectation(text, flip, other, metric=METRIC, ratio=1.5))
    for rule in RULES:
        text = f"above {TITLES[rule]} among senders of noise, in every seed"
        found.append(Expectation(text, "bristle-noise", f"{rule}-noise", metric=METRIC, every=True))
    return found


NOTES = """
Every message is one output layer of 256 x 10 numbers, 10,240 bytes. Learning rates were chosen per
rule on two other seeds without attackers, from 0.02, 0.1, 0.5 and 2.

How to read it. Without attackers the mean, the median and the trimmed mean are as good as Bristle,
or better by a point or two: what Bristle buys is that half of the peers may lie. The mean stands
these senders of noise fairly well at the learning rate that it has (2). Krum with half of the peers
lying is a matter of luck, as liars are as close to one another as honest peers are.

Ablations: choosing the peers to test at random, and training foreign columns as well, cost nothing
that shows here. The other rules train all columns: where foreign ones were kept as they were (on
the calibration seeds), median and trimmed mean could not leave 0, since most peers are strangers
to every class.
"""

CLAIM = Claim(
    name="bristle",
    title="Bristle is at once robust and tolerant of peers with few classes",
    paper="Verbraeken, de Vos, Pouwelse, arXiv 2110.11006: rules that survive dishonest peers "
    "throw rare classes away; judging output layers class by class does neither.",
    arms=arms,
    reference="bristle-flip",
    metrics=(METRIC, "MB up", "MB down"),
    expectations=tuple(expectations()),
    seeds=(200, 201, 202),
    calibration=(0, 1),
    rates={f"{rule}-clean": GRID for rule in ("bristle", *RULES)} | {"none": GRID},
    notes=NOTES,
)
