"""Hub, agents and couriers killed at random moments: no run may be lost, no bit may differ.

    python benchmarks/kills.py processes [KILLS] [SEED]
    python benchmarks/kills.py FOLDER [KILLS] [SEED]

processes: runs CreamFL on emoji with sites in processes of their own, and kills the hub or one of
the agents with SIGKILL. FOLDER: what `motet deploy` wrote, whose hub, agents and couriers are
started here, on this machine, and killed one at a time; each is started again by its own script.
"hub" is the process in which the courier runs the method, "command" the one that follows it.
Exits with 1 when a run does not end, or ends in other weights than the undisturbed simulation.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

import motet
from motet.experiment.recipes import shipped_recipe
from motet.experiment.runner import run
from motet.experiment.spec import parse_experiment, read_recipe, with_settings

SETTINGS = ["method.rounds=6", "method.server={epochs: 1, first_epochs: 2}"]
# Seconds within which a part of a run must get further than the one before.
PATIENCE = 900.0
# What the process in which a courier runs the hub's method has in its command line.
RUNNERS = ("flwr-serverapp", "nvflare.private.fed.app.server.runner_process")
MOTET = [sys.executable, "-m", "motet"]


def killed(process: psutil.Process) -> None:
    """At once and without a word."""
    with suppress(psutil.NoSuchProcess):
        process.kill()


def last_event(folder: Path) -> dict[str, Any]:
    """The newest event of a run; empty where there is none yet."""
    path = folder / "events.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError:
            # The kill may have cut the last line.
            continue
        return found
    return {}


def disturbed(folder: Path, chance: random.Random, kills: int, span: float) -> Counter[str]:
    """One run in agent processes to its end, with at most so many kills; who was killed.

    span: seconds that a run takes without.
    """
    struck: Counter[str] = Counter()
    hub = subprocess.Popen([*MOTET, "resume", str(folder), "--quiet"])
    moment = time.monotonic() + chance.uniform(0, span)
    while hub.poll() is None:
        time.sleep(0.02)
        if struck.total() >= kills or time.monotonic() < moment:
            continue
        # The hub's child starts the agents.
        agents = [
            agent for child in psutil.Process(hub.pid).children() for agent in child.children()
        ]
        if agents and chance.random() < 0.6:
            killed(chance.choice(agents))
            struck["agent"] += 1
        else:
            hub.kill()
            hub.wait()
            struck["hub"] += 1
            hub = subprocess.Popen([*MOTET, "resume", str(folder), "--quiet"])
        moment = time.monotonic() + chance.uniform(0, span)
    if hub.returncode:
        sys.exit(f"the run ended with {hub.returncode}: {last_event(folder)}")
    return struck


def in_processes(kills: int, seed: int) -> None:
    """Runs until so many kills have struck; compares every run's hash with the simulation's."""
    values = with_settings(shipped_recipe("creamfl-emoji"), SETTINGS)
    wanted = run(parse_experiment(values)).hash
    values = with_settings(values, ["engine.name=processes", "engine.processes=2"])
    text = yaml.safe_dump(parse_experiment(values).plain(), sort_keys=False)
    chance = random.Random(seed)
    total: Counter[str] = Counter()
    span = 0.0
    while not span or total.total() < kills:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "run"
            folder.mkdir()
            (folder / "recipe.yaml").write_text(text)
            begin = time.monotonic()
            total += disturbed(folder, chance, kills - total.total() if span else 0, span)
            told = last_event(folder)
        span = span or time.monotonic() - begin
        ended = told.get("hash")
        print(f"killed so far: {dict(total)}; ended in {ended}, undisturbed {wanted}", flush=True)
        if ended != wanted:
            sys.exit(1)


class Deployed:
    """The parties of a deployment's folder, each service started by its own script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hub = folder / "hub"
        self.running: dict[Path, subprocess.Popen[bytes]] = {}

    def services(self) -> list[Path]:
        """Start scripts of everything that runs all the time, the hub's courier first."""
        found = sorted(self.folder.glob("*/start-*.sh"), key=lambda path: path.parent != self.hub)
        return [path for path in found if path.stem != "start-hub"]

    def start(self, script: Path) -> None:
        """Starts a service, in a group of processes of its own."""
        with script.with_suffix(".log").open("ab") as log:
            self.running[script] = subprocess.Popen(
                [script],
                stdout=log,
                stderr=log,
                env={**os.environ, "MOTET_ENV": sys.prefix},
                start_new_session=True,
            )

    def kill(self, script: Path) -> None:
        """Everything that the script started."""
        process = self.running.pop(script)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def runs(self) -> list[psutil.Process]:
        """The processes in which couriers run the hub's method."""
        found: list[psutil.Process] = []
        for process in self.running.values():
            for child in psutil.Process(process.pid).children(recursive=True):
                # It may end while it is looked at.
                with suppress(psutil.NoSuchProcess):
                    if any(name in " ".join(child.cmdline()) for name in RUNNERS):
                        found.append(child)
        return found

    def stop(self) -> None:
        """Ends all."""
        for script in list(self.running):
            self.kill(script)


def moments(chance: random.Random, kills: int) -> Iterator[float]:
    """Seconds between two kills."""
    for _ in range(kills):
        yield chance.uniform(3, 40)


def over_a_courier(folder: Path, kills: int, seed: int) -> None:
    """Runs a deployment to its end under kills; compares its hash with the simulation's."""
    chance = random.Random(seed)
    made = Deployed(folder)
    experiment = parse_experiment(read_recipe(made.hub / "recipe.yaml"))
    wanted = run(experiment).hash
    print(f"undisturbed in one process: {wanted}", flush=True)
    struck: Counter[str] = Counter()
    begin = time.monotonic()
    try:
        for script in made.services():
            made.start(script)
        command = [*MOTET, "hub", "--config", str(made.hub / "hub.yaml")]
        hub = subprocess.Popen(command)
        for pause in moments(chance, kills):
            end = time.monotonic() + pause
            while hub.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
            if hub.poll() is not None:
                break
            who = chance.choice([*made.services(), "hub", "command"])
            if who == "hub":
                runs = made.runs()
                for process in runs:
                    killed(process)
                struck["hub"] += bool(runs)
            elif who == "command":
                hub.kill()
                hub.wait()
                hub = subprocess.Popen(command)
                struck["command"] += 1
            elif isinstance(who, Path):
                made.kill(who)
                made.start(who)
                struck[who.stem.removeprefix("start-")] += 1
            print(f"{time.monotonic() - begin:5.0f} s: {dict(struck)}", flush=True)
        hub.wait(PATIENCE)
    finally:
        made.stop()
    told = last_event(made.hub / "run")
    seconds = time.monotonic() - begin
    print(f"{struck.total()} kills in {seconds:.0f} s; the run ended in {told.get('hash')}")
    if told.get("hash") != wanted:
        sys.exit(1)


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
