from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.methods import labelled
from torch import Tensor

from motet.core import ConfigError, Federation, SiteError
from motet.core.group import Group
from motet.core.rng import generator
from motet.experiment.runner import Result
from motet.experiment.runner import run as run_recipe
from motet.experiment.spec import Experiment
from motet.models.output_layer import frozen_body, output_layer, set_output_layer
from motet.nn.integrate import by_rule, held_out, noise

WIDTH = 32
MODEL = f"{{width: {WIDTH}, image: {{name: random-features, side: 8}}}}"
SKEW = "{name: pathological, classes_per_site: 2}"
STEP = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0, "batch": 4}
SETTINGS = (
    "server=null",
    "classify=false",
    "common_start=false",
    f"populations.site.models=[{MODEL}]",
    f"populations.site.partition={SKEW}",
    "populations.site.count=4",
)
LIARS = (
    f"populations=[{{name: site, count: 4, modalities: [image], models: [{MODEL}], "
    f"partition: {SKEW}}}, {{name: liar, count: 3, modalities: [image], models: [{MODEL}], "
    f"partition: {SKEW}, shift_labels: 1}}]"
)


def method(name: str = "bristle", **fields: Any) -> dict[str, Any]:
    return {"name": name, "rounds": 3, "held": 3, "step": STEP, **fields}


def made(*settings: str, **fields: Any) -> Experiment:
    return labelled.recipe(method(**fields), *SETTINGS, *settings)


def go(*settings: str, **fields: Any) -> Result:
    wanted = made(*settings, **fields)
    return run_recipe(wanted, parties=labelled.parties(wanted, labelled.rows(192, styles=1)))


def hub(*settings: str, **fields: Any) -> Federation:
    return labelled.federation(method(**fields), *SETTINGS, *settings)


def sites(fed: Federation) -> dict[str, Any]:
    """Site -> the site itself, to look at what it keeps."""
    return {name: door.site for name, door in fed.engine._doors.items()}


def asked(fed: Federation, op: str) -> list[dict[str, Any]]:
    """What the hub passes on with every call of this operation, while ``fed`` runs."""
    given: list[dict[str, Any]] = []
    ask = Group.ask

    def listening(group: Group, called: Any, **options: Any) -> Any:
        if called.__name__ == op:
            given.append(dict(options.get("each") or {}))
        return ask(group, called, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Group, "ask", listening)
        fed.start()
    return given


def told(result: Result) -> list[Any]:
    return [event for event in result.events if event["event"] == "metric"]


def accuracy(result: Result, population: str = "site") -> float:
    last = [event for event in told(result) if event["round"] == told(result)[-1]["round"]]
    found = [e["metrics"]["accuracy"][0] for e in last if e["party"].startswith(population)]
    return sum(found) / len(found)


def test_it_runs_without_a_server_and_keeps_nothing_at_the_hub() -> None:
    fed = hub()
    fed.start()
    assert fed.state == {}
    assert fed._model is None
    assert {event["party"] for event in told(go())} == {f"site-{n}" for n in (1, 2, 3, 4)}


def test_a_message_is_the_output_layer_and_nothing_else() -> None:
    result = go()
    size = 4 * WIDTH * 4
    replied = [event for event in result.events if event["event"] == "replied"]
    posts = [event["up"].get("weights", 0) for event in replied if event["op"] == "post"]
    assert posts == [0] * 4 + [size] * 8
    read = [event["down"].get("weights", 0) for event in replied if event["op"] == "iterate"]
    assert read == [0] * 4 + [3 * size] * 8
    assert not any("weights" in event["up"] for event in replied if event["op"] == "iterate")


def test_letters_were_posted_before_anyone_trained() -> None:
    """What arrives in an iteration is what its sender had at the end of the one before."""
    for latency in (0, 2):
        fed = hub(rounds=5, latency=latency)
        kept: list[dict[str, Tensor]] = []
        rounds = fed.rounds

        def each(count: int, fed: Any = fed, kept: Any = kept, rounds: Any = rounds) -> Any:
            for number in rounds(count):
                boxes = {name: door._kept["state"] for name, door in fed.engine._doors.items()}
                kept.append({n: s["outbox"][-1] for n, s in boxes.items() if "outbox" in s})
                yield number

        fed.rounds = each
        letters = asked(fed, "iterate")
        for number in range(5):
            for receiver, letter in letters[number].items():
                before = number - latency
                expected = kept[before] if before >= 0 else {}
                assert set(letter["layer"]) == set(expected) - {receiver}
                for peer, layer in letter["layer"].items():
                    assert torch.equal(layer, expected[peer])


