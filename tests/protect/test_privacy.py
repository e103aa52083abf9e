import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from motet.core.errors import BudgetError, ConfigError
from motet.core.guard import Call, Question
from motet.core.kinds import Kind
from motet.core.method import Operation
from motet.core.rng import generator
from motet.core.tree import Tree
from motet.protect.accountant import default_delta, gaussian_epsilon
from motet.protect.central_privacy import CentralPrivacy
from motet.protect.privacy import PrivacySpec, check_operations, describe, uncovered

SCAFFOLD = {"weights": Kind.WEIGHTS, "change": Kind.CONTROL}
BOTH = (Kind.WEIGHTS, Kind.CONTROL)


def spec(**fields: Any) -> PrivacySpec:
    return PrivacySpec.model_validate(fields)


def question(
    sites: Mapping[str, Tree],
    sends: Mapping[str, Kind] = SCAFFOLD,
    tag: str = "0.0.1",
    chance: float = 1.0,
    population: int | None = None,
) -> Question:
    return Question(
        op="train",
        tag=tag,
        round=int(tag.split(".")[1]),
        sends=sends,
        sites=tuple(sites),
        shared={},
        received=sites,
        chance=chance,
        population=len(sites) if population is None else population,
    )


def call(
    key: str, asked: Question, values: Mapping[str, Tree], memory: Tree, seed: int = 0
) -> Call:
    return Call(
        op=asked.op,
        tag=asked.tag,
        round=asked.round,
        key=key,
        values={site: value[key] for site, value in values.items() if key in value},
        weights=dict.fromkeys(values, 9.0),
        sent=None,
        cohort=len(asked.sites),
        rng=generator(seed, key, asked.tag),
        memory=memory,
    )


def mean_of(
    rule: CentralPrivacy, key: str, replies: Mapping[str, Tree], sent: Tree, seed: int = 0
) -> Any:
    """The private mean over these sites, all of which were asked with the same."""
    asked = question(dict.fromkeys(replies, sent))
    admitted = rule.admit(replies, asked, {})
    return rule.mean(call(key, asked, admitted, {}, seed))


def update(seed: int, size: float = 1.0) -> Tree:
    """One site's weights [6, 5] and [5], about ``size`` long, and a counter."""
    drawn = torch.randn(35, generator=generator(seed, "update"))
    drawn *= size / drawn.norm()
    return {"w": drawn[:30].view(6, 5), "b": drawn[30:], "seen": torch.tensor(7)}


def replies(count: int = 4, size: float = 1.0) -> dict[str, Tree]:
    return {
        f"site-{i}": {"weights": update(i, size), "change": update(100 + i, size), "samples": i}
        for i in range(count)
    }


START: Tree = {
    "weights": {"w": torch.ones(6, 5), "b": torch.ones(5), "seen": torch.tensor(3)},
    "control": {"w": torch.zeros(6, 5), "b": torch.zeros(5), "seen": torch.tensor(0)},
}
# "change" has counters too, so the hub sends them.
SENT: Tree = {**START, "change": START["control"]}


def flat(tree: Tree) -> Tensor:
    return torch.cat([tree["w"].flatten(), tree["b"]])


def central(**fields: Any) -> CentralPrivacy:
    return CentralPrivacy(spec(kinds=BOTH, **fields), sites=10)


def test_without_noise_and_clip_it_is_the_plain_mean() -> None:
    given = replies()
    found = mean_of(central(clip=math.inf, noise=0.0), "weights", given, SENT)
    plain = torch.stack([flat(reply["weights"]) for reply in given.values()]).mean(dim=0)
    torch.testing.assert_close(flat(found), plain)
    assert found["w"].shape == (6, 5)


def test_counters_stay_the_hubs_own() -> None:
    assert int(mean_of(central(), "weights", replies(), SENT)["seen"]) == 3


def test_weights_that_sites_claim_do_not_count() -> None:
    given = replies(2)
    rule = central(clip=math.inf, noise=0.0)
    asked = question(dict.fromkeys(given, SENT))
    admitted = rule.admit(given, asked, {})
    heavy = call("weights", asked, admitted, {})
    heavy.weights["site-0"] = 1e12  # type: ignore[index]
    torch.testing.assert_close(
        flat(rule.mean(heavy)),
        (flat(given["site-0"]["weights"]) + flat(given["site-1"]["weights"])) / 2,
    )


def test_noise_is_on_the_sum_once_and_divided_by_the_cohort() -> None:
    rule, still = central(clip=2.0, noise=1.5), central(clip=2.0, noise=0.0)
    given = replies(4)
    base = flat(mean_of(still, "weights", given, SENT))
    noise = torch.stack(
        [flat(mean_of(rule, "weights", given, SENT, seed)) - base for seed in range(200)]
    )
    assert float(noise.std()) == pytest.approx(1.5 * 2.0 / 4, rel=0.1)
    assert abs(float(noise.mean())) < 0.05


