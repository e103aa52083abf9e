"""FedBN: what is averaged, what stays, and its limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods import labelled
from tests.methods.plain import cohorts

from motet.core import Federation, mean, weights_of
from motet.core.groups import group
from motet.experiment.runner import Result
from motet.methods.personal import merged

MODEL = "{width: 8, image: {name: cnn, side: 8, maps: [4, 4], kernel: 3, norm: batch}}"
CNN = (f"server={MODEL}", f"populations.site.models=[{MODEL}]")
UNEVEN = "populations.site.partition={name: by_size}"


def fedbn(rounds: int = 3, cohort: int = 2, **more: Any) -> dict[str, Any]:
    local = dict(labelled.LOCAL)
    return {"name": "fedbn", "rounds": rounds, "cohort": cohort, "local": local, **more}


def fedavg(**more: Any) -> dict[str, Any]:
    return {**fedbn(**more), "name": "fedavg"}


def finished(*settings: str, **more: Any) -> Federation:
    fed = labelled.federation(fedbn(**more), *CNN, *settings)
    fed.start()
    return fed


def own(fed: Federation, site: str) -> dict[str, Any]:
    """The model that a site keeps."""
    found: dict[str, Any] = fed.engine._doors[site]._kept["state"].get("model", {})
    return found


def weights_tested(fed: Federation, name: str, received: dict[str, Any]) -> dict[str, Any]:
    """The weights of the model that a site tests when it is sent these."""
    site = fed.engine._doors[name].site
    site.load_tree({})
    site.state = {"model": own(fed, name)} if own(fed, name) else {}
    fed.method.evaluate(site, received=received)
    return weights_of(site.model)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
def test_without_batch_norm_it_is_fedavg_to_the_bit(weighting: str) -> None:
    ours = labelled.go(fedbn(weighting=weighting), UNEVEN)
    other = labelled.go(fedavg(weighting=weighting), UNEVEN)
    assert ours.hash == other.hash
    assert ours.last("accuracy") == other.last("accuracy")


def test_one_site_alone_trains_as_in_fedavg() -> None:
    one = "populations.site.count=1"
    fed = finished(one)
    other = labelled.go(fedavg(), *CNN, one)
    assert other.model is not None
    for name, value in weights_of(other.model).items():
        assert torch.equal(own(fed, "site-1")[name], value), name


def test_the_hub_averages_all_but_the_batch_norms() -> None:
    fed = finished(UNEVEN, rounds=1, cohort=3, weighting="samples")
    norm = group(fed.model, "norm")
    assert len(norm) == 10
    assert fed._build is not None
    start = weights_of(fed._build())
    models = [own(fed, f"site-{number}") for number in (1, 2, 3)]
    sizes = [len(fed.engine._doors[f"site-{number}"].site.data) for number in (1, 2, 3)]
    assert len(set(sizes)) == 3
    average = mean(models, sizes)
    for name, value in weights_of(fed.model).items():
        assert torch.equal(value, start[name] if name in norm else average[name]), name


def test_batch_norms_do_not_travel() -> None:
    result = labelled.go(fedbn(), *CNN)
    assert result.model is not None
    norm = group(result.model, "norm")
    weights = weights_of(result.model)
    travelling = sum(value.nbytes for name, value in weights.items() if name not in norm)
    sent = [event for event in result.events if event.get("op") == "train"]
    assert sent
    for event in sent:
        assert event["up"]["weights"] == event["down"]["weights"] == travelling


def test_a_site_is_tested_with_its_own_batch_norm() -> None:
    fed = finished()
    norm = group(fed.model, "norm")
    received = {name: value for name, value in weights_of(fed.model).items() if name not in norm}
    for name in fed.all:
        kept = own(fed, name)
        for key, value in weights_tested(fed, name, received).items():
            assert torch.equal(value, kept[key] if key in norm else received[key]), key
    first, second = own(fed, "site-1"), own(fed, "site-2")
    assert all(not torch.equal(first[key], second[key]) for key in norm if "num" not in key)


def test_a_site_that_never_trained_has_the_mean_batch_norm_if_asked_for() -> None:
    fed = finished(rounds=1, fallback=True)
    norm = group(fed.model, "norm")
    received = weights_of(fed.model)
    (stranger,) = [name for name in fed.all if not own(fed, name)]
    others = [own(fed, name) for name in fed.all if own(fed, name)]
    average = mean(others, [1, 1])
    for key, value in weights_tested(fed, stranger, received).items():
        assert torch.equal(value, average[key]), key
    known = next(name for name in fed.all if own(fed, name))
    for key in norm:
        assert torch.equal(weights_tested(fed, known, received)[key], own(fed, known)[key]), key


def test_the_fallback_changes_nothing_for_sites_that_trained() -> None:
    plain, more = finished(cohort=3), finished(cohort=3, fallback=True)
    for name in plain.all:
        for key, value in own(plain, name).items():
            assert torch.equal(value, own(more, name)[key]), key


def points(result: Result, party: str) -> set[str]:
    return {
        event["point"]
        for event in result.events
        if event["event"] == "metric" and event["party"] == party
    }


def test_both_points_are_reported_and_the_hub_only_where_its_model_is_whole() -> None:
    result = labelled.go(fedbn(), *CNN)
    assert points(result, "site-1") == {"as received", "after local training"}
    assert points(result, "hub") == set()
    assert points(labelled.go(fedbn(fallback=True), *CNN), "hub") == {"hub"}
    assert len(cohorts(result)) == 3


def test_merging_keeps_what_a_site_has_of_its_own() -> None:
    own_, received = {"a": 1, "b": 2}, {"a": 3, "b": 4}
    assert merged(own_, received, frozenset({"a"})) == {"a": 1, "b": 4}
    assert merged({}, received, frozenset({"a"})) == received
    assert merged(own_, {}, frozenset()) == own_
