"""FedAvg, FedSGD and FedProx: limiting cases, and both written out on flat vectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods.labelled import federation, go, recipe, rows
from tests.methods.plain import WHOLE, Plain, flat

from motet.core import ConfigError, SiteError, weights_of
from motet.experiment.build import build_parties

ALL = "method.cohort=3"
UNEQUAL = "populations.site.partition={name: by_size}"
BATCH_NORM = [
    "server={width: 8, image: {name: cnn, side: 8, maps: [2], kernel: 3, norm: batch}}",
    "populations.site.models=[{width: 8, image: {name: cnn, side: 8, maps: [2], kernel: 3, "
    "norm: batch}}]",
]


def method(name: str, rounds: int = 3, **local: Any) -> dict[str, Any]:
    return {"name": name, "rounds": rounds, "local": {"lr": 0.1, "batch": 8, **local}}


def averaged(plain: Plain, steps: int, mu: float = 0.0, rounds: int = 3) -> torch.Tensor:
    """Algorithm 1 with whole-site steps, weighed by rows."""
    w = plain.start
    total = sum(plain.sizes.values())
    for _ in range(rounds):
        mean = torch.zeros_like(w)
        for site, gradient in plain.gradients.items():
            x = w
            for _ in range(steps):
                x = x - 0.1 * (gradient(x) + mu * (x - w))
            mean = mean + plain.sizes[site] / total * x
        w = mean
    return w


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_without_steps_nothing_changes(name: str) -> None:
    fed = federation(method(name, epochs=0), ALL)
    before = weights_of(fed.model)
    fed.start()
    after = weights_of(fed.model)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_it_is_the_algorithm_of_the_paper() -> None:
    wanted = {"name": "fedavg", "rounds": 3, "local": {**WHOLE, "steps": 4}}
    found = flat(go(wanted, ALL, UNEQUAL))
    torch.testing.assert_close(found, averaged(Plain(wanted, UNEQUAL), 4), rtol=0, atol=1e-6)


def test_one_site_is_centralised_sgd() -> None:
    wanted = {"name": "fedavg", "rounds": 3, "local": {**WHOLE, "steps": 2}}
    plain = Plain(wanted, "populations.site.count=1")
    x = plain.start
    for _ in range(6):
        x = x - 0.1 * plain.gradients["site-1"](x)
    found = flat(go(wanted, "populations.site.count=1"))
    torch.testing.assert_close(found, x, rtol=0, atol=1e-6)


def test_one_step_on_all_rows_is_fedsgd() -> None:
    average = {"name": "fedavg", "rounds": 4, "local": {**WHOLE, "steps": 1}}
    step = {"name": "fedsgd", "rounds": 4, "lr": 0.1}
    found = flat(go(step, ALL, UNEQUAL))
    torch.testing.assert_close(found, flat(go(average, ALL, UNEQUAL)), rtol=0, atol=1e-6)


def test_fedsgd_is_gradient_descent_on_the_pooled_rows() -> None:
    wanted = {"name": "fedsgd", "rounds": 5, "lr": 0.2}
    plain = Plain(wanted, UNEQUAL)
    total = sum(plain.sizes.values())
    x = plain.start
    for _ in range(5):
        parts = [plain.sizes[site] / total * g(x) for site, g in plain.gradients.items()]
        x = x - 0.2 * torch.stack(parts).sum(dim=0)
    torch.testing.assert_close(flat(go(wanted, ALL, UNEQUAL)), x, rtol=0, atol=1e-6)


def test_fedprox_without_mu_is_fedavg_bit_for_bit() -> None:
    prox = {**method("fedprox", epochs=2), "mu": 0.0}
    assert (
        go(prox, "method.cohort=2").hash == go(method("fedavg", epochs=2), "method.cohort=2").hash
    )


def test_fedprox_holds_sites_near_what_they_were_sent() -> None:
    wanted = {"name": "fedprox", "rounds": 3, "mu": 0.7, "local": {**WHOLE, "steps": 4}}
    found = flat(go(wanted, ALL, UNEQUAL))
    plain = Plain(wanted, UNEQUAL)
    torch.testing.assert_close(found, averaged(plain, 4, mu=0.7), rtol=0, atol=1e-6)
    assert not torch.allclose(found, averaged(plain, 4), atol=1e-4)


def test_the_first_proximal_step_is_a_plain_one() -> None:
    prox = {"name": "fedprox", "rounds": 1, "mu": 5.0, "local": {**WHOLE, "steps": 1}}
    plain = {"name": "fedavg", "rounds": 1, "local": {**WHOLE, "steps": 1}}
    assert go(prox, ALL).hash == go(plain, ALL).hash


def test_the_rate_falls_by_the_round() -> None:
    decayed = {"name": "fedavg", "rounds": 2, "local": {**WHOLE, "steps": 1, "decay": 0.5}}
    plain = Plain(decayed, "populations.site.count=1")
    x = plain.start
    for rate in (0.1, 0.05):
        x = x - rate * plain.gradients["site-1"](x)
    found = flat(go(decayed, "populations.site.count=1"))
    torch.testing.assert_close(found, x, rtol=0, atol=1e-6)


def test_batch_norm_statistics_are_averaged_and_a_single_row_left_out() -> None:
    """20 rows at one site in batches of 19: the last would be a single one."""
    fed = federation(method("fedavg", 1, batch=19), ALL, *BATCH_NORM)
    before = weights_of(fed.model)
    fed.start()
    after = weights_of(fed.model)
    name = next(key for key in after if key.endswith("running_mean"))
    counter = next(key for key in after if key.endswith("num_batches_tracked"))
    assert not torch.equal(before[name], after[name])
    assert int(after[counter]) == 1


def test_what_has_no_head_is_refused_before_the_first_round() -> None:
    for setting, told in [
        ("classify=false", "only some models have a class head"),
        ("server=null", "give the recipe its model"),
        ("server.image.hidden=[4]", "give all sites the server's encoders"),
    ]:
        with pytest.raises(ConfigError, match=told):
            go(method("fedavg"), setting)
    with pytest.raises(ConfigError, match="give models a class head"):
        go(method("fedavg"), "classify=false", "populations.site.classify=false")


def test_equal_specifications_start_equal_everywhere() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("motet.experiment.build.load_data", lambda name, **options: rows())
        found = build_parties(recipe("fedavg"))
        other = build_parties(recipe("fedavg", "common_start=false"))
    assert found.build_server is not None
    assert other.build_server is not None
    hub = weights_of(found.build_server())
    for site in found.sites:
        assert site.build is not None
        own = weights_of(site.build())
        assert all(torch.equal(own[key], hub[key]) for key in hub)
    loose = weights_of(other.build_server())
    assert any(
        not torch.equal(weights_of(site.build())[key], loose[key])
        for site in other.sites
        if site.build is not None
        for key in loose
    )


def test_a_rate_that_blows_up_names_the_site() -> None:
    with pytest.raises(SiteError, match=r"site site-\d, round 0.*lower the learning rate"):
        go({"name": "fedavg", "rounds": 1, "local": {"lr": 1e38, "epochs": 3}})