def test_two_keys_of_one_reply_are_clipped_together() -> None:
    # A site that sends a lot moves both sums together by the clip at most.
    rule = central(clip=2.0, noise=0.0)
    given = replies(3)
    huge = {"weights": update(7, 1e6), "change": update(8, 1e6)}
    gaps = []
    for key in SCAFFOLD:
        sums = [
            flat(mean_of(rule, key, members, SENT)) * len(members)
            for members in (given, {**given, "liar": huge})
        ]
        one = START["weights"] if key == "weights" else START["control"]
        # A mean is what was sent plus a share of the steps.
        gaps.append(sums[1] - sums[0] - flat(one))
    moved = float(torch.cat(gaps).norm())
    assert moved == pytest.approx(2.0, rel=1e-3)
    # About evenly, since the update of each key was as long.
    assert float(gaps[0].norm()) == pytest.approx(math.sqrt(2), rel=0.05)


def test_a_damaged_reply_counts_as_no_change() -> None:
    rule = central(clip=math.inf, noise=0.0)
    given = replies(2)
    given["site-1"]["change"]["w"][0, 0] = math.nan
    found = flat(mean_of(rule, "weights", given, SENT))
    torch.testing.assert_close(
        found, (flat(given["site-0"]["weights"]) + flat(START["weights"])) / 2
    )


def test_the_same_question_has_the_same_mean_again() -> None:
    rule = central(adaptive={"bits_noise": 2.0})
    given, memory = replies(), {}
    asked = question(dict.fromkeys(given, SENT))
    admitted = rule.admit(given, asked, memory)
    first = rule.mean(call("weights", asked, admitted, memory))
    clips = dict(memory["clips"])
    assert torch.equal(flat(first), flat(rule.mean(call("weights", asked, admitted, memory))))
    # And the clip has moved once, by one noisy count, whatever else is asked for.
    rule.mean(call("change", asked, admitted, memory))
    assert memory["clips"] == clips


def test_nobody_answered_is_what_was_sent_and_noise() -> None:
    rule = central(clip=2.0, noise=1.0)
    asked = question({"site-0": SENT, "site-1": SENT})
    admitted = rule.admit({}, asked, {})
    found = rule.mean(call("weights", asked, admitted, {}))
    gap = flat(found) - flat(START["weights"])
    assert 0.7 < float(gap.std()) < 1.3
    assert int(found["seen"]) == 3


def test_nobody_answered_and_nothing_was_sent_is_refused() -> None:
    rule = central()
    asked = question({"site-0": {}})
    rule.admit({}, asked, {})
    with pytest.raises(ConfigError, match="no private mean of 'weights': nobody answered"):
        rule.mean(call("weights", asked, {}, {}))


def test_by_poisson_the_divisor_is_the_cohort_on_average() -> None:
    given = replies(2)
    rule = central(clip=math.inf, noise=0.0, sampling="poisson")
    nothing: dict[str, Tree] = {site: {} for site in given}
    asked = question(nothing, {"change": Kind.CONTROL}, chance=0.4, population=20)
    given = {site: {"change": flat(value["change"])} for site, value in given.items()}
    admitted = rule.admit(given, asked, {})
    found = rule.mean(call("change", asked, admitted, {}))
    torch.testing.assert_close(found, sum(value["change"] for value in given.values()) / 8)


def test_parts_that_only_some_sites_have_are_no_change_at_others() -> None:
    sent = {"weights": {"image": torch.zeros(3), "text": torch.ones(2)}}
    given = {
        "a": {"weights": {"image": torch.ones(3)}},
        "b": {"weights": {"image": torch.ones(3), "text": torch.full((2,), 3.0)}},
    }
    rule = central(clip=math.inf, noise=0.0)
    asked = question(dict.fromkeys(given, sent), {"weights": Kind.WEIGHTS})
    found = rule.mean(call("weights", asked, rule.admit(given, asked, {}), {}))
    torch.testing.assert_close(found["image"], torch.ones(3))
    torch.testing.assert_close(found["text"], torch.full((2,), 2.0))


