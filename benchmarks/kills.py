"""Hub, agents and couriers killed at random moments: no run may be lost, no bit may differ.

    python -m benchmarks.kills processes [KILLS] [SEED]
    python -m benchmarks.kills FOLDER [KILLS] [SEED]

processes: runs CreamFL on emoji with sites in processes of their own, and kills the hub or one of
the agents with SIGKILL. FOLDER: what `motet deploy` wrote, whose hub, agents and couriers are
started here, on this machine, and killed one at a time; each is started again by its own script.
"hub" is the process in which the courier runs the method, "command" the one that follows it.
Exits with 1 when a run does not end, or ends in other weights than the undisturbed simulation.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from pathlib import Path

import yaml

import motet
from benchmarks.deployment import Bare, Federation, opened, short_folder
from motet.experiment.recipes import shipped_recipe
from motet.experiment.runner import run
from motet.experiment.spec import parse_experiment, with_settings

SETTINGS = ["method.rounds=6", "method.server={epochs: 1, first_epochs: 2}"]
# Seconds within which a run must end that nobody disturbs any more.
PATIENCE = 900.0


def disturbed(
    made: Federation, chance: random.Random, kills: int, pauses: tuple[float, float], wanted: str
) -> Counter[str]:
    """One run to its end, with at most so many kills; who was killed.

    pauses: least and most seconds between two kills. wanted: the hash of the run in one process.
    """
    struck: Counter[str] = Counter()
    begin = time.monotonic()
    made.begin()
    moment = time.monotonic() + chance.uniform(*pauses)
    while not made.over() and time.monotonic() < moment + PATIENCE:
        time.sleep(0.02)
        if struck.total() < kills and time.monotonic() >= moment:
            who = chance.choice(made.parts())
            made.strike(who)
            struck[who.split()[-1]] += 1
            print(f"{time.monotonic() - begin:5.0f} s: {dict(struck)}", flush=True)
            moment = time.monotonic() + chance.uniform(*pauses)
    ended, seconds = made.hash(), time.monotonic() - begin
    print(f"{struck.total()} kills in {seconds:.0f} s; ended in {ended}, undisturbed {wanted}")
    if ended != wanted:
        sys.exit(made.words())
    return struck


def in_processes(kills: int, seed: int) -> None:
    """Runs until so many kills have struck."""
    values = with_settings(shipped_recipe("creamfl-emoji"), SETTINGS)
    wanted = run(parse_experiment(values)).hash
    values = with_settings(values, ["engine.name=processes", "engine.processes=2"])
    text = yaml.safe_dump(parse_experiment(values).plain(), sort_keys=False)
    chance = random.Random(seed)
    span, total = 0.0, 0
    while not span or total < kills:
        begin = time.monotonic()
        with short_folder() as folder, Bare(folder, folder / "run") as made:
            made.run.mkdir()
            (made.run / "recipe.yaml").write_text(text)
            # The first is left alone, to see how long a run takes.
            left = kills - total if span else 0
            total += disturbed(made, chance, left, (0, span), wanted).total()
        span = span or time.monotonic() - begin


def over_a_courier(folder: Path, kills: int, seed: int) -> None:
    """Runs a deployment to its end under kills."""
    with opened(folder) as made:
        wanted = run(made.experiment).hash
        print(f"undisturbed in one process: {wanted}", flush=True)
        disturbed(made, random.Random(seed), kills, (3, 40), wanted)


def main() -> None:
    """Does what the command line says."""
    what = sys.argv[1] if len(sys.argv) > 1 else "processes"
    kills = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    print(f"motet {motet.__version__}: {kills} kills, seed {seed}")
    if what == "processes":
        in_processes(kills, seed)
    else:
        over_a_courier(Path(what), kills, seed)


if __name__ == "__main__":
    main()
