"""Where the time of a round goes: what a profiler saw, put together under names that tell."""

from __future__ import annotations

import cProfile
import pstats
import re
from collections import defaultdict

SMALLEST = 0.01
# The first pattern that is found in "path:function" gives the name.
NAMES = (
    (r"motet/core/optim", "optimiser"),
    (r"motet/core/batch", "batches"),
    (r"motet/(\w+/\w+|\w+)", "motet {0}"),
    (r"run_backward", "torch: backward"),
    (r"\b(linear|conv2d|mm|bmm|matmul|baddbmm|einsum)\b|scaled_dot", "torch: forward products"),
    (r"cross_entropy|gelu|relu|pool|norm|embedding|softmax|dropout", "torch: forward, the rest"),
    (r"_foreach|_fused|optim/", "optimiser"),
    (r"\bindex|__getitem__|gather|randperm", "batches"),
    (r"torch/nn/", "torch: calling modules"),
    (r"torch|Tensor", "torch: other functions"),
    (r"", "Python's own functions"),
)


def shares(profile: cProfile.Profile) -> dict[str, float]:
    """Name -> share of the time, the largest first; what is below a percent is put together."""
    found: defaultdict[str, float] = defaultdict(float)
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (path, _, function), (_, _, own, _, _) in stats.items():
        found[name_of(f"{path}:{function}")] += own
    total = sum(found.values()) or 1.0
    ordered = sorted(found.items(), key=lambda item: -item[1])
    large = {name: own / total for name, own in ordered if own / total >= SMALLEST}
    return {**large, "all else": 1 - sum(large.values())}


def name_of(place: str) -> str:
    """What a function's time is told under."""
    for pattern, name in NAMES:
        match = re.search(pattern, place.replace("\\", "/"))
        if match:
            return name.format(*match.groups())
    return place
