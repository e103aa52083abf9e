"""Protection in a recipe: every part under methods that know nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods import labelled

from motet.core import ConfigError, SiteError, weights_of
from motet.experiment.runner import Result, run

LOCAL = {"lr": 0.1, "epochs": 2, "batch": 8}
SITES = "populations.site.count=5"
SUM = "protect.secure_sum={dropouts: 1}"
PRIVATE = "protect.privacy={clip: 1.0, noise: 0.5}"


def go(*settings: str, name: str = "fedavg", **fields: Any) -> Result:
    method = {"name": name, "rounds": 3, "cohort": 5, "local": LOCAL, **fields}
    return labelled.go(method, SITES, *settings)


def weights(result: Result) -> torch.Tensor:
    assert result.model is not None
    return torch.cat([value.flatten().double() for value in weights_of(result.model).values()])


def told(result: Result, kind: str) -> list[dict[str, Any]]:
    return [event for event in result.events if event["event"] == kind]


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedprox"])
def test_a_flipped_sign_ruins_the_mean_and_not_the_median(name: str) -> None:
    attack = "attack={name: sign-flip, sites: [site-2], factor: 10}"
    fields: dict[str, Any] = {"rounds": 10}
    if name == "fedavgm":
        fields["beta"] = 0.0
    clean = go(name=name, **fields).last("accuracy")
    median = go(attack, "protect.robust={name: median}", name=name, **fields).last("accuracy")
    assert clean > 60
    assert median > clean - 15
    assert go(attack, name=name, **fields).last("accuracy") < 50


def test_a_secure_sum_is_the_mean_to_the_fixed_point_step() -> None:
    plain, summed = go(), go(SUM)
    assert float((weights(plain) - weights(summed)).abs().max()) < 1e-4
    assert [event["op"] for event in told(summed, "replied")][:5] == ["@secure.keys"] * 5
    ups = [event["up"] for event in told(summed, "replied") if event["op"] == "train"]
    # 32 bits for every number, as float32 has.
    plain_ups = [event["up"] for event in told(plain, "replied") if event["op"] == "train"]
    assert ups[0]["weights"] == plain_ups[0]["weights"]


def test_what_is_summed_cannot_be_read_singly() -> None:
    with pytest.raises(ConfigError, match="KnFu reads single sites' 'knowledge'"):
        go("protect.secure_sum={kinds: [logits], dropouts: 1, weights: uniform}", name="knfu")


def test_weights_of_the_sum_must_be_those_of_the_method() -> None:
    uneven = "populations.site.partition={name: by_size, law: square}"
    with pytest.raises(ConfigError, match="weights: uniform"):
        go(SUM, uneven, weighting="uniform")
    go("protect.secure_sum={dropouts: 1, weights: uniform}", uneven, weighting="uniform")


def test_central_privacy_tells_what_it_costs_and_survives_a_resume(tmp_path: Path) -> None:
    whole = go(PRIVATE)
    told_ = told(whole, "privacy")
    assert [event["round"] for event in told_] == [0, 1, 2]
    spent = [event["epsilon"] for event in told_]
    assert spent == sorted(spent)
    assert spent[0] > 0
    method = {"name": "fedavg", "rounds": 3, "cohort": 5, "local": LOCAL}
    wanted = labelled.recipe(method, SITES, PRIVATE)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == 2:
            raise KeyboardInterrupt

    parties = labelled.parties(wanted)
    with pytest.raises(KeyboardInterrupt):
        run(wanted, folder=tmp_path, parties=parties, listeners=[stop])
    again = run(wanted, folder=tmp_path, parties=labelled.parties(wanted))
    assert again.hash == whole.hash
    assert [event["epsilon"] for event in told(again, "privacy")] == spent


def test_without_noise_and_bound_it_is_the_uniform_mean() -> None:
    private = go("protect.privacy={clip: 1.0e+6, noise: 0.0}")
    torch.testing.assert_close(
        weights(private), weights(go(weighting="uniform")), atol=1e-5, rtol=0
    )


def test_a_spent_budget_ends_the_run_with_what_there_is() -> None:
    free = go(PRIVATE)
    spent = [event["epsilon"] for event in told(free, "privacy")]
    budget = (spent[1] + spent[2]) / 2
    short = go(f"protect.privacy={{clip: 1.0, noise: 0.5, epsilon: {budget}}}")
    ended = told(short, "finished")[0]
    assert "budget is spent" in ended["ended"]
    assert [event["epsilon"] for event in told(short, "privacy")] == spent[:2]
    assert short.last("accuracy") > 0


def test_a_sites_own_noise_is_counted_at_the_site() -> None:
    local = go("protect.privacy={mode: local, clip: 1.0, noise: 2.0}")
    parties = {event["party"] for event in told(local, "privacy")}
    assert parties == {f"site-{number}" for number in range(1, 6)}
    assert len(told(local, "privacy")) == 15
    assert float((weights(local) - weights(go())).abs().max()) > 0.1


def test_shares_of_noise_add_up_under_a_secure_sum() -> None:
    summed = "protect.secure_sum={dropouts: 1, weights: uniform}"
    shared = "protect.privacy={mode: distributed, clip: 1.0, noise: 1.0}"
    still = {"local": {**LOCAL, "epochs": 0}, "rounds": 1}
    noisy, plain = go(summed, shared, **still), go(**still)
    gap = weights(noisy) - weights(plain)
    assert float(gap.std()) == pytest.approx(1 / 5, rel=0.2)
    assert (
        told(noisy, "privacy")[0]["epsilon"]
        == told(go(PRIVATE.replace("0.5", "1.0"), **still), "privacy")[0]["epsilon"]
    )
    with pytest.raises(ConfigError, match="distributed needs a sum"):
        go(shared)


def test_rows_are_private_by_dp_sgd() -> None:
    private = go("protect.privacy={mode: rows, clip: 1.0, noise: 1.0}")
    parties = {event["party"] for event in told(private, "privacy")}
    assert parties == {f"site-{number}" for number in range(1, 6)}
    assert told(private, "privacy")[0]["unit"] == "row"
    with pytest.raises(SiteError, match="uses private rows in another way"):
        go("protect.privacy={mode: rows}", name="fedproto")


def test_kinds_that_are_not_sent_are_refused() -> None:
    for part in (
        "privacy={kinds: [logits]}",
        "robust={name: median, kinds: [logits]}",
        "secure_sum={kinds: [logits]}",
        "compress={logits: fp16}",
    ):
        with pytest.raises(ConfigError, match=r"protect\.\w+ (is for|does not cover)"):
            go(f"protect.{part}")


def test_what_cannot_go_together_is_refused() -> None:
    robust = "protect.robust={name: median}"
    for pair in (
        (SUM, robust),
        (SUM, "protect.compress={weights: fp16}"),
        (SUM, PRIVATE),
        (PRIVATE, robust),
        (SUM, "attack={name: sign-flip, share: 0.3}"),
    ):
        with pytest.raises(ConfigError, match="leave"):
            go(*pair)


def test_an_uncovered_kind_is_named() -> None:
    with pytest.raises(ConfigError, match=r"does not cover 'change'.*kinds: \[weights, control\]"):
        go(PRIVATE, name="scaffold")


def test_a_rule_that_a_method_never_asks_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="would protect nothing"):
        go("protect.robust={name: median, kinds: [logits]}", name="knfu")


def test_sampling_by_poisson_may_ask_nobody() -> None:
    poisson = "protect.privacy={clip: 1.0, noise: 0.5, sampling: poisson}"
    result = go(poisson, cohort=1, rounds=8)
    asked = [
        sum(e["round"] == n and e["op"] == "train" for e in told(result, "replied"))
        for n in range(8)
    ]
    assert min(asked) == 0
    assert max(asked) > 1
    assert len(told(result, "privacy")) == 8


def test_sparse_updates_and_a_codec_go_together() -> None:
    plain = go()
    sparse = go("protect.compress={weights: {name: top-k, share: 0.1}}", rounds=6)
    ups = [
        sum(e["up"]["frame"] for e in told(r, "replied") if e["op"] == "train")
        for r in (sparse, plain)
    ]
    assert ups[0] < 0.7 * ups[1]
    assert sparse.last("accuracy") > 40
