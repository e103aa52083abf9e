"""Moments that an optimiser keeps from fit to fit, where each fit moves other parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core import (
    SGD,
    Adam,
    Batch,
    Dataset,
    Events,
    Kind,
    Method,
    Output,
    Request,
    Site,
    SiteSpec,
    Tree,
    at_site,
    weights_of,
)
from motet.core.rng import generator, seeded
from motet.engines.coalesced import Coalesced
from motet.engines.serial import Serial

NAMES = ("ada", "ben", "cleo")


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)
        self.other = nn.Linear(8, 2)

    def forward(self, batch: Batch) -> Output:
        hidden = torch.tanh(self.first(batch.inputs["x"]))
        return Output(self.head(hidden), {"x": self.other(hidden)})


def classify(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(batch).logits
    assert logits is not None
    assert batch.labels is not None
    return F.cross_entropy(logits, batch.labels)


def shrink(model: nn.Module, batch: Batch) -> Tensor:
    found: Tensor = model(batch).features["x"].square().mean()
    return found


class Alternating(Method):
    """The first pass moves one head, the second one the other; the third one both by turns."""

    adam: bool = True

    @at_site(sends={"weights": Kind.WEIGHTS}, keeps="model")
    def train(self, site: Site) -> Tree:
        spec = Adam(0.05, weight_decay=0.1) if self.adam else SGD(0.1, momentum=0.9)
        for number, loss in enumerate((classify, shrink, classify)):
            optimizer = site.optimizer("own", spec)
            site.fit(loss, site.batches(site.data, 4, key=number), optimizer)
        moments = site.tree()["optimizers"]["own"]["moments"]
        return {"weights": {**weights_of(site.model), "moments": moments}}


def built(name: str) -> nn.Module:
    with seeded(0, name, "model"):
        return TwoHeads()


def spec(name: str, count: int) -> SiteSpec:
    rng = generator(0, name, "rows")
    x, labels = torch.randn(count, 6, generator=rng), torch.randint(0, 3, (count,), generator=rng)
    return SiteSpec(name, Dataset({"x": x}, labels), None, partial(built, name))


def answers(kind: Callable[..., Serial], method: Method, op: str, rounds: int) -> list[Tree]:
    sites = [spec(name, 9 + number) for number, name in enumerate(NAMES)]
    events = Events()
    together: dict[str, Any] = {"events": events} if kind is Coalesced else {}
    engine = kind(sites, method, seed=0, **together)
    found: list[Tree] = []
    for number in range(rounds):
        engine.send([Request(name, op, f"{number}.0.1", number) for name in NAMES])
        for _ in NAMES:
            reply = engine.recv()
            assert reply is not None
            assert reply.value is not None, reply.error
            found.append(reply.value)
    chosen = {event["chosen"] for event in events.memory if event["event"] == "fits"}
    assert chosen == ({"coalesced"} if kind is Coalesced else set())
    return found


@pytest.mark.parametrize("adam", [True, False], ids=["adam", "momentum"])
def test_each_parameter_has_moments_and_steps_of_its_own(adam: bool) -> None:
    method = Alternating(adam=adam)
    alone, together = (answers(kind, method, "train", 2) for kind in (Serial, Coalesced))
    for one, other in zip(alone, together, strict=True):
        _agree(one["weights"], other["weights"])


def _agree(one: Tree, other: Tree) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            _agree(value, other[key])
        elif isinstance(value, Tensor):
            torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-6)
        else:
            assert other[key] == value


class FirstPass(Alternating):
    @at_site(sends={"moments": Kind.WEIGHTS}, keeps="model")
    def once(self, site: Site) -> Tree:
        site.fit(classify, site.batches(site.data, 4), site.optimizer("own", Adam(0.05)))
        return {"moments": site.tree()["optimizers"]["own"]["moments"]}


@pytest.mark.parametrize("kind", [Serial, Coalesced])
def test_what_has_no_gradient_gets_no_moments(kind: Callable[..., Serial]) -> None:
    for value in answers(kind, FirstPass(), "once", 1):
        # Weight and bias of the first layer and of the first head.
        assert list(value["moments"]) == ["0", "1", "2", "3"]
