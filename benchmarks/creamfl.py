"""A CreamFL round against a straightforward implementation and the passes that it cannot avoid.

    python -m benchmarks.creamfl [--rounds 6] [--recipe recipes/creamfl-emoji.yaml]

The demo's sites on emoji. Four contenders take turns round by round in one process, from the same
weights, over the same rows in the same order:

- Motet, engine ``serial``, with the evaluation of hub and sites;
- straightforward.py: inputs made at every access, as the official code does;
- straightforward.py with its inputs made once beforehand;
- bare: the models' forward and backward passes and optimiser steps on batches that are ready, and
  the encoding of public and test rows. Aggregation, metrics and all else are not timed.

After every round each party's number of steps must be equal, and the servers' embeddings and recall
the same but for rounding (which other rows, or another order, would not leave so), or nothing is
reported. Times are processor time of one thread; the first round, which prepares inputs, is left
out. Peak memory is that of a process that runs one contender alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import motet
from benchmarks import straightforward as plain
from motet.core import Dataset
from motet.core.events import Event, Events
from motet.core.rng import generator
from motet.data import emoji
from motet.experiment.build import Parties, build_parties
from motet.experiment.runner import _federation
from motet.experiment.spec import Experiment, parse_experiment, read_recipe
from motet.nn.functional import gca, info_nce, inter_contrast, intra_contrast, squared_distance

SHOWN = {
    "motet": "Motet",
    "access": "straightforward, inputs at every access",
    "ready": "straightforward, inputs made once",
    "bare": "bare forward and backward passes",
}
# Rounding differs (Adam fused or not, sums in another order), and training multiplies it.
CLOSE = 1e-3
CLOSE_RSUM = 1.0


def main() -> None:
    """Measures, checks and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="the first one is not counted")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/creamfl-emoji.yaml"))
    parser.add_argument(
        "--without", choices=SHOWN, nargs="*", default=[], help="contenders to leave out"
    )
    parser.add_argument("--alone", choices=SHOWN, help="run this one alone, print its peak memory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = read_recipe(options.recipe)
    recipe["method"]["rounds"] = options.rounds
    recipe["method"]["cohort"] = sum(p["count"] for p in recipe["populations"])
    experiment = parse_experiment(recipe)
    if options.alone:
        Race(experiment, [options.alone]).run()
        print(peak())
        return
    names = [name for name in SHOWN if name not in options.without]
    race = Race(experiment, names)
    race.run()
    report(race.seconds, {name: alone(name, options.recipe) for name in names})


def alone(name: str, recipe: Path) -> int:
    """Peak memory, in MB, of a process that runs one round of one contender."""
    words = ["-m", "benchmarks.creamfl", "--rounds", "1", "--recipe", str(recipe), "--alone", name]
    done = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def peak() -> int:
    """This process's own peak of resident memory in MB (Linux).

    Not from getrusage, whose figure begins with that of the process which started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def report(seconds: dict[str, list[float]], memory: dict[str, int]) -> None:
    """Prints each contender's time per round, and how Motet compares."""
    seconds = {name: times[1:] for name, times in seconds.items()}
    count = len(seconds["motet"])
    print(f"motet {motet.__version__}, torch {torch.__version__}, 1 thread, {count} rounds each")
    print("| contender | seconds per round | Motet is | peak memory |")
    print("|---|---|---|---|")
    for name in seconds:
        ratios = [a / b for a, b in zip(seconds["motet"], seconds[name], strict=True)]
        spread = f"{median(ratios):.3f} x ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"| {SHOWN[name]} | {median(seconds[name]):.3f} | {spread} | {memory[name]} MB |")


class Race:
    """The contenders by turns: every round of Motet is followed by one of each of the others."""

    def __init__(self, experiment: Experiment, names: Sequence[str]) -> None:
        self.experiment = experiment
        self.names = names
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        parties = build_parties(experiment)
        made = {"access": False, "ready": True}
        self.others: dict[str, Any] = {
            name: Bare(experiment, parties)
            if name == "bare"
            else straightforward(experiment, parties, made[name])
            for name in names
            if name != "motet"
        }
        self.parties = parties

    def run(self) -> None:
        """All rounds; raises SystemExit when the contenders do not do the same."""
        if "motet" not in self.names:
            method: Any = self.experiment.method
            for number in range(method.rounds):
                self.turn(number)
            return
        events = Events()
        fed = _federation(self.experiment, self.parties, None, events)
        report = fed.report
        started = time.process_time()

        def stop(*args: Any, **more: Any) -> None:
            nonlocal started
            report(*args, **more)
            self.note("motet", time.process_time() - started)
            self.turn(fed.round)
            self.compare(fed, events.memory)
            started = time.process_time()

        fed.report = stop  # type: ignore[method-assign]
        fed.start()

    def turn(self, number: int) -> None:
        """One round of each of the others, in an order that changes."""
        others = list(self.others.items())
        for name, other in others if number % 2 else reversed(others):
            started = time.process_time()
            other.round(number)
            paused = getattr(other, "paused", 0.0)
            self.note(name, time.process_time() - started - paused)

    def note(self, name: str, seconds: float) -> None:
        """Keeps a time; ``report`` leaves the first round's out."""
        self.seconds[name].append(seconds)

    def compare(self, fed: Any, events: Sequence[Event]) -> None:
        """Raises SystemExit unless all did the same steps and came to the same results."""
        doors = fed.engine._doors
        ours = {"hub": fed, **{name: door.site for name, door in doors.items()}}
        last = [e for e in events if e["event"] == "metric" and e["party"] == "hub"][-1]
        for name, other in self.others.items():
            for party, theirs in other.parties():
                wanted, found = steps(ours[party]), theirs.steps
                if wanted != found:
                    raise SystemExit(f"{name}, {party}: {found} steps where Motet took {wanted}")
            gap = embedding_gap(fed, other, self.parties.test)
            rsum = last["metrics"]["rsum"][0]
            theirs = other.evaluate(other.server)
            spent, wrong = self.seconds[name][-1], abs(theirs - rsum)
            own = self.seconds["motet"][-1]
            print(f"round {fed.round}: {name} {spent:.2f} s, Motet {own:.2f} s; ", end="")
            print(f"rsum {theirs:.2f} and {rsum:.2f}, embeddings differ by {gap:.1e}")
            if gap > CLOSE or wrong > CLOSE_RSUM:
                raise SystemExit(f"{name} came to other results than Motet: not the same work")


def steps(party: Any) -> int:
    """How many optimiser steps a party of Motet's has taken."""
    found = 0
    for optimizer in party._optimizers.values():
        found += max((int(state["step"]) for state in optimizer.inner.state.values()), default=0)
    return found


def embedding_gap(fed: Any, other: Any, test: Dataset) -> float:
    """Largest difference between the two servers' embeddings of the test rows."""
    gaps = []
    for name in ("image", "text"):
        ready = fed.model.prepare(test).columns[name]
        with torch.no_grad():
            theirs = F.normalize(other.server.model.encoders[name](ready), dim=-1)
        gaps.append(float((fed.encode(test, name) - theirs).abs().max()))
    return max(gaps)


def order_of(experiment: Experiment) -> Callable[..., tuple[Tensor, ...]]:
    """The order in which Motet goes through rows, as its keys give it."""
    seed = experiment.seed
    method: Any = experiment.method
    sizes = {
        "task": method.server.batch,
        "distil": method.distil.batch,
        "private": method.private.batch,
        "public": method.batch,
    }

    def order(kind: str, number: int, party: str, epoch: int, rows: int) -> tuple[Tensor, ...]:
        if party == "hub":
            word = "batches" if kind == "task" else kind
            rng = generator(seed, "hub", 0, number, word, epoch)
        else:
            rng = generator(seed, party, "contrast", f"0.{number}.1", f"{kind} {epoch}", 0)
        return torch.split(torch.randperm(rows, generator=rng), sizes[kind])

    return order


def model_of(build: Any) -> plain.Model:
    """Motet's model as a plain one: the same encoders and head, the same weights."""
    made = built(build)
    return plain.Model(made.encoders, made.head)


def built(build: Any) -> Any:
    """A party's model."""
    return build()


def straightforward(experiment: Experiment, parties: Parties, ready: bool) -> plain.CreamFL:
    """The straightforward implementation with the recipe's parties."""
    method: Any = experiment.method
    test = raw(parties.test, ready)
    assert parties.public is not None
    public = raw(parties.public, ready)
    server = plain.Party(model_of(parties.build_server), public, test, method.server.lr)
    sites = {
        spec.name: plain.Party(
            model_of(spec.build), raw(spec.data, ready), raw(spec.test, ready), method.private.lr
        )
        for spec in sorted(parties.sites, key=lambda spec: spec.name)
    }
    return plain.CreamFL(server, sites, public, method, order_of(experiment))


def raw(data: Dataset | None, ready: bool) -> plain.Rows:
    """The rows as files and strings, by their ids."""
    assert data is not None
    files = None
    if "image" in data.columns:
        pictures = emoji._table("pictures")["picture"]
        files = [pictures[int(row) // len(emoji.LANGUAGES)].as_py() for row in data.rows]
    texts: Any = data.columns.get("text")
    assert data.labels is not None
    return plain.Rows(files, texts, data.labels, ready)


class Ready(plain.Rows):
    """Rows as tensors that a model takes: modality -> [n, ...], in place of files and strings."""

    def __init__(self, model: Any, data: Dataset) -> None:
        assert data.labels is not None
        super().__init__(None, None, data.labels)
        self.columns = dict(model.prepare(data).columns)

    def take(self, at: Tensor) -> dict[str, Tensor]:
        """The rows at these positions."""
        return {**{k: v[at] for k, v in self.columns.items()}, "label": self.labels[at], "row": at}


class Bare(plain.CreamFL):
    """The same on tensors that are ready, and without what is no pass through a model.

    ``paused`` is the time of the round that does not count.
    """

    def __init__(self, experiment: Experiment, parties: Parties) -> None:
        method: Any = experiment.method
        assert parties.public is not None
        self.order = order_of(experiment)
        self.method = method
        self.server = bare_party(
            parties.build_server, parties.public, parties.test, method.server.lr
        )
        self.sites = {
            spec.name: bare_party(spec.build, spec.data, spec.test, method.private.lr)
            for spec in sorted(parties.sites, key=lambda spec: spec.name)
        }
        self.ready = {
            spec.name: Ready(built(spec.build), parties.public.only(spec.data.modalities))
            for spec in parties.sites
        }
        self.before: dict[str, dict[str, Tensor]] = {}
        self.paused = 0.0

    def batches(
        self, kind: str, number: int, party: str, epoch: int, data: plain.Rows
    ) -> Iterator[dict[str, Tensor]]:
        """Batches whose making does not count."""
        assert isinstance(data, Ready)
        started = time.process_time()
        made = [data.take(at) for at in self.order(kind, number, party, epoch, len(data))]
        self.paused += time.process_time() - started
        yield from made

    def round(self, number: int) -> float:
        """All passes of a round."""
        self.paused = 0.0
        settings = self.method.server
        public = self.server.data
        self.server.model.train()
        for epoch in range(settings.epochs + (settings.first_epochs if number == 0 else 0)):
            for batch in self.batches("task", number, "hub", epoch, public):
                z = self.server.model(batch)
                loss = info_nce(z["image"], z["text"], settings.loss.tau)
                self.server.step("task", loss, len(batch["row"]))
        ours = embed(self.server.model, public)
        sent: dict[str, list[Tensor]] = {"image": [], "text": []}
        for name, site in self.sites.items():
            self.before[name] = self.turn(name, site, number, ours)
            for modality, rows in self.before[name].items():
                sent[modality].append(rows)
        started = time.process_time()
        targets = {k: gca(rows, ours[plain.OTHER[k]])[0] for k, rows in sent.items()}
        self.paused += time.process_time() - started
        self.distil(number, targets)
        for party in (self.server, *self.sites.values()):
            embed(party.model, party.test)
        return 0.0

    def turn(
        self, name: str, site: plain.Party, number: int, ours: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """A site's passes; returns its embeddings of the public rows."""
        method, public = self.method, self.ready[name]
        before = self.before.get(name) or embed(site.model, public)
        site.model.train()
        for epoch in range(method.private.epochs):
            for batch in self.batches("private", number, name, epoch, site.data):
                if site.model.head is None:
                    z = site.model(batch)
                    loss = info_nce(z["image"], z["text"], method.private.pair.tau)
                else:
                    loss = F.cross_entropy(site.model.classify(batch), batch["label"])
                site.step("local", loss, len(batch["row"]))
            for batch in self.batches("public", number, name, epoch, public):
                z, at = site.model(batch), batch["row"]
                loss = sum(
                    (inter_contrast(z[k], ours[plain.OTHER[k]], at, method.tau) for k in z),
                    torch.zeros(()),
                )
                towards = torch.cat([ours[k][at] for k in z])
                away = torch.cat([before[k][at] for k in z])
                loss = loss + intra_contrast(torch.cat(list(z.values())), towards, away, method.tau)
                site.step("local", method.gamma * loss, len(at))
        return embed(site.model, public)

    def distil(self, number: int, targets: dict[str, Tensor]) -> None:
        """Step B's passes."""
        settings = self.method.distil
        self.server.model.train()
        for epoch in range(settings.epochs):
            for batch in self.batches("distil", number, "hub", epoch, self.server.data):
                z, at = self.server.model(batch), batch["row"]
                gaps = sum((squared_distance(z[k], targets[k][at]) for k in z), torch.zeros(()))
                task = info_nce(z["image"], z["text"], self.method.server.loss.tau)
                loss = settings.weight * gaps + settings.task_weight * task
                self.server.step("distil", loss, len(at))

    def evaluate(self, party: plain.Party) -> float:
        """rsum of a model of pairs; for the comparison alone."""
        z = embed(party.model, party.test)
        return plain.recalls(z["image"], z["text"])


def bare_party(build: Any, data: Dataset, test: Dataset | None, lr: float) -> plain.Party:
    """A party whose rows are ready tensors, with the optimiser that Motet uses."""
    assert test is not None
    made = build()
    model = plain.Model(made.encoders, made.head)
    party = plain.Party(model, Ready(made, data), Ready(made, test), lr)
    for name in ("task", "distil", "local"):
        party.optimizers[name] = torch.optim.AdamW(
            model.parameters(), lr, weight_decay=0, fused=True
        )
    return party


def embed(model: plain.Model, data: plain.Rows) -> dict[str, Tensor]:
    """Modality -> embeddings of all rows that are ready."""
    assert isinstance(data, Ready)
    model.eval()
    parts: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for at in torch.arange(len(data)).split(512):
            for name, z in model({k: v[at] for k, v in data.columns.items()}).items():
                parts.setdefault(name, []).append(z)
    return {name: torch.cat(z) for name, z in parts.items()}


if __name__ == "__main__":
    main()