def test_the_first_letter_is_empty_and_own_foreign_columns_start_at_0() -> None:
    fed = hub(rounds=1)
    fed.start()
    for site in sites(fed).values():
        layer = output_layer(site.model)
        foreign = [c for c in range(4) if c not in site.data.labels.tolist()]
        assert len(foreign) == 2
        assert torch.equal(layer[:, foreign], torch.zeros(WIDTH, 2))
        assert float(layer.abs().max()) > 0
        torch.testing.assert_close(layer.mean(dim=0), torch.zeros(4), atol=1e-6, rtol=0)


def test_own_training_of_foreign_columns_is_forgotten_only_where_it_is_wanted() -> None:
    fed = hub(rounds=1, foreign="trained")
    fed.start()
    for site in sites(fed).values():
        foreign = [c for c in range(4) if c not in site.data.labels.tolist()]
        assert float(output_layer(site.model)[:, foreign].abs().max()) > 0


def test_knowledge_of_foreign_classes_arrives() -> None:
    alone = go(name="gossip", rule="none", rounds=10)
    assert accuracy(go(rounds=10)) > accuracy(alone) + 20


def test_liars_do_no_harm_to_bristle_and_ruin_the_mean() -> None:
    bristle = go(LIARS, rounds=10)
    assert accuracy(bristle) > accuracy(go(LIARS, name="gossip", rounds=10)) + 10
    assert accuracy(bristle) > accuracy(go(rounds=10)) - 5


def test_peers_count_common_classes_and_silent_ones_share_all() -> None:
    fed = hub(LIARS, rounds=1, noisy="liar")
    fed.start()
    for name, site in sites(fed).items():
        common = site.state.get("common")
        if name.startswith("liar"):
            assert common is None
            continue
        assert sorted(common) == sorted({f"site-{n}" for n in (1, 2, 3, 4)} - {name})
        for other, count in common.items():
            mine = set(site.data.labels.tolist())
            assert count == len(mine & set(sites(fed)[other].data.labels.tolist()))


