"""How long commands take to start, and the demo to its first round.

    python benchmarks/startup.py [--repeats 5]

The demo is stopped when it has reported its first round. The first of all starts only warms the
disk's cache and is not counted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from statistics import median

COMMANDS = (["--help"], ["list"], ["--version"], ["show", "creamfl"])
# Says when the demo's first round begins and when it is over, and ends there.
DEMO = """
import os, sys
from pathlib import Path
from motet.claims import demo

def listen(event):
    if event["event"] == "round":
        print(event["round"], flush=True)

demo.run_demo(Path(sys.argv[1]), listeners=[listen])
"""


def main() -> None:
    """Prints one line per command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    for words in COMMANDS:
        told([command(words) for _ in range(options.repeats + 1)], f"motet {' '.join(words)}")
    begins, ends = zip(*(demo() for _ in range(options.repeats + 1)), strict=True)
    told(begins, "motet demo, until its first round begins")
    told(ends, "motet demo, until its first round is over")


def told(seconds: list[float] | tuple[float, ...], what: str) -> None:
    """Median and extremes, without the first."""
    counted = seconds[1:]
    print(f"{what}: {median(counted):.2f} s ({min(counted):.2f} to {max(counted):.2f})")


def command(words: list[str]) -> float:
    """Seconds of one command."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "motet", *words], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def demo() -> tuple[float, float]:
    """Seconds until the demo's first round begins, and until its second does."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", DEMO, folder], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        times = []
        for _ in range(2):
            process.stdout.readline()
            times.append(time.perf_counter() - started)
        process.kill()
        process.wait()
    return times[0], times[1]


if __name__ == "__main__":
    main()
