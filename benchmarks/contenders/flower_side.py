"""Flower's simulation: its FedAvg strategy, clients in Ray's actors, one per core.

There are as many clients as the cohort has members, so that nothing is kept for others.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.contenders.gate import Gate, arguments


class AtGate(FedAvg):
    """Flower's FedAvg that waits at the gate between rounds."""

    def __init__(self, gate: Gate, cohort: int) -> None:
        super().__init__(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=cohort,
            min_available_nodes=cohort,
        )
        self.gate = gate

    def configure_train(self, server_round: int, *rest: Any) -> Iterable[Message]:
        """Before the first round everything stands: that is when it is ready."""
        if server_round == 1:
            versions = {name: version(name) for name in ("flwr", "ray")}
            self.gate.ready(versions={**versions, "torch": torch.__version__})
            self.gate.begin()
        return super().configure_train(server_round, *rest)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        """Averages, tells what the round took, and waits for the next."""
        averaged: Any = super().aggregate_train(server_round, replies)
        self.gate.finish(averaged[0].to_torch_state_dict)
        self.gate.begin()
        return averaged


def main() -> None:
    """Plays rounds as told."""
    gate = Gate()
    work, plan, options = arguments()
    quick = "quick" if options.quick else "whole"
    os.environ["BENCHMARK"] = f"{work.name}:{quick}:{options.folder.resolve()}"
    from benchmarks.contenders.flower_app import app

    server = ServerApp()

    @server.main()
    def play(grid: Grid, context: Context) -> None:
        AtGate(gate, work.cohort).start(grid, ArrayRecord(plan.weights), num_rounds=work.rounds)

    warnings.simplefilter("ignore")
    run_simulation(
        server,
        app,
        num_supernodes=work.cohort,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


if __name__ == "__main__":
    main()
