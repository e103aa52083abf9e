"""FedPEFT's claim: a fiftieth of the bytes, accuracy that stands noise, a backbone untouched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from motet.claims.base import Claim, Expectation
from motet.core.tree import weights_of
from motet.experiment.build import build_parties
from motet.experiment.compare import Arm
from motet.experiment.recipes import shipped_recipe
from motet.experiment.runner import run
from motet.experiment.spec import parse_experiment, with_settings
from motet.methods.tuning import frozen_digest
from motet.nn.peft import Prototype, trainable_values

PROTOTYPES: tuple[Prototype, ...] = ("full", "head", "bias", "adapter", "prompt", "lora")
# Chosen on the calibration seed among GRID, at Dirichlet 0.1; every other setting takes them.
RATES = {"full": 0.01, "head": 0.03, "bias": 0.03, "adapter": 0.03, "prompt": 0.03, "lora": 0.03}
GRID = (0.01, 0.03, 0.1)
PLAIN = ("server.image.pretrained=plain", "populations.site.models.0.image.pretrained=plain")
ALIKE = "populations.site.partition.alpha=100"
PRIVATE = "protect.privacy={mode: central, clip: 1.0, noise: 0.5}"
ACCURACY = "accuracy@3"

NOTES = """
What does not hold: after one round, for which all weights have sent three times what the biases
send in ten, the biases are 20 points ahead in the mean but not in every seed.

How to read it. The budget is short (10 rounds, 1 local epoch, 8 of 20 sites), and
sites are very unlike (Dirichlet 0.1) but where the arm says "alike": all weights are behind here,
and that says nothing of longer training or of sites that are alike. Their learning rate is the
grid's lowest, 0.01, where they were best on the one calibration seed; the parts take 0.03. The arms
with noise and those with the unfit backbone take the same rates without a grid of their own.

With a backbone whose features fit, the head alone is as good as biases, adapters and prompts; only
LoRA is a little ahead. Where they do not fit (pre-trained on upright, plain pictures), the head is
far behind. The unfit backbone was not run on unlike sites, so nothing is said of how the gap to all
weights depends on the backbone.

Bytes are those of every round. The backbone (column "log backbone", bytes) goes to each site once.
"""


def arms() -> Sequence[Arm]:
    """All prototypes; some with a backbone whose features do not fit; two under noise."""
    full_once = tuned("full", "method.rounds=1")
    plain = {name: tuned(name, ALIKE, *PLAIN) for name in ("head", "bias", "lora")}
    private = {name: tuned(name, PRIVATE) for name in ("full", "bias")}
    return [
        Arm("bias", tuned("bias"), "biases"),
        Arm("adapter", tuned("adapter"), "adapters"),
        Arm("prompt", tuned("prompt"), "deep prompts"),
        Arm("lora", tuned("lora"), "LoRA"),
        Arm("head", tuned("head"), "head alone", "baseline"),
        Arm("full", tuned("full"), "all weights", "baseline"),
        Arm("full-once", full_once, "all weights, one round", "control"),
        Arm("plain-bias", plain["bias"], "biases, unfit backbone, alike", "option"),
        Arm("plain-lora", plain["lora"], "LoRA, unfit backbone, alike", "option"),
        Arm("plain-head", plain["head"], "head alone, unfit backbone, alike", "baseline"),
        Arm("private-bias", private["bias"], "biases, with noise", "option"),
        Arm("private-full", private["full"], "all weights, with noise", "baseline"),
    ]


def tuned(prototype: Prototype, *settings: str) -> dict[str, Any]:
    """The recipe with this prototype at its rate, and further settings."""
    rate = f"method.local.lr={RATES[prototype]}"
    chosen = [f"method.tuning.prototype={prototype}", rate, *settings]
    return with_settings(shipped_recipe("fedpeft-fashion"), chosen)


def checks(seeds: Sequence[int]) -> Sequence[dict[str, Any]]:
    """Bytes by formula, and the backbone's hash before and after."""
    return [counted(), published(), untouched(seeds[0])]


def counted() -> dict[str, Any]:
    """What really travels against the formula, and against all weights."""
    shape = {"width": 64, "depth": 4, "ratio": 2, "patches": 16, "pixels": 49, "classes": 10}
    bytes_of: dict[str, int] = {}
    for name in PROTOTYPES:
        model = build_parties(parse_experiment(tuned(name))).build_server
        assert model is not None
        bytes_of[name] = sum(value.nbytes for value in weights_of(model()).values())
    exact = all(bytes_of[name] == 4 * trainable_values(name, **shape) for name in PROTOTYPES)
    shares = {name: bytes_of[name] / bytes_of["full"] for name in PROTOTYPES if name != "full"}
    listed = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
    return {
        "text": "every part is at most 10 % of all bytes, and what the formula says to the byte",
        "figure": f"{listed}; {'exact' if exact else 'not exact'}",
        "holds": exact and max(shares.values()) <= 0.1,
    }


def published() -> dict[str, Any]:
    """ViT-B with 100 classes, as the paper counts it."""
    bias, full = trainable_values("bias"), trainable_values("full")
    return {
        "text": "ViT-B with 100 classes: 179,812 values of 85.88 million travel as biases and head",
        "figure": f"{bias:,} of {full:,}, {full / bias:.0f} times fewer",
        "holds": bias == 179_812 and round(full / 1e6, 2) == 85.88,
    }


def untouched(seed: int) -> dict[str, Any]:
    """All sites train twice; each compares its hash with the hub's before, and fails otherwise."""
    twice = [f"seed={seed}", "method.rounds=2", "method.cohort=20", "method.local.steps=1"]
    kept = []
    for name in PROTOTYPES[1:]:
        experiment = parse_experiment(tuned(name, *twice))
        parties = build_parties(experiment)
        assert parties.build_server is not None
        before = frozen_digest(parties.build_server())
        result = run(experiment, parties=parties)
        assert result.model is not None
        kept.append(frozen_digest(result.model) == before)
    return {
        "text": "the backbone's hash is the same at hub and sites after training, every prototype",
        "figure": f"{sum(kept)} of {len(kept)}",
        "holds": all(kept),
    }


EXPECTATIONS = (
    Expectation(
        "with noise: biases above all weights by 15 points, in every seed by 5",
        "private-bias",
        "private-full",
        ACCURACY,
        least=15.0,
        every_least=5.0,
    ),
    Expectation(
        "unfit backbone, alike sites: LoRA above the head alone by 8 points in every seed",
        "plain-lora",
        "plain-head",
        ACCURACY,
        every_least=8.0,
    ),
    Expectation(
        "unfit backbone, alike sites: biases above the head alone by 2 points in every seed",
        "plain-bias",
        "plain-head",
        ACCURACY,
        every_least=2.0,
    ),
    Expectation(
        "no more bytes: biases above all weights by 20 points in every seed",
        "bias",
        "full-once",
        ACCURACY,
        every_least=20.0,
    ),
    Expectation(
        "all weights, one round, have sent more than biases in all rounds",
        "full-once",
        "bias",
        "MB up",
        every=True,
    ),
)

CLAIM = Claim(
    name="fedpeft",
    title="FedPEFT trains and sends a small part of a pre-trained model",
    paper="Sun et al., arXiv 2210.01708.",
    arms=arms,
    reference="bias",
    metrics=(ACCURACY, "MB up", "MB down", "log payload", "log backbone"),
    expectations=EXPECTATIONS,
    seeds=(200, 201, 202),
    calibration=(0,),
    checks=checks,
    rates={name: tuple(f"method.local.lr={rate}" for rate in GRID) for name in PROTOTYPES},
    notes=NOTES,
)