def test_what_sites_got_of_their_own_is_no_common_base() -> None:
    given = {"a": {"weights": torch.ones(3)}, "b": {"weights": torch.full((3,), 3.0)}}
    received = {"a": {"weights": torch.ones(3)}, "b": {"weights": torch.zeros(3)}}
    rule = central(clip=math.inf, noise=0.0)
    asked = question(received, {"weights": Kind.WEIGHTS})
    found = rule.mean(call("weights", asked, rule.admit(given, asked, {}), {}))
    torch.testing.assert_close(found, torch.full((3,), 2.0))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"bits": torch.zeros(3, dtype=torch.uint8)}, r"weights\.bits is a uint8 tensor"),
        ({"w": torch.zeros(2), "name": "x"}, r"weights\.name is a str"),
        ({"w": torch.zeros(2), "count": 3}, r"weights\.count is a int"),
    ],
)
def test_what_no_clip_covers_is_refused(value: Tree, words: str) -> None:
    asked = question({"a": {}}, {"weights": Kind.WEIGHTS})
    with pytest.raises(ConfigError, match=words):
        central().admit({"a": {"weights": value}}, asked, {})


def test_shapes_that_differ_among_sites_are_refused() -> None:
    asked = question({"a": {}, "b": {}}, {"weights": Kind.WEIGHTS})
    given = {"a": {"weights": torch.zeros(2)}, "b": {"weights": torch.zeros(3)}}
    with pytest.raises(ConfigError, match=r"shape \(2,\) at one site and \(3,\) at another"):
        central().admit(given, asked, {})


def test_admitting_changes_no_reply_and_hides_the_values() -> None:
    given = replies(2)
    before = flat(given["site-0"]["weights"]).clone()
    central(clip=0.01).admit(given, question(dict.fromkeys(given, SENT)), {})
    assert torch.equal(flat(given["site-0"]["weights"]), before)
    assert central().hides
    assert central().kinds == frozenset(BOTH)


def test_means_of_an_earlier_round_are_gone() -> None:
    rule = central()
    given = replies(2)
    first = question(dict.fromkeys(given, SENT), tag="0.0.1")
    second = question(dict.fromkeys(given, SENT), tag="0.0.2")
    third = question(dict.fromkeys(given, SENT), tag="0.1.3")
    kept = rule.admit(given, first, {})
    rule.admit(given, second, {})
    rule.mean(call("weights", first, kept, {}))
    rule.admit(given, third, {})
    with pytest.raises(ConfigError, match="the question is of another round"):
        rule.mean(call("weights", first, kept, {}))


def test_the_clip_follows_the_norms() -> None:
    rule = central(clip=0.1, noise=0.0, adaptive={"quantile": 0.5, "rate": 0.2})
    given, memory = replies(4, size=2.0), {}
    sent = {**SENT, "weights": SENT["control"]}
    for number in range(60):
        asked = question(dict.fromkeys(given, sent), tag=f"0.{number}.1")
        rule.spend(asked, memory)
        rule.mean(call("weights", asked, rule.admit(given, asked, memory), memory, number))
    # Two keys of length 2 each.
    assert memory["clips"]["train"] == pytest.approx(2 * math.sqrt(2), rel=0.25)


def test_an_adaptive_clip_noises_updates_more_and_costs_the_same() -> None:
    given = replies(4)
    sent = dict.fromkeys(given, SENT)
    wide = central(noise=1.0, adaptive={"bits_noise": 0.6})
    asked = question(sent)
    notes = [rule.spend(asked, {}) for rule in (wide, central(noise=1.0))]
    assert notes[0]["epsilon"] == notes[1]["epsilon"]
    noise = []
    for seed in range(100):
        memory: Tree = {}
        found = wide.mean(call("weights", asked, wide.admit(given, asked, memory), memory, seed))
        noise.append(flat(found))
    expected = (1.0 - (2 * 0.6) ** -2) ** -0.5
    assert float(torch.stack(noise).std(dim=0).mean()) == pytest.approx(expected / 4, rel=0.1)
    with pytest.raises(ConfigError, match="bits_noise=0.2 spends more than noise=1 allows"):
        # A twentieth of the cohort of 4; told before anybody is asked.
        central(noise=1.0, adaptive={}).spend(asked, {})


def test_epsilon_is_that_of_dp_accounting_and_survives_a_stop() -> None:
    rule = central(noise=1.1, sampling="poisson", delta=1e-3)
    memory: Tree = {}
    for number in range(20):
        asked = question({"a": {}}, tag=f"0.{number}.1", chance=0.2, population=10)
        # A new rule with the kept memory, as after a crash.
        note = central(noise=1.1, sampling="poisson", delta=1e-3).spend(asked, dict(memory))
        assert note == rule.spend(asked, memory)
    assert note["epsilon"] == pytest.approx(gaussian_epsilon(1.1, 0.2, 20, 1e-3), abs=1e-6)
    assert (note["unit"], note["delta"], note["clip"]) == ("site", 1e-3, 1.0)


