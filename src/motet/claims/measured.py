"""Comparisons whose arms are not runs of recipes: each is measured by a function of its values."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from motet.core import wire
from motet.core.store import write_atomic
from motet.experiment.compare import Arm, Comparison, Plain, Values

Measure = Callable[[Plain], Values]
Job = tuple[str, int, Plain, Path]


def compare_measured(
    title: str,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    *,
    reference: str,
    folder: Path,
    measure: Measure,
    jobs: int | None = None,
    command: str = "",
    tell: Callable[[Plain], None] = lambda note: None,
) -> Comparison:
    """Measures every arm on every seed, as ``compare`` runs recipes; results stay in ``folder``.

    measure: a module's own function, called with an arm's values and "seed"; on one thread.
    """
    found: dict[tuple[str, int], Values] = {}
    wanted: list[Job] = []
    for seed in seeds:
        for arm in arms:
            values = {**arm.values, "seed": seed}
            name = f"{measure.__module__}.{measure.__qualname__}"
            digest = wire.digest({"measure": name, "values": values})
            path = folder / f"{arm.name}-{seed}-{digest}.json"
            if path.exists():
                found[arm.name, seed] = json.loads(path.read_text())
            else:
                wanted.append((arm.name, seed, values, path))
    for arm_name, seed, values_found in _measured(wanted, measure, jobs or os.cpu_count() or 1):
        found[arm_name, seed] = values_found
        note = {"done": len(found), "of": len(arms) * len(seeds), "arm": arm_name, "seed": seed}
        tell({**note, "values": values_found})
    by_arm = {arm.name: [found[arm.name, seed] for seed in seeds] for arm in arms}
    return Comparison(title, reference, tuple(seeds), tuple(arms), by_arm, command)


def _measured(
    wanted: Sequence[Job], measure: Measure, jobs: int
) -> Iterator[tuple[str, int, Values]]:
    if jobs == 1 or len(wanted) < 2:
        for name, seed, values, path in wanted:
            yield name, seed, _kept(measure, values, path)
        return
    # Forked processes would inherit torch's thread pool in whatever state it is in.
    with ProcessPoolExecutor(min(jobs, len(wanted)), get_context("spawn")) as pool:
        running = {
            pool.submit(_kept, measure, values, path): (name, seed)
            for name, seed, values, path in wanted
        }
        try:
            for future in as_completed(running):
                yield *running[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _kept(measure: Measure, values: Plain, path: Path) -> Values:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = measure(values)
    finally:
        torch.set_num_threads(threads)
    write_atomic(path, json.dumps(found, indent=1).encode())
    return found
