"""FedBuff's claim: where some sites are slow, nobody has to wait for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from motet.claims.base import Claim, Expectation
from motet.experiment.compare import Arm, Group, Plain, Values, last_values
from motet.experiment.recipes import shipped_recipe
from motet.experiment.runner import run
from motet.experiment.spec import with_settings

TARGET = 90
MOMENT = 200
TO_TARGET = f"seconds to {TARGET}"
AT_MOMENT = f"accuracy at {MOMENT} s"
# Every answer takes the same time, and nobody is early or late.
EQUAL = "clients={speed: null, latency: 5}"
DEADLINE = ("engine.timeout=20", "method.quorum=0.1")
GRID = ("1.0", "0.3", "0.1", "0.03")
# Arm -> local learning rate -> seconds to the target on the calibration seed; the least is chosen.
CALIBRATED: Mapping[str, Mapping[str, float]] = {
    "fedbuff": {"1.0": 573.0, "0.3": 53.0, "0.1": 124.3, "0.03": 287.4},
    "fedavg": {"1.0": 3645.3, "0.3": 742.8, "0.1": 1534.9, "0.03": 3041.3},
    "fedbuff-one": {"1.0": 184.4, "0.3": 23.8, "0.1": 33.1, "0.03": 59.8},
}


def chosen(name: str) -> str:
    """The learning rate that was best on the calibration seed."""
    return min(CALIBRATED[name], key=lambda lr: CALIBRATED[name][lr])


def measure(values: Plain) -> Values:
    """What a run comes to, and when, in seconds of the simulated clock.

    "seconds to 90" is the time of the first report of so much accuracy, or of the last report where
    there is none; "accuracy at 200 s" that of the last report until then, or 0.
    """
    result = run(values)
    told = [event for event in result.events if event["event"] == "metric"]
    curve = [(event["seconds"], event["metrics"]["accuracy"][0]) for event in told]
    ages = [event["staleness"] for event in result.events if "staleness" in event]
    reached = [time for time, accuracy in curve if accuracy >= TARGET]
    before = [accuracy for time, accuracy in curve if time <= MOMENT]
    return {
        **last_values(result.events),
        TO_TARGET: reached[0] if reached else curve[-1][0],
        AT_MOMENT: before[-1] if before else 0.0,
        "staleness": fmean(ages) if ages else 0.0,
    }


def arm(
    name: str, title: str, group: Group, *settings: str, rounds: int, method: str = "fedbuff"
) -> Arm:
    """One arm on the shipped recipe, with the learning rate that was chosen for its method."""
    values: dict[str, Any] = shipped_recipe("fedbuff-digits")
    if method != "fedbuff":
        shared = {key: values["method"][key] for key in ("cohort", "local")}
        values = {**values, "method": {"name": method, "weighting": "uniform", **shared}}
    rate = chosen(name if name in CALIBRATED else method)
    own = [f"method.local.lr={rate}", f"method.rounds={rounds}", *settings]
    return Arm(name, with_settings(values, own), title, group)


def arms() -> Sequence[Arm]:
    """FedBuff and FedAvg with stragglers and without, FedBuff without weights, and its ends."""
    constant = "method.staleness.name=constant"
    one = ("method.buffer=1", "method.cohort=20")
    return [
        arm("fedbuff", "FedBuff", "method", rounds=100),
        arm("fedavg", "FedAvg", "baseline", rounds=40, method="fedavg"),
        arm(
            "fedavg-deadline",
            "FedAvg, rounds of at most 20 s",
            "baseline",
            *DEADLINE,
            rounds=80,
            method="fedavg",
        ),
        arm("fedbuff-constant", "FedBuff, stale counts whole", "control", constant, rounds=100),
        arm(
            "fedbuff-hinge",
            "FedBuff, hinge",
            "option",
            "method.staleness={name: hinge, a: 0.5, b: 2}",
            rounds=100,
        ),
        arm("fedbuff-equal", "FedBuff, equal speeds", "control", EQUAL, rounds=100),
        arm("fedavg-equal", "FedAvg, equal speeds", "control", EQUAL, rounds=50, method="fedavg"),
        arm(
            "fedbuff-round",
            "FedBuff, equal speeds, K = M",
            "control",
            EQUAL,
            "method.buffer=10",
            f"method.local.lr={chosen('fedavg')}",
            rounds=50,
        ),
        arm("fedbuff-one", "K = 1, M = 20", "option", *one, rounds=500),
        arm(
            "fedbuff-one-constant",
            "K = 1, M = 20, stale counts whole",
            "control",
            *one,
            constant,
            rounds=500,
        ),
    ]


CLAIM = Claim(
    name="fedbuff",
    title="Where some sites are slow, FedBuff does not wait for them",
    paper="Nguyen et al., AISTATS 2022: FedBuff is 3.3 times more efficient than synchronous "
    "federated learning, and up to 2.5 times more efficient than asynchronous without a buffer.",
    arms=arms,
    reference="fedbuff",
    metrics=(TO_TARGET, AT_MOMENT, "accuracy@5", "staleness", "MB up"),
    expectations=(
        Expectation(
            "a third of the sites ten times slower: FedAvg takes at least 3 times as long",
            "fedavg", "fedbuff", TO_TARGET, ratio=3,
        ),
        Expectation(
            "and in every seed longer", "fedavg", "fedbuff", TO_TARGET, every_least=0, every=True
        ),
        Expectation(
            f"at {MOMENT} s at least 10 points ahead, in every seed",
            "fedbuff", "fedavg", AT_MOMENT, every_least=10,
        ),
        Expectation(
            "FedAvg that leaves late sites out takes longer, too, on average",
            "fedavg-deadline", "fedbuff", TO_TARGET, least=0,
        ),
        Expectation(
            "with equal speeds there is little to gain: FedAvg takes at most 1.5 times as long",
            "fedavg-equal", "fedbuff-equal", TO_TARGET, most_ratio=1.5,
        ),
        Expectation(
            "with equal speeds and K = M it is FedAvg, exactly",
            "fedbuff-round", "fedavg-equal", "accuracy@5", every_least=0, every_most=0,
        ),
        Expectation(
            "the weights of staleness gain time, on average",
            "fedbuff-constant", "fedbuff", TO_TARGET, least=0,
        ),
        Expectation(
            "without a buffer, too: K = 1 with all sites at work",
            "fedbuff-one-constant", "fedbuff-one", TO_TARGET, least=0,
        ),
        Expectation(
            "in the end within 2 points of FedAvg, on average",
            "fedbuff", "fedavg", "accuracy@5", least=-2,
        ),
    ),
    seeds=(200, 201, 202),
    calibration=(0,),
    rates={
        name: [f"method.local.lr={lr}" for lr in GRID]
        for name in ("fedbuff", "fedavg", "fedbuff-one")
    },
    measure=measure,
    notes="""
Times are simulated: a site trains on 20 rows a second, or on 2 where it is a straggler, as 6 of 20
are. The hub's own work takes none, and evaluation neither.

What does not hold: with a buffer of five and ten sites at work the weights of staleness gain
nothing. An update is 1.7 models old on average, which does no harm here, and weights below 1 make
steps smaller. Where updates are old they decide: without a buffer and with all sites at work they
are 17 models old, and without weights the model does not learn at all.
""",
)  # fmt: skip
