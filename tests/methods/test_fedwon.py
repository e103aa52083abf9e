from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods import labelled
from torch import nn

from motet.core import ConfigError, Kind, Site, Tree, at_site, mean, weights_of
from motet.core.batch import Batch
from motet.core.rng import generator
from motet.core.tree import clone
from motet.experiment.runner import Result
from motet.experiment.runner import run as run_recipe
from motet.methods.fedavg import FedAvg
from motet.methods.fedwon import FedWon
from motet.methods.local import LocalSGD
from motet.nn.norm_free import WSConv2d, norm_free

MODEL = "{width: 8, image: {name: cnn, side: 8, maps: [4, 4], kernel: 3, norm: batch}}"
CNN = (f"server={MODEL}", f"populations.site.models=[{MODEL}]")
LOCAL = LocalSGD(lr=0.1, batch=8)


def go(method: FedAvg | FedWon, *settings: str) -> Result:
    made = labelled.recipe("fedavg", *CNN, *settings).model_copy(update={"method": method})
    return run_recipe(made, parties=labelled.parties(made))


def won(**fields: Any) -> FedWon:
    return FedWon(**{"rounds": 2, "local": LOCAL, "agc": None, **fields})


class Transformed(FedAvg):
    """Federated averaging of the same network, by another road."""

    def transform(self, model: nn.Module) -> nn.Module:
        norm_free(model)
        return model


def test_without_clipping_it_is_federated_averaging_of_the_changed_model() -> None:
    assert go(won()).hash == go(Transformed(rounds=2, local=LOCAL)).hash
    assert go(won()).hash != go(FedAvg(rounds=2, local=LOCAL)).hash


def test_a_limit_that_is_never_reached_changes_nothing() -> None:
    assert go(won(agc=1e6)).hash == go(won()).hash
    assert go(won(agc=0.05)).hash != go(won()).hash


def test_clipping_holds_every_unit_but_those_of_the_classifier() -> None:
    before = go(won(agc=1e-9, local=LocalSGD(steps=0)))
    after = go(won(agc=1e-9))
    for name, old in weights_of(before.model).items():
        moved = float((weights_of(after.model)[name] - old).abs().max())
        assert moved > 1e-3 if name.startswith("head") else moved < 1e-5


def test_clipping_acts_on_the_raw_gradient_before_momentum() -> None:
    model = won().transform(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()))
    with torch.no_grad():
        model[0].weight.fill_(0.1)
    model[0].weight.grad = torch.ones(2, 1, 3, 3)
    rows = torch.arange(3)
    won(agc=0.1).clip(model, Batch({}, {}, None, rows))
    torch.testing.assert_close(model[0].weight.grad.flatten(1).norm(dim=1), torch.full((2,), 0.03))


def test_nothing_but_raw_parameters_travels_and_no_norm_is_left() -> None:
    result = go(won())
    assert not list(result.model.buffers())
    assert not [part for part in result.model.modules() if "Norm" in type(part).__name__]
    convolutions = [part for part in result.model.modules() if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == 2
    assert all(isinstance(part, WSConv2d) and part.bias is not None for part in convolutions)


def test_the_hub_averages_raw_weights_by_rows() -> None:
    sent: list[Tree] = []

    class Watched(FedWon):
        @at_site(sends={"weights": Kind.WEIGHTS})
        def train(self, site: Site, weights: Tree) -> Tree:
            sent.append(clone(super().train(site, weights)))
            return sent[-1]

    share = "populations.site.partition={name: dirichlet, alpha: 0.5, min_rows: 4}"
    result = go(Watched(**won(rounds=1).model_dump()), share)
    sizes = [float(reply["samples"]) for reply in sent]
    assert len(set(sizes)) > 1
    expected = mean([reply["weights"] for reply in sent], sizes)
    found = weights_of(result.model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    # Rows of what the convolutions use all have one length: these are not averages of those.
    assert float(expected["encoders.image.layers.0.weight"].flatten(1).norm(dim=1).std()) > 1e-3


def test_batches_of_one_row_can_be_trained() -> None:
    result = go(won(rounds=1, local=LocalSGD(lr=0.02, batch=1)))
    assert 0 <= result.last("accuracy") <= 100


def test_sites_evaluate_the_model_as_they_receive_it() -> None:
    result = go(won())
    points = {
        event["point"]
        for event in result.events
        if event["event"] == "metric" and event["party"] != "hub"
    }
    assert points == {"as received"}
    # All test rows are every site's here, so that each sees what the hub sees.
    assert result.last("accuracy", "site-1") == result.last("accuracy")


def test_a_model_without_convolutions_is_refused_before_the_first_round() -> None:
    with pytest.raises(ConfigError, match="standardises convolutions"):
        labelled.go({"name": "fedwon", "rounds": 1})


def test_equal_starts_stay_equal() -> None:
    made = labelled.recipe("fedavg", *CNN).model_copy(update={"method": won(gain=True)})
    parties = labelled.parties(made)
    hub = weights_of(parties.build_server())
    site = weights_of(parties.sites[0].build())
    assert hub.keys() == site.keys()
    assert all(torch.equal(hub[name], site[name]) for name in hub)
    assert "encoders.image.layers.0.gain" in hub


def test_per_tensor_statistics_without_gamma_fail_the_row_test() -> None:
    weight = torch.randn(6, 3, 5, 5, generator=generator(0)) + torch.arange(6).view(-1, 1, 1, 1)
    wrong = (weight - weight.mean()) / weight.std()
    assert float((wrong.flatten(1).norm(dim=1) - 1.7129).abs().max()) > 1
