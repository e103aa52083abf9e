"""Claims of the personalised baselines: one setting for label skew, one for drawing styles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from motet.claims.base import Claim, Expectation
from motet.experiment.compare import Arm
from motet.experiment.recipes import shipped_recipe
from motet.experiment.spec import with_settings

GRID = (0.3, 0.1, 0.03, 0.01)
SEEDS = (200, 201, 202)
CALIBRATION = (0,)
TRAINED = "sites' accuracy"
RECEIVED = "sites' accuracy as received"
ADAPTED = "sites' accuracy after adaptation"

# Arm -> method, learning rate, further settings, title, group. The rate is the best of GRID on
# the calibration seed, by the mean of the last five reports at the arm's test point:
#   fedavg as received            74.7  74.1  71.4  63.8
#   local                         89.5  90.0  87.9  83.5
#   fedper as received            91.0  91.2  89.7  84.7
#   fedrep as received            89.3  91.1  90.5  87.4
#   ditto                         89.9  91.9  90.9  84.9
#   pfedme, eta 0.02                 -  83.7  89.7     -
#   pfedme, eta 0.005                -  68.6  81.4  79.6
#   per-fedavg after adaptation   91.5  90.0  85.7  82.4
#   one-step after adaptation     89.3  91.4  87.4  84.0
#   fedbn as received             56.6  52.1  51.3  44.7
#   styles-fedavg as received     47.5  44.6  43.3  35.6
#   styles-local                  56.4  59.5  60.7  56.5
# The Hessian-free variant has the rate of the first-order one. A round here has 5 local rounds of
# pFedMe and not the paper's 20, so that its eta is four times the paper's.
SKEW: dict[str, tuple[str, float, dict[str, Any], str, Any]] = {
    "fedavg": ("fedper", 0.3, {"layers": 0}, "FedAvg, also trained on at the site", "baseline"),
    "local": ("local-only", 0.1, {}, "sites alone", "baseline"),
    "fedper": ("fedper", 0.1, {}, "FedPer", "method"),
    "fedrep": ("fedrep", 0.1, {}, "FedRep", "method"),
    "ditto": ("ditto", 0.1, {}, "Ditto", "method"),
    "pfedme": ("pfedme", 0.03, {"eta": 0.02}, "pFedMe", "method"),
    "per-fedavg": ("per-fedavg", 0.3, {"alpha": 0.1}, "Per-FedAvg, first order", "method"),
    "per-fedavg-hf": (
        "per-fedavg",
        0.3,
        {"alpha": 0.1, "variant": "hessian-free"},
        "Per-FedAvg, Hessian-free",
        "option",
    ),
    "one-step": (
        "per-fedavg",
        0.1,
        {"alpha": 0.1, "variant": "none"},
        "FedAvg and one step before use",
        "control",
    ),
}
STYLES: dict[str, tuple[str, float, dict[str, Any], str, Any]] = {
    "fedbn": ("fedbn", 0.3, {}, "FedBN", "method"),
    "styles-fedavg": ("fedper", 0.3, {"layers": 0}, "FedAvg, batch norms averaged", "baseline"),
    "styles-local": ("local-only", 0.03, {}, "sites alone", "baseline"),
}

TUNED_ON = """
Not asserted, but to be read beside it: FedAvg's model after one more local training (its column
"sites' accuracy") comes within a few points of every personalised method here.
"""


def skewed(*names: str) -> list[Arm]:
    """Arms on sites with few classes each."""
    return [_arm("fashion-personal", name, *SKEW[name]) for name in names]


def styled(*names: str) -> list[Arm]:
    """Arms on sites with a drawing style each."""
    return [_arm("fedbn-styles", name, *STYLES[name]) for name in names]


def _arm(
    recipe: str, name: str, method: str, lr: float, more: dict[str, Any], title: str, group: Any
) -> Arm:
    values = shipped_recipe(recipe)
    kept = {key: values["method"][key] for key in ("rounds", "cohort", "local")}
    made = {**values, "method": {"name": method, **kept, **more}}
    return Arm(name, with_settings(made, [f"method.local.lr={lr}"]), title, group)


def _rates(*names: str) -> dict[str, Sequence[str]]:
    found: dict[str, Sequence[str]] = {
        name: [f"method.local.lr={lr}" for lr in GRID] for name in names
    }
    if "pfedme" in found:
        # The proximal term alone makes steps of 2 / lambda and more diverge.
        found["pfedme"] = found["pfedme"][1:]
    return found


def _above_fedavg(name: str, metric: str) -> Expectation:
    """A site's own model against FedAvg's one model for all."""
    return Expectation(
        "more than 10 points above FedAvg's global model, in every seed",
        name,
        "fedavg",
        metric,
        RECEIVED,
        every_least=10,
    )


FEDPER = Claim(
    name="fedper",
    title="FedPer's own heads beat one model for all where labels are skewed",
    paper=(
        "Arivazhagan et al., 2019: with personal last layers, the sites' accuracy on data like "
        "their own is far above FedAvg's where labels are skewed."
    ),
    arms=lambda: skewed("fedper", "fedavg", "local"),
    reference="fedper",
    metrics=(RECEIVED, TRAINED, "MB down", "MB up"),
    expectations=(
        _above_fedavg("fedper", RECEIVED),
        Expectation("above sites alone", "fedper", "local", RECEIVED, TRAINED, least=0),
    ),
    seeds=SEEDS,
    notes=TUNED_ON,
    calibration=CALIBRATION,
    rates=_rates("fedper", "fedavg", "local"),
)
FEDREP = Claim(
    name="fedrep",
    title="FedRep's shared representation under heads of the sites' own",
    paper=(
        "Collins, Hassani, Mokhtari, Shakkottai, ICML 2021: fitting the head to convergence before "
        "each step of the representation beats FedAvg, local training and FedPer."
    ),
    arms=lambda: skewed("fedrep", "fedper", "fedavg", "local"),
    reference="fedrep",
    metrics=(RECEIVED, TRAINED, "MB down", "MB up"),
    expectations=(
        _above_fedavg("fedrep", RECEIVED),
        Expectation("at least level with FedPer", "fedrep", "fedper", RECEIVED, least=0),
        Expectation("above sites alone", "fedrep", "local", RECEIVED, TRAINED, least=0),
    ),
    seeds=SEEDS,
    notes="What does not hold: FedRep is not ahead of FedPer here, for all its epochs on the head."
    + TUNED_ON,
    calibration=CALIBRATION,
    rates=_rates("fedrep", "fedper", "fedavg", "local"),
)
DITTO = Claim(
    name="ditto",
    title="Ditto's personal models beat the global one and local training",
    paper=(
        "Li, Hu, Beirami, Smith, ICML 2021: personal models tied to the global one are more "
        "accurate on the sites' own data than the global one and than local models."
    ),
    arms=lambda: skewed("ditto", "fedavg", "local"),
    reference="ditto",
    metrics=(TRAINED, RECEIVED, "MB down", "MB up"),
    expectations=(
        _above_fedavg("ditto", TRAINED),
        Expectation("above sites alone", "ditto", "local", TRAINED, least=0),
    ),
    seeds=SEEDS,
    notes=TUNED_ON,
    calibration=CALIBRATION,
    rates=_rates("ditto", "fedavg", "local"),
)
PFEDME = Claim(
    name="pfedme",
    title="pFedMe's personal models beat its global one, FedAvg and Per-FedAvg",
    paper=(
        "Dinh, Tran, Nguyen, NeurIPS 2020: pFedMe's personal models are the most accurate, ahead "
        "of Per-FedAvg's, of its own global model and of FedAvg's."
    ),
    arms=lambda: skewed("pfedme", "per-fedavg", "fedavg", "local"),
    reference="pfedme",
    metrics=(TRAINED, RECEIVED, ADAPTED, "MB down", "MB up"),
    expectations=(
        _above_fedavg("pfedme", TRAINED),
        Expectation(
            "above its own global model, in every seed",
            "pfedme",
            "pfedme",
            TRAINED,
            RECEIVED,
            every=True,
        ),
        Expectation("above Per-FedAvg", "pfedme", "per-fedavg", TRAINED, ADAPTED, least=0),
    ),
    seeds=SEEDS,
    notes="pFedMe is level with Per-FedAvg rather than ahead, and below sites alone." + TUNED_ON,
    calibration=CALIBRATION,
    rates=_rates("pfedme", "per-fedavg", "fedavg", "local"),
)
PER_FEDAVG = Claim(
    name="per-fedavg",
    title="Per-FedAvg is a better start for one step than FedAvg",
    paper=(
        "Fallah, Mokhtari, Ozdaglar, NeurIPS 2020: after one step on a site's own data Per-FedAvg "
        "beats FedAvg after one step, and the Hessian-free variant the first-order one."
    ),
    arms=lambda: skewed("per-fedavg", "per-fedavg-hf", "one-step"),
    reference="per-fedavg",
    metrics=(ADAPTED, RECEIVED, "MB down", "MB up"),
    expectations=(
        Expectation(
            "the step helps, in every seed",
            "per-fedavg",
            "per-fedavg",
            ADAPTED,
            RECEIVED,
            every=True,
        ),
        Expectation("above FedAvg after the same step", "per-fedavg", "one-step", ADAPTED, least=0),
        Expectation(
            "the Hessian-free variant is at least level with the first-order one",
            "per-fedavg-hf",
            "per-fedavg",
            ADAPTED,
            least=0,
        ),
    ),
    seeds=SEEDS,
    notes=(
        "What does not hold: FedAvg with one step before use is level or better, and the "
        "Hessian-free variant is unsteady at the first-order variant's learning rate, which is "
        "large; the pure tests hold it against exact second derivatives. That the step helps so "
        "much is because most sites have two or three classes."
    ),
    calibration=CALIBRATION,
    rates=_rates("per-fedavg", "per-fedavg-hf", "one-step"),
)
FEDBN = Claim(
    name="fedbn",
    title="FedBN beats FedAvg where sites draw in styles of their own",
    paper=(
        "Li, Jiang, Zhang, Kamp, Dou, ICLR 2021: where sites differ in their features, keeping "
        "batch norm at the sites beats averaging it, and beats training alone."
    ),
    arms=lambda: styled("fedbn", "styles-fedavg", "styles-local"),
    reference="fedbn",
    metrics=(RECEIVED, TRAINED, "MB down", "MB up"),
    expectations=(
        Expectation(
            "above FedAvg with averaged batch norms, in every seed",
            "fedbn",
            "styles-fedavg",
            RECEIVED,
            every=True,
        ),
        Expectation("above sites alone", "fedbn", "styles-local", RECEIVED, TRAINED, least=0),
    ),
    seeds=SEEDS,
    notes=(
        "What does not hold: at this length sites alone are ahead of FedBN; on the calibration "
        "seed they are level after 50 rounds. A local round is 7 steps, too few for the batch "
        "statistics to follow the weights, so that models are worse after local training than as "
        "received."
    ),
    calibration=CALIBRATION,
    rates=_rates("fedbn", "styles-fedavg", "styles-local"),
)
