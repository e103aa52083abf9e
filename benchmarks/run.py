"""Motet against a plain loop, pfl-research and Flower's simulation, side by side in one run.

    python -m benchmarks.run [--work mlp] [--against plain] [--quick] [--out docs]

Every contender is a process that has everything ready and plays a round when told; they take turns
(A B C A B C, beginning with another one each time). Nothing is reported unless all of them made the
same steps: after the first round their weights must agree, and at the end their losses.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.check import DisagreementError, check
from benchmarks.environments import python_of
from benchmarks.machine import machine
from benchmarks.processes import ROOT, Player
from benchmarks.rows import recipe, register
from benchmarks.tables import CHOSEN, summary, write_results
from benchmarks.works import WORKS, Work, work_named
from motet.core.errors import ConfigError
from motet.experiment.spec import parse_experiment

FOLDER = ROOT / "runs" / "bench"
# What other parts measure alone: each prints its own figures.
ALONE = ("phases", "creamfl", "gca", "scale", "startup")


@dataclass(frozen=True)
class Contender:
    """Who takes part: a module of ``contenders``, an environment of its own, an engine."""

    module: str
    environment: str = ""
    engine: str = ""


CONTENDERS = {
    "motet": Contender("motet_side", engine="serial"),
    "motet-coalesced": Contender("motet_side", engine="coalesced"),
    "motet-auto": Contender("motet_side", engine="auto"),
    "plain": Contender("plain"),
    "limit": Contender("limit", engine="serial"),
    "limit-stacked": Contender("limit", engine="stacked"),
    "pfl": Contender("pfl_side", "pfl"),
    "flower": Contender("flower_side", "flower"),
}


def main(words: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; 1 when contenders disagreed or one could not play."""
    options = _options(words)
    works = options.work or [*WORKS, *ALONE]
    failed = False
    register()
    for name in works:
        folder = FOLDER / f"{name}-quick" if options.quick else FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            found = alone(name, options) if name in ALONE else measured(name, folder, options)
        except (DisagreementError, RuntimeError, subprocess.CalledProcessError) as error:
            print(f"{name}: NOT reported: {error}", file=sys.stderr, flush=True)
            failed = True
            continue
        (folder / "result.json").write_text(json.dumps(found, indent=1))
        print(summary(name, found), flush=True)
        if options.out is not None:
            write_results(options.out, name, found)
    return int(failed)


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [*WORKS, *ALONE]
    parser.add_argument("--work", action="append", choices=known, help="this one; may be repeated")
    parser.add_argument(
        "--against", action="append", choices=list(CONTENDERS), help="these contenders alone"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything work?")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each contender")
    parser.add_argument("--out", type=Path, help="write tables, figures and plot into this folder")
    return parser.parse_args(words)


def alone(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a script that measures by itself prints."""
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{name} failed: {result.stderr.strip()[-500:]}")
    shown = f"python -m benchmarks.{name}"
    return {"machine": machine(), "command": shown, "text": result.stdout.rstrip()}


def measured(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All contenders' rounds of one work; raises DisagreementError or RuntimeError."""
    work = work_named(name, options.quick)
    quick = ["--quick"] if options.quick else []
    command = [sys.executable, "-m", "benchmarks.plan", name, str(folder), *quick]
    subprocess.run(command, cwd=ROOT, check=True)
    at_first = machine()
    players: dict[str, Player] = {}
    missing: dict[str, str] = {}
    try:
        for wanted in options.against or CONTENDERS:
            reason = _unfit(CONTENDERS[wanted], work)
            if not reason:
                try:
                    players[wanted] = _start(wanted, name, folder, options, quick)
                except RuntimeError as error:
                    reason = str(error)
            if reason:
                print(f"{name}: without {wanted}: {reason}", file=sys.stderr, flush=True)
                missing[wanted] = reason
        if "plain" not in players:
            raise RuntimeError("the plain loop is what all are checked against, and did not start")
        rounds = play(work, players, folder)
        trained = [player for player in players if not player.startswith("limit")]
        checked = check(work, folder, trained)
        contenders = {
            who: {
                "rounds": [told["seconds"] for told in rounds[who][1:]],
                "cpu": [told["cpu"] for told in rounds[who][1:]],
                "first": rounds[who][0]["seconds"],
                "startup": player.startup,
                "peak": player.peak(),
                "versions": player.facts["versions"],
            }
            for who, player in players.items()
        }
        chosen = next((who for who in CHOSEN if who in players), None)
        profile = {} if chosen is None else {chosen: players[chosen].profile()}
    finally:
        for player in players.values():
            player.end()
    return {
        "title": work.title,
        "machine": {**at_first, "load after": machine()["load"]},
        "threads": options.threads,
        "checked": checked,
        "missing": missing,
        "contenders": contenders,
        "profile": profile,
    }


def _unfit(contender: Contender, work: Work) -> str:
    """Why a contender has no part in this work; empty when it has."""
    if contender.engine == "stacked" and (work.cohort == 1 or work.encoder["name"] != "pixel-mlp"):
        return "nothing to stack"
    if contender.module == "motet_side":
        try:
            parse_experiment(recipe(work, False, "benchmark-fedavg", contender.engine, 1))
        except ConfigError:
            return f"there is no engine {contender.engine}"
    return ""


def _start(
    who: str, work: str, folder: Path, options: argparse.Namespace, quick: list[str]
) -> Player:
    contender = CONTENDERS[who]
    python = str(python_of(contender.environment)) if contender.environment else sys.executable
    command = [python, "-m", f"benchmarks.contenders.{contender.module}", work, str(folder), *quick]
    command += ["--threads", str(options.threads)]
    if contender.engine:
        command += ["--engine", contender.engine]
    return Player(who, command, folder / f"{who}.log", options.threads)


def play(work: Work, players: dict[str, Player], folder: Path) -> dict[str, list[dict[str, float]]]:
    """All rounds, in turn, beginning with another contender each time."""
    told: dict[str, list[dict[str, float]]] = {who: [] for who in players}
    names = list(players)
    kept = {0: "1", work.rounds - 2: "end"}
    for number in range(work.rounds - 1):
        start = number % len(names)
        for who in names[start:] + names[:start]:
            path = folder / f"{who}-{kept[number]}.npz" if number in kept else None
            told[who].append(players[who].play(path))
    return told


if __name__ == "__main__":
    sys.exit(main())
