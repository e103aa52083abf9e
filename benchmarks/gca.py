"""Time and memory of contrastive aggregation against the bare matrix products it cannot avoid.

    python benchmarks/gca.py --rows 50000 --width 256 --sites 10

Both run in turn in one process; peak memory is the resident set's high-water mark above what is
resident when the inputs stand (Linux).
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from motet.nn.functional import gca, gca_scores


def main() -> None:
    """Measures, and prints one line each for memory and time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000, help="public rows P")
    parser.add_argument("--width", type=int, default=256, help="embedding size d")
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5, help="for the ratio of one site's scores")
    parser.add_argument("--timed", type=int, default=8192, help="rows of that site that it takes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)

    def unit() -> Tensor:
        return F.normalize(torch.randn(options.rows, options.width, generator=rng), dim=1)

    images = [unit() for _ in range(options.sites)]
    texts = [unit() for _ in range(options.sites)]
    image, text = unit(), unit()
    before = resident()
    start = time.perf_counter()
    gca(images, text)
    gca(texts, image)
    whole = time.perf_counter() - start
    print(f"P {options.rows:,}, d {options.width}, {options.sites} sites, both modalities")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"peak memory above the inputs: {(peak() - before) / 1e6:.0f} MB; {whole:.0f} s")
    ratios = []
    part = images[0][: options.timed]
    for _ in range(options.repeats):
        ratios.append(timed(gca_scores, part, text) / timed(bare, part, text))
    low, high = min(ratios), max(ratios)
    print(f"time over the bare product: {median(ratios):.2f} ({low:.2f} to {high:.2f})")


def bare(local: Tensor, other: Tensor, block: int = 1024) -> None:
    """The matrix products alone, in the same blocks, into one buffer."""
    out = local.new_empty(block, len(other))
    for start in range(0, len(local), block):
        rows = local[start : start + block]
        torch.mm(rows, other.T, out=out[: len(rows)])


def timed(function: object, *arguments: Tensor) -> float:
    """Seconds of processor time of one call."""
    start = time.process_time()
    function(*arguments)  # type: ignore[operator]
    return time.process_time() - start


def resident() -> int:
    """The resident set now, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """High-water mark of the resident set, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
