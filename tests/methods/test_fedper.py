"""FedPer held against its algorithm, and what never travels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods import labelled
from tests.methods.plain import WHOLE, Plain, cohorts
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from motet.core import ConfigError, Federation, weights_of
from motet.core.groups import group
from motet.methods.fedper import last_layers

# The last layer of the made-up recipe's model: 8 inputs and a bias for 4 classes.
HEAD = 36
DEEP = ("populations.site.models.0.image.hidden=[6]",)


def fedper(rounds: int = 4, cohort: int = 2, **more: Any) -> dict[str, Any]:
    local = {**WHOLE, "steps": 3, **more.pop("local", {})}
    return {"name": "fedper", "rounds": rounds, "cohort": cohort, "local": local, **more}


def reference(plain: Plain, rounds: list[list[str]], lr: float, steps: int) -> dict[str, Tensor]:
    """The algorithm on flat vectors: what each site's model ends as, and the hub's base."""
    base = plain.start[:-HEAD]
    models = dict.fromkeys(plain.gradients, plain.start)
    for sites in rounds:
        bases = []
        for name in sites:
            x = torch.cat([base, models[name][-HEAD:]])
            for _ in range(steps):
                x = x - lr * plain.gradients[name](x)
            models[name] = x
            bases.append(x[:-HEAD])
        base = torch.stack(bases).mean(dim=0)
    return {**models, "base": base}


def finished(method: dict[str, Any], *settings: str) -> tuple[Federation, dict[str, Any]]:
    """A run that is over, and what each site keeps."""
    fed = labelled.federation(method, *settings)
    fed.start()
    return fed, {name: door._kept["state"] for name, door in fed.engine._doors.items()}


def vector(fed: Federation, weights: dict[str, Tensor]) -> Tensor:
    return parameters_to_vector([weights[name] for name, _ in fed.model.named_parameters()])


def test_it_is_the_papers_algorithm() -> None:
    method = fedper(rounds=5)
    rounds = cohorts(labelled.go(method))
    assert len({tuple(sites) for sites in rounds}) > 1
    fed, states = finished(method)
    wanted = reference(Plain(method), rounds, 0.1, 3)
    for name, state in states.items():
        found = vector(fed, state["model"])
        torch.testing.assert_close(found, wanted[name], atol=1e-5, rtol=1e-4)
    found = vector(fed, weights_of(fed.model))[:-HEAD]
    torch.testing.assert_close(found, wanted["base"], atol=1e-5, rtol=1e-4)


def test_heads_never_travel() -> None:
    result = labelled.go(fedper())
    assert result.model is not None
    base = sum(
        value.nbytes for value in weights_of(result.model, group(result.model, "base")).values()
    )
    sent = [event for event in result.events if event.get("op") == "train"]
    assert sent
    assert {event["up"]["weights"] for event in sent} == {base}
    assert {event["down"]["weights"] for event in sent} == {base}


def test_heads_start_equal_and_part() -> None:
    fed, states = finished(fedper(rounds=1))
    assert fed._build is not None
    start = weights_of(fed._build())
    assert torch.equal(fed.model.state_dict()["head.weight"], start["head.weight"])
    heads = [state["model"]["head.weight"] for state in states.values() if state]
    assert len(heads) == 2
    assert not torch.equal(heads[0], heads[1])


def test_without_personal_layers_it_is_fedavg_to_the_bit() -> None:
    method = fedper(layers=0, local={"batch": 8})
    settings = {key: value for key, value in method.items() if key != "layers"}
    ours = labelled.go(method, "populations.site.partition={name: by_size}")
    other = labelled.go(
        {**settings, "name": "fedavg"}, "populations.site.partition={name: by_size}"
    )
    assert ours.hash == other.hash
    assert ours.last("accuracy") == other.last("accuracy")


def test_personal_layers_are_counted_from_the_head() -> None:
    model = labelled.federation(fedper(), "server.image.hidden=[6]", *DEEP).model
    names = [name.rpartition(".")[0] for name in model.state_dict()]
    assert len(set(names)) == 3
    for count in (0, 1, 2, 3, 9):
        kept = last_layers(model, count)
        assert kept == {name for name in model.state_dict() if name in kept}
        wanted = list(dict.fromkeys(names))[max(3 - count, 0) :]
        assert {name.rpartition(".")[0] for name in kept} == set(wanted)
    assert last_layers(model, 1) == group(model, "head")


def test_one_site_alone_trains_as_in_fedavg() -> None:
    one = "populations.site.count=1"
    method = fedper(local={"batch": 8})
    _, states = finished(method, one)
    other = labelled.go({**method, "name": "fedavg"}, one)
    assert other.model is not None
    for name, value in weights_of(other.model).items():
        assert torch.equal(states["site-1"]["model"][name], value), name


def test_a_site_tests_the_newest_base_under_its_own_head() -> None:
    fed, states = finished(fedper())
    base = weights_of(fed.model, group(fed.model, "base"))
    for name, state in states.items():
        site = fed.engine._doors[name].site
        site.load_tree({})
        site.state = dict(state)
        fed.method.evaluate(site, received=base)
        found = weights_of(site.model)
        assert all(torch.equal(found[key], value) for key, value in base.items())
        assert torch.equal(found["head.weight"], state["model"]["head.weight"])
        fed.method.evaluate(site)
        for key, value in weights_of(site.model).items():
            assert torch.equal(value, state["model"][key]), key


def test_sites_report_both_points_and_the_hub_none() -> None:
    events = [e for e in labelled.go(fedper()).events if e["event"] == "metric"]
    assert {event["point"] for event in events} == {"as received", "after local training"}
    assert {event["party"] for event in events} == {"site-1", "site-2", "site-3"}


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_models_without_a_head_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="class head: classify: true"):
        labelled.go({"name": name}, "classify=false", "populations.site.classify=false")
