"""pFedMe held against its algorithm, and the Moreau envelope that it descends on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods import labelled
from tests.methods.plain import Plain, cohorts, flat
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from motet.core import ConfigError, weights_of
from motet.methods.pfedme import envelope_step, towards

LOCAL = {"lr": 0.02, "batch": 96, "steps": 4}


def pfedme(rounds: int = 4, cohort: int = 2, **more: Any) -> dict[str, Any]:
    fields = {"inner": 3, "lam": 10.0, "eta": 0.05, "local": LOCAL, **more}
    return {"name": "pfedme", "rounds": rounds, "cohort": cohort, **fields}


def reference(
    plain: Plain, rounds: list[list[str]], beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Algorithm 1 on flat vectors, with the numbers of ``pfedme``."""
    w = plain.start
    thetas: dict[str, Tensor] = {}
    for sites in rounds:
        sent = []
        for name in sites:
            local = theta = w
            for _ in range(4):
                for _ in range(3):
                    theta = theta - 0.02 * (plain.gradients[name](theta) + 10 * (theta - local))
                local = local - 0.05 * 10 * (local - theta)
            thetas[name] = theta
            sent.append(local)
        w = (1 - beta) * w + beta * torch.stack(sent).mean(dim=0)
    return w, thetas


@pytest.mark.parametrize("beta", [1.0, 0.5, 1.5])
def test_it_is_the_papers_algorithm(beta: float) -> None:
    method = pfedme(rounds=5, beta=beta)
    result = labelled.go(method)
    rounds = cohorts(result)
    assert len({tuple(sites) for sites in rounds}) > 1
    w, thetas = reference(Plain(method), rounds, beta)
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(flat(result), w, **close)
    fed = labelled.federation(method)
    fed.start()
    names = [name for name, _ in fed.model.named_parameters()]
    for site, door in fed.engine._doors.items():
        kept = door._kept["state"]["model"]
        found = parameters_to_vector([kept[name] for name in names])
        torch.testing.assert_close(found, thetas[site], **close)


def test_every_local_round_has_a_batch_of_its_own_for_all_of_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from motet.methods import pfedme as module

    seen: list[list[int]] = []
    classify = module.classify

    def watched(model: Any, batch: Any) -> Tensor:
        seen.append(sorted(batch.rows.tolist()))
        return classify(model, batch)

    monkeypatch.setattr(module, "classify", watched)
    labelled.go(pfedme(rounds=1, cohort=1, local={**LOCAL, "batch": 5}))
    assert len(seen) == 12
    groups = [seen[at : at + 3] for at in range(0, 12, 3)]
    assert all(rows == group[0] for group in groups for rows in group)
    assert len({tuple(group[0]) for group in groups}) == 4


def test_the_step_descends_on_the_moreau_envelope() -> None:
    w = torch.tensor([3.0, -1.0], dtype=torch.float64, requires_grad=True)
    goal, curvature, lam = torch.tensor([1.0, 2.0], dtype=torch.float64), 4.0, 15.0
    theta = (curvature * goal + lam * w) / (curvature + lam)
    loss = curvature / 2 * (theta - goal).square().sum() + lam / 2 * (theta - w).square().sum()
    (gradient,) = torch.autograd.grad(loss, w)
    moved = envelope_step({"w": w.detach()}, {"w": theta.detach()}, 0.01, lam)
    torch.testing.assert_close(moved["w"], w.detach() - 0.01 * gradient)


def test_where_eta_times_lambda_is_one_the_step_ends_at_the_personal_model() -> None:
    w, theta = torch.tensor([4.0, 1.0]), torch.tensor([0.5, 2.0])
    assert torch.equal(envelope_step({"w": w}, {"w": theta}, 0.125, 8.0)["w"], theta)


def test_beta_one_is_the_mean_to_the_bit() -> None:
    start, mean = torch.rand(100), torch.rand(100)
    assert torch.equal(towards({"w": start}, {"w": mean}, 1.0)["w"], mean)
    half = towards({"w": start}, {"w": mean}, 0.5)["w"]
    torch.testing.assert_close(half, (start + mean) / 2)


def test_a_local_model_that_would_jump_over_the_personal_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eta \* lam is 1"):
        labelled.recipe(pfedme(eta=0.1, lam=10.0))


def test_buffers_are_averaged_as_they_are() -> None:
    model = "{width: 8, image: {name: cnn, side: 8, maps: [4], kernel: 3, norm: batch}}"
    cnn = (f"server={model}", f"populations.site.models=[{model}]")
    fed = labelled.federation(pfedme(rounds=1, cohort=3, beta=0.5), *cnn)
    fed.start()
    states = [door._kept["state"]["model"] for door in fed.engine._doors.values()]
    name = "encoders.image.layers.1.running_mean"
    average = torch.stack([state[name] for state in states]).mean(dim=0)
    torch.testing.assert_close(fed.model.state_dict()[name], average)


def test_the_personal_model_is_tested_after_training_and_the_global_one_as_received() -> None:
    fed = labelled.federation(pfedme())
    fed.start()
    door = fed.engine._doors["site-2"]
    site = door.site
    site.load_tree({})
    site.state = dict(door._kept["state"])
    for received, wanted in (({}, site.state["model"]), (weights_of(fed.model),) * 2):
        fed.method.evaluate(site, received=received)
        for key, value in wanted.items():
            assert torch.equal(site.model.state_dict()[key], value), key
