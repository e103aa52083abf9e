"""FOT: tasks one after the other; updates keep out of what earlier tasks' inputs span."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from motet.core import (
    ConfigError,
    Facts,
    Federation,
    Kind,
    Replies,
    Site,
    Tree,
    at_site,
    load,
    minus,
    weights_of,
)
from motet.evaluate import continual
from motet.methods.local import LocalSGD, Sampled
from motet.nn.subspace import Draw, grown, projected, sketch_inputs


class FOT(Sampled):
    """Continual federated learning: the mean update is projected out of old tasks' inputs.

    Paper: Bakman, Yaldiz, Ezzeldin, Avestimehr, "Federated Orthogonal Training: Mitigating Global
    Catastrophic Forgetting in Continual Federated Learning", ICLR 2024, arXiv 2309.01289.

    Travels: the model's weights down and up; in the last round of a task also the bases down and
    a random sketch of every layer's inputs up.

    Use: tasks come one after the other at all sites at once, old rows are gone, and old tasks must
    not be forgotten.

    Avoid: so many tasks that the bases fill the layers; sites that are at different tasks.

    Deviations: one head for all tasks (the permuted-input setting), whose weight is projected as
    well. Biases and norms are averaged as in FedAvg, and drift.
    """

    setting: ClassVar[str] = "fot-digits"

    rounds: int = Field(100, ge=1, description="communication rounds, shared evenly by the tasks")
    tasks: int = Field(5, ge=1, description="tasks in sequence, by the rows' column task from 0")
    local: LocalSGD = LocalSGD(lr=0.01, batch=64, weight_decay=1e-5)
    keep: float = Field(0.95, gt=0, lt=1, description="share of the inputs' energy to protect")
    keep_step: float = Field(0.0, ge=0, lt=1, description="added to keep after every task")
    sketch: float = Field(1.0, gt=0, description="columns of a sketch per length of the inputs")
    draw: Draw = Field("normal", description="law of the sketches' random matrices")
    project: bool = Field(True, description="false: FedAvg on the same tasks (the baseline)")

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if self.rounds % self.tasks:
            raise ConfigError(
                f"FOT shares its rounds evenly by the tasks: write method.rounds as a multiple of "
                f"{self.tasks}, not {self.rounds}"
            )

    def run(self, fed: Federation) -> None:
        tests = continual.by_task(fed.test, self.tasks)
        fed.state["bases"] = {}
        fed.state["accuracy"] = []
        each = self.rounds // self.tasks
        for number in fed.rounds(self.rounds):
            task = number // each
            last = (number + 1) % each == 0
            sketch = self.project and last
            payload = {"task": task, "bases": fed.state["bases"] if sketch else None}
            start = weights_of(fed.model)
            replies = self.ask(fed, self.train, weights=start, **payload)
            load(fed.model, stepped(start, replies.mean("weights"), fed.state["bases"]))
            if sketch:
                fed.state["bases"] = self.learnt(fed.state["bases"], replies, task)
            if last:
                found = continual.accuracies(fed.model, tests[: task + 1])
                fed.state["accuracy"] = [*fed.state["accuracy"], found]
                self.tell(fed)
            fed.report()

    @at_site(
        sends={"weights": Kind.WEIGHTS, "sketch": Kind.SKETCH},
        takes={"bases": Kind.SKETCH},
        optional=("sketch",),
    )
    def train(self, site: Site, weights: Tree, task: int, bases: Tree | None) -> Tree:
        """One round on the rows of one task; with bases, a sketch of what the layers read."""
        data = continual.rows_of(site.data, task, self.tasks)
        site.load(weights)
        self.local.train(site, data=data)
        reply: Tree = {"weights": weights_of(site.model), "samples": len(data)}
        if bases is not None:
            batches = site.prepared(data).batches(self.local.batch)
            rng = site.rng("sketch")
            found = sketch_inputs(site.model, batches, bases, rng, size=self.sketch, draw=self.draw)
            reply["sketch"] = {name: sketch.total for name, sketch in found.items()}
            reply["ratio"] = {name: sketch.ratio for name, sketch in found.items()}
        return reply

    def learnt(self, bases: Tree, replies: Replies, task: int) -> Tree:
        """The bases with the main directions of this task's inputs added."""
        ratios = replies.mean("ratio", by="samples")
        keep = min(self.keep + task * self.keep_step, 1.0)
        sums: dict[str, Tensor] = {
            name: sum(sketches[name] for sketches in replies.having("sketch").values())
            for name in ratios
        }
        return {
            name: grown(bases.get(name), total, ratios[name], keep) for name, total in sums.items()
        }

    def tell(self, fed: Federation) -> None:
        """Logs what the task that has just ended did to all accuracies, and the bases' ranks."""
        table = fed.state["accuracy"]
        now = {f"task {task + 1}": value for task, value in enumerate(table[-1])}
        ranks = {f"rank {name}": basis.shape[1] for name, basis in fed.state["bases"].items()}
        fed.log(
            ACC=continual.average(table),
            FGT=continual.forgotten(table),
            learnt=continual.learnt(table),
            **now,
            **ranks,
        )


def stepped(start: Tree, mean: Tree, bases: Tree) -> Tree:
    """The mean weights, but for what they change along the bases: start - (start - mean)(I - UU^T).

    start, mean: weights by name. bases: weight name -> U [d, r]; a weight without one is the mean.
    """
    changed = {
        name: start[name] - projected(minus(start[name], mean[name]), basis)
        for name, basis in bases.items()
    }
    return {**mean, **changed}
