"""The recipe's robust rules: what they see, what they remember, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests.core.toys import NAMES, Averaging, federation, specs
from torch import Tensor

from motet.core import ConfigError, Kind, SiteError, Tree, WireError, wire
from motet.core.guard import Call, Protection
from motet.engines.serial import Serial
from motet.nn.robust import bulyan, flat, iterative_multi_krum, multi_krum
from motet.nn.robust_means import (
    fltrust,
    foolsgold,
    geometric_median,
    next_bound,
    norm_bound_mean,
)
from motet.protect.attacks import AttackSpec, Hostile
from motet.protect.robust import RobustRule, RobustSpec, Root, root_at

EXAMPLE = (0.0, 0.1, 0.2, 0.3, 10.0)
SENT = {"w": torch.full((2,), 5.0), "n": torch.tensor(7)}


def spec(name: str, **fields: Any) -> RobustSpec:
    return RobustSpec.model_validate({"name": name, **fields})


def call(
    values: Mapping[str, Any],
    sent: Any = SENT,
    memory: Tree | None = None,
    weights: Mapping[str, float] | None = None,
) -> Call:
    return Call(
        op="train",
        tag="t",
        round=0,
        key="weights",
        values=values,
        weights=weights or dict.fromkeys(values, 1.0),
        sent=sent,
        cohort=len(values),
        rng=torch.Generator().manual_seed(0),
        memory={} if memory is None else memory,
    )


def values(*numbers: float) -> dict[str, Tree]:
    return {
        f"s{i}": {"w": torch.full((2,), 5.0 + number), "n": torch.tensor(100 + i)}
        for i, number in enumerate(numbers)
    }


def rows(updates: Tensor) -> dict[str, Tree]:
    """Sites whose weights have moved by these updates [n, 2]."""
    return {
        f"s{i}": {"w": SENT["w"] + update, "n": torch.tensor(i)} for i, update in enumerate(updates)
    }


def drawn(count: int, seed: int = 0) -> Tensor:
    return torch.randn((count, 2), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": "trimmed-mean"}, 0.2),
        ({"name": "median"}, 0.2),
        ({"name": "krum"}, 0.1),
        ({"name": "multi-krum"}, 0.15),
        ({"name": "multi-krum", "chosen": 2}, 0.15),
        ({"name": "geometric-median"}, 0.2),
        ({"name": "norm-bound", "bound": 2**0.5}, 1.6 / 5),
    ],
)
def test_the_worked_example_on_updates(fields: dict[str, Any], expected: float) -> None:
    found = RobustRule(RobustSpec.model_validate(fields)).mean(call(values(*EXAMPLE)))
    tolerance = 1e-3 if fields["name"] == "geometric-median" else 1e-5
    if fields == {"name": "multi-krum"}:
        # Four of five enter: 0, 0.1, 0.2 and 0.3.
        expected = 0.15
    torch.testing.assert_close(found["w"], torch.full((2,), 5 + expected), atol=tolerance, rtol=0)
    # A counter is no update.
    assert int(found["n"]) == 7


def test_every_rule_is_its_pure_function_on_updates() -> None:
    x = drawn(11, 1)
    root = torch.tensor([1.0, 0.5])
    wanted: dict[tuple[Any, ...], Tensor] = {
        ("bulyan",): bulyan(x, 2),
        ("multi-krum", ("selection", "iterative")): iterative_multi_krum(x, 2),
        ("multi-krum", ("selection", "iterative-itself")): iterative_multi_krum(
            x, 2, counts_itself=True
        ),
        ("multi-krum", ("chosen", 5)): multi_krum(x, 2, 5),
        ("geometric-median", ("iterations", 3)): geometric_median(x, iterations=3),
        ("fltrust", ("root", 9)): fltrust(x, root),
        ("foolsgold",): foolsgold(x, x),
    }
    assert len({tuple(found.tolist()) for found in wanted.values()}) == len(wanted)
    for (name, *fields), update in wanted.items():
        rule = RobustRule(spec(name, **dict(fields)), (lambda call: {"w": root}))
        found = rule.mean(call(rows(x)))
        torch.testing.assert_close(found["w"], SENT["w"] + update, msg=name)


def test_weights_of_sites_change_nothing() -> None:
    heavy = {"s0": 1.0, "s1": 1.0, "s2": 1.0, "s3": 1.0, "s4": 1e12}
    for name in ("trimmed-mean", "median", "krum", "multi-krum", "geometric-median"):
        found = RobustRule(spec(name)).mean(call(values(0, 0, 0, 0, 9), weights=heavy))
        torch.testing.assert_close(found["w"], SENT["w"], atol=1e-4, rtol=0)


def test_without_a_reference_values_are_the_updates() -> None:
    bound = RobustRule(spec("norm-bound", bound=2**0.5))
    found = bound.mean(call(values(0.0, 1.0), sent=None))
    torch.testing.assert_close(found["w"], torch.ones(2))
    assert int(found["n"]) == 100


def test_parts_of_single_modalities_are_put_together_by_those_who_have_them() -> None:
    whole = {
        f"s{i}": {
            "head": torch.full((2,), float(i)),
            "image" if i % 2 else "text": torch.ones(3) * i,
        }
        for i in range(6)
    }
    found = RobustRule(spec("median")).mean(call(whole, sent=None))
    assert {name: value[0].item() for name, value in found.items()} == {
        "head": 2.5,
        "image": 3,
        "text": 2,
    }


def test_the_running_bound_is_kept_per_key() -> None:
    memory: Tree = {}
    rule = RobustRule(spec("norm-bound"))
    first = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 4.0], [0.0, 50.0]])
    found = rule.mean(call(rows(first), memory=memory))
    torch.testing.assert_close(found["w"], SENT["w"] + norm_bound_mean(first, 3.0))
    bound = next_bound(3.0, first.norm(dim=1), 0.5)
    assert list(memory.values()) == [pytest.approx(bound)]
    wire.encode(memory)
    second = rule.mean(call(rows(10 * first), memory=memory))
    torch.testing.assert_close(second["w"], SENT["w"] + norm_bound_mean(10 * first, bound))
    other = call(rows(first), memory=memory)
    rule.mean(Call(**{**other.__dict__, "key": "control"}))
    assert len(memory) == 2


def test_nobody_who_moves_gives_no_bound() -> None:
    memory: Tree = {}
    found = RobustRule(spec("norm-bound")).mean(call(rows(torch.zeros(3, 2)), memory=memory))
    assert torch.equal(found["w"], SENT["w"])
    assert memory == {}


def test_noise_of_the_bounded_mean_comes_from_the_call() -> None:
    rule = RobustRule(spec("norm-bound", bound=1.0, std=0.1))
    x = drawn(3)
    noisy = norm_bound_mean(x, 1.0, std=0.1, rng=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rule.mean(call(rows(x)))["w"], SENT["w"] + noisy)


def test_foolsgold_remembers_every_site_s_sum() -> None:
    memory: Tree = {}
    rule = RobustRule(spec("foolsgold"))
    first, second = drawn(4), drawn(4, 1)
    rule.mean(call(rows(first), memory=memory))
    kept = {site: row.clone() for site, row in next(iter(memory.values())).items()}
    later = {site: tree for site, tree in rows(second).items() if site != "s2"}
    found = rule.mean(call(later, memory=memory))
    keep = [0, 1, 3]
    wanted = foolsgold(second[keep], (first + second)[keep])
    torch.testing.assert_close(found["w"], SENT["w"] + wanted)
    (sums,) = memory.values()
    torch.testing.assert_close(sums["s0"], first[0] + second[0])
    torch.testing.assert_close(sums["s2"], first[2])
    assert set(kept) == {"s0", "s1", "s2", "s3"}
    wire.encode(memory)


def test_foolsgold_can_go_by_the_last_layer_alone() -> None:
    x, last = drawn(5), drawn(5, 3)
    trees = {
        f"s{i}": {"w": x[i].view(1, 2), "head": last[i].view(1, 2), "bias": torch.zeros(1)}
        for i in range(5)
    }
    found = RobustRule(spec("foolsgold", last_layer=True)).mean(call(trees, sent=None))
    torch.testing.assert_close(found["w"], foolsgold(x, last).view(1, 2))
    whole = RobustRule(spec("foolsgold")).mean(call(trees, sent=None))
    assert not torch.equal(whole["w"], found["w"])


def test_what_differs_is_refused_by_name() -> None:
    odd = {**values(1, 2), "s9": {"w": torch.ones(3), "n": torch.tensor(1)}}
    with pytest.raises(WireError, match="median of 'weights': it needs the same names"):
        RobustRule(spec("median")).mean(call(odd))
    with pytest.raises(ConfigError, match="krum of 'weights': .* needs at least 3 updates"):
        RobustRule(spec("krum")).mean(call(values(1, 2)))


@pytest.mark.parametrize(("count", "bears"), [(10, 2), (9, 1), (4, 0)])
def test_how_many_it_bears(count: int, bears: int) -> None:
    assert spec("median").bears(count) == bears
    assert spec("median", share=0.07).bears(100) == 7


@pytest.mark.parametrize(
    ("fields", "sites", "cohort", "reason"),
    [
        ({"name": "krum", "share": 0.4}, 10, None, "4 of 10 sites needs at least 11"),
        ({"name": "multi-krum", "share": 0.4}, 20, 5, "2 of 5 sites needs at least 7"),
        ({"name": "multi-krum", "share": 0.1, "chosen": 9}, 8, 10, "at least 9 sites .*chosen"),
        ({"name": "bulyan", "share": 0.3}, 20, 20, "6 of 20 sites needs at least 27"),
        ({"name": "fltrust"}, 20, 20, "protect.robust.root: 100"),
    ],
)
def test_too_few_sites_are_refused_before_the_first_round(
    fields: dict[str, Any], sites: int, cohort: int | None, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        RobustSpec.model_validate(fields).check(sites, cohort)


def test_just_enough_sites_will_do() -> None:
    spec("krum", share=0.4).check(11)
    spec("krum", share=0.4).check(30, 13)
    spec("bulyan").check(20)
    spec("trimmed-mean", share=0.49).check(3)
    spec("fltrust", root=50).check(1)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "mean"}, "trimmed-mean"),
        ({"name": "median", "share": 0.5}, "less than 0.5"),
        ({"name": "median", "bound": 2.0}, "bound is an option of norm-bound, not median"),
        ({"name": "krum", "chosen": 3}, "chosen is an option of multi-krum"),
        ({"name": "median", "kinds": ["votes"]}, "no rule puts votes together"),
        ({"name": "median", "kinds": []}, "at least 1"),
        ({"name": "multi-krum", "chosen": 3, "selection": "iterative"}, "end by themselves"),
        ({"name": "norm-bound", "quantile": 0.8, "share": 0.3}, "quantile of at most 0.7"),
    ],
)
def test_options_that_cannot_work_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RobustSpec.model_validate(fields)


def test_a_spec_reads_back_what_it_writes() -> None:
    for name in ("median", "norm-bound", "multi-krum", "fltrust"):
        plain = spec(name).model_dump(mode="json")
        assert RobustSpec.model_validate(plain) == spec(name)


def test_what_a_rule_says_of_itself() -> None:
    rule = RobustRule(spec("median", kinds=["logits"]))
    assert rule.kinds == {Kind.LOGITS}
    assert not rule.hides
    assert RobustRule(spec("median")).kinds == {Kind.WEIGHTS, Kind.GRADIENTS, Kind.CONTROL}
    with pytest.raises(ConfigError, match="protect.robust.root"):
        RobustRule(spec("fltrust", root=9))


def trained_root() -> tuple[Root, Averaging]:
    method = Averaging()
    return root_at(Serial(specs(["root"]), method, seed=0), "root"), method


def test_the_hub_s_own_update_is_what_a_trusted_site_makes_of_the_same() -> None:
    root, method = trained_root()
    fed = federation(method)
    sent = {name: value.clone() for name, value in fed.model.state_dict().items()}
    made = root(Call("train", "t", 0, "weights", {}, {}, sent, 3, torch.Generator(), {}))
    assert made.keys() == sent.keys()
    assert 0 < float(made["layer.weight"].norm()) < 5
    with pytest.raises(SiteError, match="own update could not be made"):
        root(Call("nothing", "u", 0, "weights", {}, {}, sent, 3, torch.Generator(), {}))


def test_fltrust_drops_the_update_that_goes_the_other_way() -> None:
    root, method = trained_root()
    fed = federation(method)
    sent = {name: value.clone() for name, value in fed.model.state_dict().items()}
    own = root(Call("train", "t", 0, "weights", {}, {}, sent, 3, torch.Generator(), {}))

    def moved(factor: float) -> Tree:
        return {
            name: value + factor * own[name] if value.is_floating_point() else value
            for name, value in sent.items()
        }

    given = {NAMES[0]: moved(3.0), NAMES[1]: moved(-5.0)}
    found = RobustRule(spec("fltrust", root=6), root).mean(call(given, sent=sent))
    torch.testing.assert_close(found["layer.weight"], sent["layer.weight"] + own["layer.weight"])


@pytest.mark.parametrize("name", ["median", "krum", "geometric-median", "norm-bound"])
@pytest.mark.usefixtures("rng_untouched")
def test_a_run_with_a_liar_ends_where_an_honest_one_does_not_far_off(name: str) -> None:
    def ended(attack: AttackSpec | None, rule: RobustRule | None) -> Tensor:
        method = Averaging(cohort=5)
        fed = federation(method)
        fed.protection = Protection(combiners=() if rule is None else (rule,))
        if attack is not None:
            fed.engine = Hostile(fed.engine, attack, method, seed=0)
        fed.start()
        return flat(fed.state["weights"])

    attack = AttackSpec(name="sign-flip", sites=("ben",), factor=100.0)
    clean = ended(None, None)
    robust = ended(attack, RobustRule(spec(name)))
    broken = ended(attack, None)
    assert float((robust - clean).norm()) < 0.2 * float((broken - clean).norm())
    assert torch.equal(robust, ended(attack, RobustRule(spec(name))))
