"""Ditto: two models, and what the pull between them does in its limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods import labelled
from tests.methods.plain import WHOLE, Plain, cohorts, flat
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from motet.core import Federation, Kind, Site, Tree, at_site, load, weights_of
from motet.experiment.runner import run
from motet.methods.ditto import Ditto

MODEL = "{width: 8, image: {name: cnn, side: 8, maps: [4, 4], kernel: 3, norm: batch}}"
CNN = (f"server={MODEL}", f"populations.site.models=[{MODEL}]")


def ditto(rounds: int = 4, cohort: int = 2, **more: Any) -> dict[str, Any]:
    local = {**labelled.LOCAL, **more.pop("local", {})}
    return {"name": "ditto", "rounds": rounds, "cohort": cohort, "local": local, **more}


def states_of(fed: Federation) -> dict[str, Any]:
    fed.start()
    return {name: door._kept["state"] for name, door in fed.engine._doors.items()}


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("settings", [(), CNN])
def test_the_global_model_is_that_of_fedavg_to_the_bit(
    lam: float, settings: tuple[str, ...]
) -> None:
    ours = labelled.go(ditto(lam=lam), *settings)
    assert ours.hash == labelled.go({**ditto(), "name": "fedavg"}, *settings).hash


class Alone(Ditto):
    """Local training and nothing else."""

    @at_site(sends={"weights": Kind.WEIGHTS})
    def train(self, site: Site, weights: Tree) -> Tree:
        if "model" in site.state:
            load(site.model, site.state["model"])
        self.local.train(site, key="personal")
        site.state["model"] = weights_of(site.model)
        return {"weights": weights, "samples": len(site.data)}


@pytest.mark.parametrize("settings", [(), CNN])
def test_without_pull_the_personal_models_are_local_training(settings: tuple[str, ...]) -> None:
    ours = states_of(labelled.federation(ditto(lam=0.0), *settings))
    method = Alone(rounds=4, cohort=2, local=labelled.LOCAL)
    wanted = labelled.recipe("fedavg", *settings).model_copy(update={"method": method})
    kept: dict[str, Any] = {}

    class Spy(Alone):
        @at_site(sends={"weights": Kind.WEIGHTS})
        def train(self, site: Site, weights: Tree) -> Tree:
            reply = super().train(site, weights)
            kept[site.name] = site.state["model"]
            return reply

    spied = wanted.model_copy(update={"method": Spy(**dict(method))})
    run(spied, parties=labelled.parties(spied))
    assert kept
    for name, model in kept.items():
        for key, value in model.items():
            assert torch.equal(ours[name]["model"][key], value), key


def reference(
    plain: Plain, rounds: list[list[str]], lr: float, lam: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Algorithm 1 on flat vectors, with three local steps on each model."""
    w = plain.start
    personal = dict.fromkeys(plain.gradients, plain.start)
    for sites in rounds:
        sent = []
        for name in sites:
            x, v = w, personal[name]
            for _ in range(3):
                x = x - lr * plain.gradients[name](x)
                v = v - lr * (plain.gradients[name](v) + lam * (v - w))
            personal[name] = v
            sent.append(x)
        w = torch.stack(sent).mean(dim=0)
    return w, personal


@pytest.mark.parametrize("lam", [0.5, 2.0])
def test_it_is_the_papers_algorithm(lam: float) -> None:
    method = ditto(rounds=5, lam=lam, local={**WHOLE, "steps": 3})
    result = labelled.go(method)
    rounds = cohorts(result)
    assert len({tuple(sites) for sites in rounds}) > 1
    w, personal = reference(Plain(method), rounds, 0.1, lam)
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(flat(result), w, **close)
    fed = labelled.federation(method)
    names = [name for name, _ in fed.model.named_parameters()]
    for site, state in states_of(fed).items():
        found = parameters_to_vector([state["model"][name] for name in names])
        torch.testing.assert_close(found, personal[site], **close)


def test_personal_models_never_travel() -> None:
    sent = [e for e in labelled.go(ditto()).events if e.get("op") == "train"]
    other = [e for e in labelled.go({**ditto(), "name": "fedavg"}).events if e.get("op") == "train"]
    assert [event["up"] for event in sent] == [event["up"] for event in other]
    assert [event["down"] for event in sent] == [event["down"] for event in other]


def test_the_global_model_is_tested_as_received_and_the_personal_one_after_training() -> None:
    fed = labelled.federation(ditto())
    states = states_of(fed)
    site = fed.engine._doors["site-1"].site
    site.load_tree({})
    site.state = dict(states["site-1"])
    fed.method.evaluate(site, received=weights_of(fed.model))
    for key, value in weights_of(fed.model).items():
        assert torch.equal(site.model.state_dict()[key], value), key
    fed.method.evaluate(site)
    for key, value in states["site-1"]["model"].items():
        assert torch.equal(site.model.state_dict()[key], value), key
    points = {e["point"] for e in labelled.go(ditto()).events if e["event"] == "metric"}
    assert points == {"hub", "as received", "after local training"}
