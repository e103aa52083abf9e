"""Apple's pfl-research: federated averaging in its simulated backend, users' rows in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor
from torch.nn import functional as F

from benchmarks.contenders.gate import Gate, arguments
from benchmarks.works import Plan, Work, network


def with_loss(model: Any) -> Any:
    """The network itself with the loss and the metrics that pfl asks for: no layer around it."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    def metrics(x: Tensor, y: Tensor) -> dict[str, Any]:
        # Asked for in the first round alone, which is not counted.
        with torch.no_grad():
            return {"loss": Weighted(float(loss(x, y)) * len(y), len(y))}

    model.loss, model.metrics = loss, metrics
    return model


def users(work: Work, plan: Plan) -> FederatedDataset:
    """Member by member of round after round, its rows in the order of the plan."""

    def members() -> Iterator[tuple[int, int]]:
        for number in range(work.rounds):
            yield from ((number, member) for member in range(work.cohort))

    def rows_of(user: tuple[int, int]) -> PyTorchTensorDataset:
        rows = plan.rows(*user)
        return PyTorchTensorDataset((plan.x[rows], plan.y[rows]), user_id=str(user))

    todo = members()
    return FederatedDataset(rows_of, lambda: next(todo))


class AtGate(TrainingProcessCallback):
    """Waits at the gate after every round."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
        """Tells what the round took, and waits for the next."""
        self.gate.finish(model.pytorch_model.state_dict)
        self.gate.begin()
        return False, Metrics()


def main() -> None:
    """Plays rounds as told."""
    gate = Gate()
    work, plan, options = arguments()
    logging.disable()
    torch.set_num_threads(options.threads)
    inner = with_loss(network(work, plan.weights).train())
    # The hub takes the mean of the models: a step of 1 along the mean difference.
    central = torch.optim.SGD(inner.parameters(), lr=1.0)
    model = PyTorchModel(inner, torch.optim.SGD, central)
    data = users(work, plan)
    backend = SimulatedBackend(training_data=data, val_data=data)
    steps = NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=work.lr, local_batch_size=work.batch
    )
    rounds = NNAlgorithmParams(
        central_num_iterations=work.rounds,
        evaluation_frequency=10 * work.rounds,
        train_cohort_size=work.cohort,
        val_cohort_size=0,
    )
    gate.ready(versions={"pfl": version("pfl"), "torch": torch.__version__})
    gate.begin()
    FederatedAveraging().run(
        rounds,
        backend,
        model,
        steps,
        callbacks=[AtGate(gate)],
        send_metrics_to_platform=False,
    )


if __name__ == "__main__":
    main()
