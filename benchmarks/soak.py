"""A thousand rounds in which a tenth of everything goes wrong: no crash, no leak, no unsolved loss.

    python benchmarks/soak.py [ROUNDS]

Runs FedAvg on digits with every class of fault at 10 %, twice, with checkpoints on disk and on the
simulated clock. Exits with 1 when the memory grows by more than 5 % after the first fifth, when a
loss has no fault that explains it, or when the two runs end in other weights.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from motet.core.events import Event
from motet.experiment.recipes import shipped_recipe
from motet.experiment.runner import run
from motet.experiment.spec import parse_experiment, with_settings

CHANCES = (
    "drop",
    "delay",
    "duplicate",
    "reorder",
    "corrupt",
    "nan",
    "slow",
    "flapping",
    "older_version",
    "clock_skew",
)
FAULTS: dict[str, Any] = {**dict.fromkeys(CHANCES, 0.1), "seconds": 30, "dead": {"site-3": [5, 50]}}
LOSSES = ("failed", "asked again", "ignored")


class Watch:
    """Counts events, looks for losses that nothing explains, and takes the memory at each round."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.memory: list[int] = []
        self.unexplained = 0
        self._struck: dict[tuple[str, str], None] = {}

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        kind = event["event"]
        self.counts[kind] += 1
        if kind == "fault":
            self.faults[event["kind"]] += 1
            self._struck[event["site"], event["tag"]] = None
            # An answer may come a round late, and no later.
            if len(self._struck) > 200:
                del self._struck[next(iter(self._struck))]
        elif kind in LOSSES:
            self.unexplained += (event["site"], event["tag"]) not in self._struck
        elif kind == "round":
            gc.collect()
            self.memory.append(resident())


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def storm(rounds: int) -> tuple[str, Watch]:
    """One run: its final hash, and what was seen of it."""
    watch = Watch()
    values = with_settings(
        shipped_recipe("digits-skew"),
        [
            f"method.rounds={rounds}",
            "method.quorum=0.01",
            "method.local.steps=1",
            "engine.retries=3",
            "engine.timeout=20",
            "populations.site.count=12",
            "method.cohort=12",
            "clients={speed: 10, jitter: 0.3}",
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        experiment = parse_experiment({**values, "faults": FAULTS})
        result = run(experiment, folder=Path(folder) / "run", listeners=[watch])
    return result.hash, watch


def main() -> None:
    """Runs the storm twice and tells what came out."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    start = time.perf_counter()
    first, watch = storm(rounds)
    seconds = time.perf_counter() - start
    base, top = watch.memory[rounds // 5], max(watch.memory[rounds // 5 :])
    print(f"{rounds} rounds in {seconds:.0f} s: {dict(watch.counts)}")
    print(f"faults: {dict(watch.faults)}")
    print(f"memory: {base / 1e6:.1f} MB after a fifth, at most {top / 1e6:.1f} MB later on")
    print(f"losses without an explanation: {watch.unexplained}")
    second, _ = storm(rounds)
    print(f"hashes: {first} {second}")
    if top > 1.05 * base or watch.unexplained or first != second:
        sys.exit(1)


if __name__ == "__main__":
    main()