def test_a_fixed_sample_is_no_poisson_sample() -> None:
    asked = question({"a": {}}, chance=0.2, population=10)
    fixed = central(noise=4.0).spend(asked, {})
    drawn = central(noise=4.0, sampling="poisson").spend(asked, {})
    assert fixed["epsilon"] > drawn["epsilon"]
    assert "sampling" in fixed["bound"]
    assert fixed["delta"] == default_delta(10)


def test_two_questions_to_one_sample_cost_more_than_to_two_samples() -> None:
    def spent(tags: list[str]) -> float:
        memory: Tree = {}
        rule = central(noise=2.0, sampling="poisson", delta=1e-4)
        for tag in tags:
            note = rule.spend(question({"a": {}}, tag=tag, chance=0.1, population=10), memory)
        return float(note["epsilon"])

    assert spent(["0.0.1", "0.0.2"]) > 1.05 * spent(["0.0.1", "0.1.2"])


def test_the_budget_stops_before_the_release_that_would_exceed_it() -> None:
    rule = central(noise=1.0, epsilon=8.0, delta=1e-3)
    memory: Tree = {}
    notes = []
    with suppress(BudgetError):
        for number in range(100):
            notes.append(rule.spend(question({"a": {}}, tag=f"0.{number}.1"), memory))
    spent = [note["epsilon"] for note in notes]
    assert len(spent) > 1
    assert spent == sorted(spent)
    assert spent[-1] <= 8 < gaussian_epsilon(1.0, 1.0, len(spent) + 1, 1e-3)
    kept = dict(memory)
    with pytest.raises(BudgetError, match=r"more than protect\.privacy\.epsilon=8"):
        rule.spend(question({"a": {}}, tag="0.200.1"), memory)
    assert memory == kept


def test_without_noise_epsilon_is_told_as_none() -> None:
    assert central(noise=0.0).spend(question({"a": {}}), {})["epsilon"] is None


def test_metrics_stay_uncovered_and_are_named() -> None:
    sends = {"weights": Kind.WEIGHTS, "metrics": Kind.METRIC}
    assert uncovered(sends, spec()) == ["metrics"]
    operations = {"train": Operation({"weights": Kind.WEIGHTS}), "evaluate": Operation(sends)}
    assert check_operations(operations, spec()) == {"evaluate": ["metrics"]}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Kind.CONTROL, r"does not cover 'x', which is of kind control; write kinds: "),
        (Kind.REPRESENTATIONS, r"kinds: \[weights, representations\]"),
        (Kind.VOTES, "write mode: local, add votes to kinds"),
        (Kind.LABELS, "nothing of kind labels can be clipped and noised"),
    ],
)
def test_another_kind_is_refused_with_what_to_write(kind: Kind, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        uncovered({"weights": Kind.WEIGHTS, "x": kind}, spec())
    with pytest.raises(ConfigError, match=words):
        CentralPrivacy(spec(), 10).spend(question({"a": {}}, {"x": kind}), {})
    assert uncovered({"x": kind}, spec(mode="rows")) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"clip": math.inf}, "an infinite one bounds nothing"),
        ({"noise": 0.0, "epsilon": 3.0}, "without noise every release exceeds it"),
        ({"mode": "local", "adaptive": {}}, "only mode: central"),
        ({"dropouts": 2}, "only mode: distributed"),
        ({"mode": "local", "sampling": "poisson"}, "only mode: central gains"),
        ({"mode": "distributed", "sampling": "poisson"}, "only mode: central gains"),
        ({"mode": "rows", "kinds": ["logits"]}, "mode: rows covers all"),
        ({"kinds": ["votes"]}, "protected by mode: local alone"),
        ({"mode": "local", "kinds": ["votes"]}, "give both, and votes among the kinds"),
        ({"mode": "local", "vote_epsilon": 1.0, "vote_choices": 3}, "give both, and votes"),
        ({"kinds": ["metric"]}, "metric cannot be clipped"),
        ({"clip": 0.0}, "clip"),
        ({"noise": -1.0}, "noise"),
        ({"clipp": 1.0}, "clipp"),
        ({"kinds": []}, "kinds"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: Tree, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ["one site", "zero-out", "L2 norm of 1", "replacement", "delta = 0.0135"]),
        ({"sampling": "poisson", "adaptive": {}}, ["by an equal chance", "0.5 quantile"]),
        ({"mode": "local"}, ["so many releases", "two clips apart", "not trusted"]),
        ({"mode": "distributed", "epsilon": 3}, ["secure sum", "exceeds 3"]),
        (
            {"mode": "rows", "accountant": "pld"},
            ["one private row", "add or remove", "privacy loss"],
        ),
    ],
)
def test_the_unit_and_the_relation_are_told(fields: Tree, words: list[str]) -> None:
    text = describe(spec(**fields), 50)
    for word in [*words, "Not covered: metrics", "who knows the seed"]:
        assert word in text