def test_every_tested_peer_is_judged_by_its_own_number_of_common_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two peers share 2 classes, others 1 or none: the numbers go with the layers."""
    judged: list[Any] = []

    def watching(own: Tensor, others: Tensor, *rest: Any) -> Tensor:
        judged.append((others, rest[2]))
        return own

    monkeypatch.setattr("motet.methods.bristle.integrated", watching)
    fed = hub("populations.site.count=6", rounds=2, select="uniform", budget=3)
    letters = asked(fed, "iterate")[1]
    assert len(judged) == 6
    for (others, shared), name in zip(judged, sorted(letters), strict=True):
        assert len(others) == len(shared) == 3
        common = sites(fed)[name].state["common"]
        for layer, count in zip(others, shared.tolist(), strict=True):
            found = letters[name]["layer"].items()
            (peer,) = [peer for peer, sent in found if torch.equal(sent, layer)]
            assert common[peer] == count
    assert len({count for _, shared in judged for count in shared.tolist()}) > 1


def test_noise_is_what_attackers_send() -> None:
    letters = asked(hub(LIARS, rounds=2, noisy="liar"), "iterate")[1]["site-1"]["layer"]
    for peer, layer in letters.items():
        low, high = layer[:, :2], layer[:, 2:]
        noisy = float(low.max()) <= 0 <= float(high.min()) and float(layer.abs().max()) <= 0.5
        assert noisy == peer.startswith("liar")
    assert not torch.equal(letters["liar-1"], letters["liar-2"])


def test_layers_that_are_not_finite_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(like: Tensor, rng: torch.Generator) -> Tensor:
        return torch.full_like(like, torch.nan)

    monkeypatch.setattr("motet.methods.output_peers.noise", broken)
    for name in ("bristle", "gossip"):
        fed = hub(LIARS, name=name, noisy="liar", quorum=0.5)
        fed.start()
        for site in sites(fed).values():
            assert bool(output_layer(site.model).isfinite().all())


def test_rows_for_tests_are_never_trained_on_and_stay_the_same() -> None:
    fed = hub(rounds=2)
    fed.start()
    for site in sites(fed).values():
        train, tests = fed.method.own_rows(site)
        assert not set(train.rows.tolist()) & set(tests.rows.tolist())
        assert len(train) + len(tests) == len(site.data)
        assert tests.labels.bincount().tolist() == [
            3 * bool(n) for n in site.data.labels.bincount().tolist()
        ]


def test_the_tests_are_at_most_half_of_a_class() -> None:
    labels = torch.tensor([0] * 30 + [1] * 5 + [2] + [-100] * 4)
    held = held_out(labels, 8, generator(0))
    assert labels[held].bincount().tolist() == [8, 2]
    assert torch.equal(held, held_out(labels, 8, generator(0)))


def test_peers_may_come_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [event["metrics"] for event in told(go(pattern="random-2"))]
    from motet.engines.serial import Serial

    send = Serial.send
    monkeypatch.setattr(Serial, "send", lambda self, requests: send(self, list(requests)[::-1]))
    assert [event["metrics"] for event in told(go(pattern="random-2"))] == plain


@pytest.mark.parametrize("pattern", ["ring", "round-robin", "random-1"])
def test_fewer_letters_are_fewer_bytes(pattern: str) -> None:
    result = go(pattern=pattern)
    read = [e["down"].get("weights", 0) for e in result.events if e.get("op") == "iterate"]
    assert sum(read) == 2 * 4 * 4 * WIDTH * 4


def test_a_dead_peer_is_passed_over_with_a_quorum() -> None:
    fed = hub(quorum=0.5)
    send = fed.engine.send

    def failing(requests: Any) -> None:
        send([replace(item, op="no") if item.site == "site-2" else item for item in requests])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fed.engine, "send", failing)
        letters = asked(fed, "iterate")
    assert set(letters[2]["site-1"]["layer"]) == {"site-3", "site-4"}


def test_other_bodies_are_refused() -> None:
    other = MODEL.replace("side: 8", "side: 8, draw: 1")
    both = LIARS.replace(MODEL, other, 1)
    with pytest.raises(ConfigError, match="one and the same frozen body"):
        go(both)
    # The same specification with weights of one's own, which no facts tell.
    apart = f"populations.site.models=[{{width: {WIDTH}, image: {{name: pixel-mlp, side: 8}}}}]"
    with pytest.raises(SiteError, match=r"another frozen body; write common_start: true"):
        go(apart)
    assert accuracy(go(apart, "common_start=true")) > 0


def test_peers_without_a_head_are_refused() -> None:
    with pytest.raises(ConfigError, match="classify: true in each population"):
        go("populations.site.classify=false")


def test_a_frozen_body_has_a_head_from_0_without_a_bias() -> None:
    wanted = made()
    model = labelled.parties(wanted).sites[0].build()
    assert [name for name, value in model.named_parameters() if value.requires_grad] == [
        "head.weight"
    ]
    assert torch.equal(output_layer(model), torch.zeros(WIDTH, 4))
    layer = torch.randn(WIDTH, 4, generator=generator(0))
    set_output_layer(model, layer)
    assert torch.equal(output_layer(model), layer)
    copy = output_layer(model)
    copy += 1
    assert torch.equal(output_layer(model), layer)
    assert frozen_body(model).head.bias is None


def test_plain_rules_by_hand() -> None:
    layers = torch.tensor([1.0, 2.0, 9.0, 3.0, 2.5]).view(5, 1, 1).expand(5, 2, 3)
    found = {rule: float(by_rule(rule, layers, 1)[0, 0]) for rule in ("none", "mean", "median")}
    assert found == {"none": 1.0, "mean": 3.5, "median": 2.5}
    assert float(by_rule("trimmed-mean", layers, 1)[0, 0]) == 2.5
    assert float(by_rule("krum", layers, 1)[0, 0]) in (2.0, 2.5, 3.0)
    assert by_rule("krum", layers, 1).shape == (2, 3)


def test_noise_by_hand() -> None:
    layer = noise(torch.zeros(200, 5), generator(0))
    assert float(layer[:, :2].max()) <= 0
    assert float(layer[:, 2:].min()) >= 0
    assert 0.45 < float(layer.abs().max()) <= 0.5


def test_uniform_selection_tests_a_budget_of_peers() -> None:
    bristle = made(budget=3, select="uniform").method
    own = torch.zeros(2, 4)
    layers = torch.arange(12.0).view(12, 1, 1).expand(12, 2, 4)
    assert len(set(bristle.chosen(own, layers, generator(0)).tolist())) == 3
    near = made(budget=3, explore=0.0).method.chosen(own, layers, generator(0))
    assert set(near.tolist()) <= set(range(4))
