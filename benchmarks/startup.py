"""How long commands take to start, and the demo to its first round.

    python benchmarks/startup.py [--repeats 5]

The demo is stopped when it has reported its first round. The first of all starts only warms the
disk's cache and is not counted.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from statistics import median
from typing import TypeAlias

COMMANDS = (["--help"], ["list"], ["--version"], ["show", "creamfl"])
# Tells its CPU seconds when the demo's first round begins, and when it is over.
DEMO = """
import sys, time
from pathlib import Path
from motet.claims import demo

def listen(event):
    if event["event"] == "round":
        print(time.process_time(), flush=True)

demo.run_demo(Path(sys.argv[1]), listeners=[listen])
"""


# Wall and CPU seconds.
Took: TypeAlias = tuple[float, float]


def main() -> None:
    """Prints one line per command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    times = range(options.repeats + 1)
    for words in COMMANDS:
        print(told([command(words) for _ in times], f"motet {' '.join(words)}"), flush=True)
    begins, ends = zip(*(demo() for _ in times), strict=True)
    print(told(begins, "motet demo, until its first round begins"))
    print(told(ends, "motet demo, until its first round is over"))


def told(took: Sequence[Took], what: str) -> str:
    """Median and extremes, without the first."""
    wall, cpu = zip(*took[1:], strict=True)
    ends = f"{min(wall):.2f} to {max(wall):.2f}"
    return f"{what}: {median(wall):.2f} s ({ends}), of which CPU {median(cpu):.2f} s"


def command(words: Sequence[str]) -> Took:
    """What one command takes."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "motet", *words], stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def demo() -> tuple[Took, Took]:
    """What it takes until the demo's first round begins, and until its second does."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", DEMO, folder], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        took: list[Took] = []
        for _ in range(2):
            # The process tells its own CPU time.
            cpu = float(process.stdout.readline())
            took.append((time.perf_counter() - started, cpu))
        process.kill()
        process.communicate()
    return took[0], took[1]


if __name__ == "__main__":
    main()
