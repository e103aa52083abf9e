"""FedProto: class means, their mean over sites, and the distance to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods.labelled import federation, go

from motet.core import Kind
from motet.methods.fedproto import (
    FedProto,
    Nearest,
    class_means,
    global_prototypes,
    prototype_distance,
    taken_over,
)

ALL = "method.cohort=3"
OTHER_MODELS = (
    "populations.site.models=[{width: 8, image: {name: pixel-mlp, side: 8}}, "
    "{width: 8, image: {name: pixel-mlp, side: 8, hidden: [5]}}]"
)


def method(**more: Any) -> dict[str, Any]:
    return {"name": "fedproto", "rounds": 3, "local": {"lr": 0.1, "batch": 8}, **more}


def test_class_means_and_counts() -> None:
    features = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]])
    means, counts = class_means(features, torch.tensor([2, 2, 0]), 3)
    assert counts.tolist() == [1, 0, 2]
    assert means.tolist() == [[5.0, 5.0], [0.0, 0.0], [2.0, 1.0]]


def test_the_mean_over_sites_leaves_out_those_without_the_class() -> None:
    means = torch.tensor([[[1.0], [4.0], [0.0]], [[3.0], [0.0], [0.0]]])
    counts = torch.tensor([[3, 2, 0], [1, 0, 0]])
    alike = global_prototypes(means, counts, "uniform")
    assert alike["means"].flatten().tolist() == [2.0, 4.0, 0.0]
    assert alike["known"].tolist() == [True, True, False]
    by_rows = global_prototypes(means, counts, "count")
    assert by_rows["means"].flatten().tolist() == [1.5, 4.0, 0.0]


def test_a_class_that_nobody_had_this_time_keeps_its_prototype() -> None:
    old = {"means": torch.tensor([[1.0], [2.0]]), "known": torch.tensor([True, False])}
    new = {"means": torch.tensor([[0.0], [7.0]]), "known": torch.tensor([False, True])}
    kept = taken_over(new, old)
    assert kept["means"].flatten().tolist() == [1.0, 7.0]
    assert kept["known"].tolist() == [True, True]
    assert taken_over(new, None) is new


def test_the_distance_ignores_classes_without_a_prototype() -> None:
    prototypes = {
        "means": torch.tensor([[1.0, 1.0], [9.0, 9.0]]),
        "known": torch.tensor([True, False]),
    }
    features = torch.tensor([[3.0, 1.0], [0.0, 0.0]], requires_grad=True)
    value = prototype_distance(features, torch.tensor([0, 1]), prototypes)
    assert float(value.detach()) == 4.0 / 4
    value.backward()
    assert features.grad is not None
    assert features.grad[1].tolist() == [0.0, 0.0]


def test_the_nearest_prototype_decides_and_unknown_ones_never_do() -> None:
    fed = federation(method())
    model: Any = fed.model.eval()
    batch = next(fed.prepared(fed.public).batches(3))
    embedding = model(batch).aux["embedding"]
    means = torch.stack([embedding[0], embedding[1], embedding[2], embedding[0]])
    known = torch.tensor([False, True, True, True])
    logits = Nearest(model, {"means": means, "known": known})(batch).logits
    assert logits.argmax(dim=1).tolist() == [3, 1, 2]


def test_without_weight_sites_train_alone() -> None:
    """The prototypes are told all the same, but change nothing."""
    found = go(method(weight=0.0), ALL)
    alone = go({"name": "local-only", "rounds": 3, "local": {"lr": 0.1, "batch": 8}}, ALL)
    values = [
        [event["metrics"] for event in result.events if event["event"] == "metric"]
        for result in (found, alone)
    ]
    assert values[0] == values[1]
    assert go(method(weight=5.0), ALL).events != found.events


def test_models_may_differ_and_no_weights_travel() -> None:
    result = go(method(), ALL, OTHER_MODELS)
    kinds = {kind for op in FedProto.operations().values() for kind in op.sends.values()}
    assert Kind.WEIGHTS not in kinds
    sent = [e for e in result.events if e["event"] == "replied" and e["op"] == "train"]
    # Four classes times eight features of four bytes, and four counts of eight.
    assert {event["up"]["representations"] for event in sent} == {4 * 8 * 4}
    assert {event["up"]["labels"] for event in sent} == {4 * 8}


@pytest.mark.parametrize("predict", ["head", "prototype"])
def test_sites_report(predict: str) -> None:
    result = go(method(predict=predict, rounds=2), ALL)
    told = [e for e in result.events if e["event"] == "metric"]
    assert {event["party"] for event in told} == {"site-1", "site-2", "site-3"}
