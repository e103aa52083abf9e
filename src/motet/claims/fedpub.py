"""FED-PUB's claim: on a graph of communities it beats one model for all and training alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from motet.claims.base import Claim, Expectation
from motet.core import Method
from motet.experiment.compare import Arm
from motet.experiment.recipes import shipped_recipe
from motet.experiment.runner import run
from motet.experiment.spec import parse_experiment, with_settings
from motet.methods.fedpub import FedPub

ACCURACY = "sites' accuracy@5"
COMMUNITIES = {f"site-{number + 1}": f"{number // 2:03d}" for number in range(8)}
PLAIN = ("method.masks=false", "method.sparsity=0", "method.proximity=0")
# So sharp that a site's mixture is its own model.
ALONE = "method.tau=1000000"
NOTES = """
How to read it. FED-PUB is above one model for all in every seed, above training alone on average
but not in every seed. Masks carry the gain: with a plain mean in place of similarity they come to
the same within the spread. The embeddings do tell the communities apart, but at tau = 5 such small
differences hardly move the weights; the true communities would be worth a point more.

Every seed draws its own graph. How much there is to gain by sharing depends on the graph more than
on anything else: on the graph of seed 0, with the splits of seeds 200 to 202, FED-PUB stayed
1.3 below training alone (78.5 with a plain mean, 77.7, against 79.0) and 6.2 above one model for
all. The claim first ran so; a graph per seed is the protocol that it follows now.

All arms train by the same persistent Adam, so that "FedAvg" is a plain mean without masks and
"alone" a similarity so sharp that only oneself counts. With one step per round the distance to
what was received has no gradient and plays no part.
"""
RATES = ("method.lr=0.003", "method.lr=0.01", "method.lr=0.03")


def arms() -> Sequence[Arm]:
    """FED-PUB, its two halves, one model for all, training alone, and the true communities."""
    base = shipped_recipe("fedpub-communities")

    def changed(*settings: str) -> dict[str, Any]:
        return with_settings(base, settings)

    known = f"method.known={COMMUNITIES}"
    return [
        Arm("fedpub", base, "FED-PUB"),
        Arm("no-masks", changed(*PLAIN), "similarity without masks", "ablation"),
        Arm("masks", changed("method.tau=0"), "masks with a plain mean", "ablation"),
        Arm("fedavg", changed("method.tau=0", *PLAIN), "FedAvg, by the same Adam", "baseline"),
        Arm("local", changed(ALONE, *PLAIN), "sites alone, by the same Adam", "baseline"),
        Arm("local-masks", changed(ALONE), "sites alone, with masks", "control"),
        Arm("true", changed(known), "masks and the true communities", "bound"),
    ]


def cosines(recipe: Mapping[str, Any]) -> tuple[float, float]:
    """Mean cosine of the last round's embeddings: of one community, and of different ones."""
    kept: dict[str, Tensor] = {}

    class Recorded(FedPub):
        def alpha(self, sites: Sequence[str], probes: Tensor) -> Tensor:
            unit = F.normalize(probes.double(), dim=1)
            kept["cosine"] = unit @ unit.T
            kept["community"] = torch.tensor([int(COMMUNITIES[site]) for site in sites])
            return super().alpha(sites, probes)

    experiment = parse_experiment(recipe)
    method: Method = Recorded(**dict(experiment.method))
    run(experiment.model_copy(update={"method": method}))
    cosine, community = kept["cosine"], kept["community"]
    same = community[:, None] == community
    others = ~torch.eye(len(community), dtype=torch.bool)
    return float(cosine[same & others].mean()), float(cosine[~same].mean())


def similarity_check(seeds: Sequence[int]) -> Sequence[dict[str, Any]]:
    """Whether the embeddings of a random graph tell who is of one community."""
    base = shipped_recipe("fedpub-communities")
    found = [cosines({**base, "seed": seed}) for seed in seeds]
    gaps = [same - other for same, other in found]
    same, other = (fmean(values) for values in zip(*found, strict=True))
    text = "embeddings of one community are more alike than others, in every seed"
    figure = f"cosine {same:.3f} against {other:.3f} (smallest gap {min(gaps):+.3f})"
    return [{"text": text, "figure": figure, "holds": min(gaps) > 0}]


CLAIM = Claim(
    name="fedpub",
    title="FED-PUB beats one model for all and training alone on a graph of communities",
    paper=(
        "Baek, Jeong, Jin, Yoon, Hwang, ICML 2023: one global graph network is worse than training "
        "alone on subgraphs of different communities; mixing models by the similarity of their "
        "outputs on a random graph, with a mask of each site's own, is better than both."
    ),
    arms=arms,
    reference="fedpub",
    metrics=(ACCURACY, "accuracy@5", "MB up", "MB down"),
    expectations=(
        Expectation(
            "at least 2 points above one model for all", "fedpub", "fedavg", ACCURACY, least=2
        ),
        Expectation(
            "not more than half a point below training alone",
            "fedpub",
            "local",
            ACCURACY,
            least=-0.5,
        ),
        Expectation("above training alone", "fedpub", "local", ACCURACY, least=0, every=True),
        Expectation(
            "one model for all is worse than training alone", "local", "fedavg", ACCURACY, least=0
        ),
        Expectation("masks add to similarity", "fedpub", "no-masks", ACCURACY, least=0),
        Expectation("similarity adds to masks", "fedpub", "masks", ACCURACY, least=0),
        Expectation("not masks alone: sharing adds", "fedpub", "local-masks", ACCURACY, least=0),
        Expectation("the true communities are better still", "true", "fedpub", ACCURACY, least=0),
    ),
    seeds=(200, 201, 202),
    calibration=(0, 1),
    checks=similarity_check,
    notes=NOTES,
    rates=dict.fromkeys(("fedpub", "fedavg", "local"), RATES),
)
