"""Rules against attacks: what is left of FedAvg's accuracy when a share of the sites lies.

    python benchmarks/robustness.py [--jobs 2] [--seeds 1,2,3] [--shares 10,20,30]
        [--rules mean,median] [--attacks none,alie] [--output docs/robustness.md]

Digits at 20 sites (Dirichlet 1), a perceptron, 20 rounds with all sites. Results of single runs are
kept in runs/robustness: what is there already is not run again, so that a stopped command goes on
where it was. All tables are of the arms named; the page is written when all of them are there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import Any

from motet.core.errors import ConfigError
from motet.experiment.compare import Arm, Comparison, compare, spread
from motet.experiment.runner import environment
from motet.protect.robust import RobustSpec

ROOT = Path(__file__).resolve().parents[1]
SITES = 20
SUCCESS = "attack success"
MODEL = {"width": 64, "image": {"name": "pixel-mlp", "side": 8, "hidden": [64]}}
RECIPE: dict[str, Any] = {
    "title": "Robustness on digits",
    "method": {
        "name": "fedavg",
        "rounds": 20,
        "cohort": SITES,
        # The clip keeps a mean that was attacked finite, so that the runs end.
        "local": {"lr": 0.3, "epochs": 2, "batch": 16, "clip": 10.0},
    },
    "data": {"name": "digits", "test": 500, "public": 100},
    "server": MODEL,
    "classify": True,
    "common_start": True,
    "populations": [
        {
            "name": "site",
            "count": SITES,
            "modalities": ["image"],
            "partition": {"name": "dirichlet", "alpha": 1.0, "min_rows": 10},
            "models": [MODEL],
        }
    ],
}
PATHOLOGICAL = {"name": "pathological", "classes_per_site": 2}
RULES: dict[str, dict[str, Any]] = {
    "mean": {},
    "trimmed-mean": {},
    "median": {},
    "krum": {},
    "multi-krum": {},
    "geometric-median": {},
    "norm-bound": {},
    "fltrust": {"root": 100},
    "bulyan": {},
    "foolsgold": {},
}
# Rules that are told how many lie; the others are the same whatever the share.
TOLD = {"trimmed-mean", "krum", "multi-krum", "bulyan"}
ALL = {"knowledge": "all"}
ATTACKS: dict[str, dict[str, Any]] = {
    "none": {},
    "sign-flip": {"factor": 10.0},
    "noise": {"std": 1.0},
    "label-flip": {},
    "free-rider": {},
    "alie": ALL,
    "ipm": {**ALL, "eps": 0.5},
    "min-max": ALL,
    "min-sum": ALL,
    "fang": ALL,
    "fang-krum": {**ALL, "against": "krum"},
    "backdoor": {},
}
TITLES = {
    "fang": "fang (trimmed mean)",
    "fang-krum": "fang (krum)",
    "backdoor": "backdoor, boosted",
}
# On the split in which every site has two classes.
HARD = ("none", "label-flip", "sign-flip")
HARD_SHARE = 20


def main() -> None:
    """Runs what is missing, and writes the page."""
    parser = argparse.ArgumentParser(description="robust rules against attacks")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--seeds", default="1,2,3", help="0 served to choose the setting")
    parser.add_argument("--shares", default="10,20,30", help="percentages of hostile sites")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "robustness.md")
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    shares = [int(share) for share in given.shares.split(",")]
    rules, attacks = given.rules.split(","), given.attacks.split(",")
    wanted = [
        (rule, attack, share, False) for share in shares for rule in rules for attack in attacks
    ]
    hard = [attack for attack in HARD if attack in attacks]
    wanted += [(rule, attack, HARD_SHARE, True) for rule in rules for attack in hard]
    arms = {arm.name: arm for key in wanted if (arm := arm_of(*key)) is not None}
    found = compare(
        "Robust rules against attacks",
        list(arms.values()),
        seeds,
        reference=next(iter(arms)),
        folder=ROOT / "runs" / "robustness",
        jobs=given.jobs,
        command="python benchmarks/robustness.py",
        tell=lambda note: print(
            f"{note['done']}/{note['of']} {note['arm']} seed {note['seed']}: "
            f"{note['values']['accuracy']:.1f}",
            flush=True,
        ),
    )
    hard_table = table(found, rules, hard, HARD_SHARE, hard=True)
    print("\n".join(hard_table))
    given.output.write_text(page(found, rules, attacks, shares, hard_table), encoding="utf-8")


def name_of(rule: str, attack: str, share: int, hard: bool) -> str:
    """An arm's name: one for all shares where nothing depends on it."""
    end = "" if attack == "none" and rule not in TOLD else f"-{share}"
    return f"{rule}-{attack}{end}{'-pathological' if hard else ''}"


