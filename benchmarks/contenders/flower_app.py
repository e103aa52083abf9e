"""What Flower's simulated clients do: a module of its own, which their processes import."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn import functional as F

from benchmarks.works import Plan, Work, network, work_named

app = ClientApp()


@lru_cache(maxsize=1)
def loaded() -> tuple[Work, Plan, nn.Module, torch.optim.Optimizer]:
    """Read once by every process, not by every client."""
    torch.set_num_threads(1)
    name, quick, folder = os.environ["BENCHMARK"].split(":", 2)
    work = work_named(name, quick == "quick")
    plan = Plan(Path(folder))
    model = network(work, plan.weights).train()
    return work, plan, model, torch.optim.SGD(model.parameters(), lr=work.lr, foreach=True)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Loads the weights, takes the steps, answers with the weights."""
    work, plan, model, optimizer = loaded()
    content: Any = message.content
    number = int(content["config"]["server-round"]) - 1
    member = int(context.node_config["partition-id"])
    model.load_state_dict(content["arrays"].to_torch_state_dict())
    for rows in plan.order[number, member]:
        optimizer.zero_grad()
        F.cross_entropy(model(plan.x[rows]), plan.y[rows]).backward()
        optimizer.step()
    answer = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": work.rows}),
        }
    )
    return Message(content=answer, reply_to=message)
