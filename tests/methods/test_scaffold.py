"""SCAFFOLD held against its algorithm box, and in its limits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.methods import labelled
from tests.methods.plain import WHOLE, Plain, cohorts, flat, watched
from torch import Tensor

from motet.core import ConfigError, mean
from motet.core.wire import digest
from motet.methods.scaffold import control_change


def scaffold(rounds: int = 4, cohort: int = 2, **more: Any) -> dict[str, Any]:
    local = {**WHOLE, "steps": 3, **more.pop("local", {})}
    return {"name": "scaffold", "rounds": rounds, "cohort": cohort, "local": local, **more}


def reference(
    plain: Plain, rounds: list[list[str]], lr: float, steps: int, server: float
) -> Tensor:
    """Algorithm 1 of the paper with option II, on flat vectors."""
    w = plain.start
    c = torch.zeros_like(w)
    own = {name: torch.zeros_like(w) for name in plain.gradients}
    for sites in rounds:
        moves, changes = [], []
        for name in sites:
            x = w.clone()
            for _ in range(steps):
                x = x - lr * (plain.gradients[name](x) - own[name] + c)
            new = own[name] - c + (w - x) / (steps * lr)
            moves.append(x - w)
            changes.append(new - own[name])
            own[name] = new
        w = w + server * torch.stack(moves).mean(dim=0)
        c = c + torch.stack(changes).sum(dim=0) / len(plain.gradients)
    return w


@pytest.mark.parametrize("server", [1.0, 0.5, 1.5])
def test_it_is_the_papers_algorithm(server: float) -> None:
    method = scaffold(rounds=5, lr=server)
    result = labelled.go(method)
    rounds = cohorts(result)
    # Somebody is away and comes back: otherwise state that is lost would not show.
    assert len({tuple(sites) for sites in rounds}) > 1
    wanted = reference(Plain(method), rounds, 0.1, 3, server)
    torch.testing.assert_close(flat(result), wanted, atol=1e-5, rtol=1e-4)


def test_its_first_round_is_fedavg_to_the_bit() -> None:
    local = {**WHOLE, "steps": 3}
    ours = labelled.go(scaffold(rounds=1))
    other = labelled.go({"name": "fedavg", "rounds": 1, "cohort": 2, "local": local})
    assert ours.hash == other.hash
    assert labelled.go(scaffold(rounds=3)).hash != ours.hash


def test_with_all_sites_the_hubs_variate_is_the_mean_of_theirs() -> None:
    for moment in watched(labelled.federation(scaffold(cohort=3))):
        own = [state["control"] for state in moment["sites"].values()]
        torch.testing.assert_close(moment["hub"]["control"], mean(own, [1, 1, 1]))


def test_the_variates_change_counts_by_all_sites_not_by_those_asked() -> None:
    moment = watched(labelled.federation(scaffold(rounds=1, cohort=1)))[0]
    (own,) = [state["control"] for state in moment["sites"].values() if state]
    for name, value in moment["hub"]["control"].items():
        torch.testing.assert_close(value, own[name] / 3)


def test_a_site_that_is_away_keeps_its_variate() -> None:
    moments = watched(labelled.federation(scaffold(rounds=6, cohort=1)))
    for before, after in pairwise(moments):
        changed = [
            name
            for name, state in after["sites"].items()
            if digest(state) != digest(before["sites"][name])
        ]
        assert len(changed) == 1
        assert after["sites"][changed[0]]


def test_the_number_of_steps_is_the_sites_own() -> None:
    sizes = {"name": "by_size", "law": "square"}
    local = {"steps": None, "epochs": 2, "batch": 4}
    fed = labelled.federation(
        scaffold(rounds=1, cohort=3, local=local), f"populations.0.partition={sizes}"
    )
    start = {name: value.detach().clone() for name, value in fed.model.named_parameters()}
    moment = watched(fed)[0]
    # In the first round w - x is K eta c_i: sites of unlike K must give back one mean change.
    steps = {
        name: fed.method.local.count(door.site.traits.rows)
        for name, door in fed.engine._doors.items()
    }
    assert len(set(steps.values())) > 1
    for name, value in start.items():
        moved = [
            -steps[site] * 0.1 * state["control"][name] for site, state in moment["sites"].items()
        ]
        wanted = value + torch.stack(moved).mean(dim=0)
        torch.testing.assert_close(moment["weights"][name], wanted, atol=1e-6, rtol=1e-4)


def test_one_site_is_central_sgd() -> None:
    one = "populations.0.count=1"
    ours = labelled.go(scaffold(cohort=1), one)
    method = {"name": "fedavg", "rounds": 4, "cohort": 1, "local": {**WHOLE, "steps": 3}}
    torch.testing.assert_close(flat(ours), flat(labelled.go(method, one)))


def test_without_steps_nothing_changes() -> None:
    fed = labelled.federation(scaffold(local={"steps": 0}))
    before = {name: value.clone() for name, value in fed.model.state_dict().items()}
    for moment in watched(fed):
        assert all(torch.equal(moment["weights"][name], value) for name, value in before.items())
        assert not any(value.any() for value in moment["hub"]["control"].values())


def test_the_change_of_a_variate() -> None:
    found = control_change({"a": torch.tensor([1.0])}, {"a": torch.tensor([6.0])}, 2.0)
    assert found["a"].tolist() == [2.0]


def test_local_momentum_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.local\.momentum: 0"):
        labelled.go(scaffold(local={"momentum": 0.9}))