def arm_of(rule: str, attack: str, share: int, hard: bool) -> Arm | None:
    """One run's recipe; None where the rule refuses so many liars among the sites."""
    values: dict[str, Any] = {**RECIPE}
    if rule != "mean":
        told = {"share": share / 100} if rule in TOLD else {}
        robust = {"name": rule, **told, **RULES[rule]}
        try:
            RobustSpec.model_validate(robust).check(SITES)
        except ConfigError:
            return None
        values["protect"] = {"robust": robust}
    if attack != "none":
        values["attack"] = {**ATTACKS[attack], "name": attack.removesuffix("-krum")}
        values["attack"]["share"] = share / 100
        if attack == "backdoor":
            # As much as puts the attackers' model in the place of the mean.
            values["attack"]["boost"] = 100 / share
    if hard:
        values["populations"] = [{**RECIPE["populations"][0], "partition": PATHOLOGICAL}]
    return Arm(name_of(rule, attack, share, hard), values)


def table(
    found: Comparison,
    rules: Sequence[str],
    attacks: Sequence[str],
    share: int,
    *,
    hard: bool = False,
) -> list[str]:
    """Accuracy of every rule under every attack; under a backdoor also how often it opens."""
    heads = [TITLES.get(attack, attack) for attack in attacks]
    backdoor = "backdoor" in attacks
    heads += ["backdoor's success"] if backdoor else []
    lines = [f"| rule | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for rule in rules:
        names = [name_of(rule, attack, share, hard) for attack in attacks]
        cells = [cell(found, name, "accuracy") for name in names]
        if backdoor:
            cells.append(cell(found, name_of(rule, "backdoor", share, hard), SUCCESS))
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    return lines


def cell(found: Comparison, name: str, metric: str) -> str:
    """Mean and spread over the seeds; "refused" for an arm that cannot be."""
    if name not in found.values:
        return "refused"
    values = found.of(name, metric)
    return f"{fmean(values):.1f} ± {spread(values):.1f}"


def page(
    found: Comparison,
    rules: Sequence[str],
    attacks: Sequence[str],
    shares: Sequence[int],
    hard_table: Sequence[str],
) -> str:
    """docs/robustness.md."""
    versions = environment()
    listed = ", ".join(f"{key} {versions[key]}" for key in ("motet", "python", "torch"))
    local = RECIPE["method"]["local"]
    lines = [
        "# Robust rules against attacks",
        "",
        f"FedAvg on digits: {SITES} sites (Dirichlet 1), all in every round, a perceptron, "
        f"{RECIPE['method']['rounds']} rounds, learning rate {local['lr']}, {local['epochs']} "
        f"local epochs, batch {local['batch']}. Accuracy of the hub's model after the last round "
        "in %, mean ± standard deviation over the seeds.",
        "",
        "Trimmed mean, Krum, multi-Krum and Bulyan are told the share of liars; all rules are "
        "unweighted, the mean goes by rows. FLTrust's hub trains on 100 labelled rows of the "
        "public set. Attackers of alie, ipm, min-max, min-sum and fang know all honest updates. "
        "Sign flip sends -10 times the update, noise is normal with standard deviation 1 per "
        "weight. The backdoor puts a white square of 4 x 4 on half of the attackers' rows and "
        "boosts their updates by sites / attackers; its success is the share of triggered test "
        "rows of other classes that are taken for the target. *refused*: the rule cannot bear so "
        "many liars among so few sites, and says so before the first round.",
        "",
    ]
    for share in shares:
        lines += [f"## {share} % of the sites are hostile", ""]
        lines += [*table(found, rules, attacks, share), ""]
    lines += [
        f"## Two classes per site, {HARD_SHARE} % of the sites are hostile",
        "",
        "What rules cost where honest sites differ as much as liars do.",
        "",
        *hard_table,
        "",
        f"Seeds {', '.join(map(str, found.seeds))}. Command: `{found.command}`. "
        f"Date: {date.today().isoformat()}. {listed}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
