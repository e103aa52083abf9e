"""Federated rank learning: orders up and down, one vote each, and nothing but positions moves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.methods import labelled
from torch import Tensor

from motet.core import ConfigError, Replies, SiteError, WireError, wire
from motet.core.tree import clone, weights_of
from motet.methods.frl import FRL, adopt, read_ballot
from motet.nn.bits import pack_order, unpack_order
from motet.nn.edge_popup import edge_mask, masked_layers
from motet.nn.robust import elected, ranks_of

EDGES = {"encoders.image.layers.0": 512, "head": 32}
SMALL = ("method.rounds=2", "method.local.epochs=1", "method.local.lr=0.1")


def method(**fields: Any) -> dict[str, Any]:
    return {"name": "frl", "rounds": 2, "local": {"lr": 0.1, "epochs": 1, "batch": 8}, **fields}


def orders(seed: int = 0) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)
    return {name: pack_order(torch.randperm(n, generator=rng), n) for name, n in EDGES.items()}


def random_scores(n: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def election(scores: list[Tensor]) -> Tensor:
    return elected([ranks_of(score.argsort(stable=True), len(score)) for score in scores])


def test_hyper_parameters_are_the_paper_s() -> None:
    local = FRL().local
    assert (local.lr, local.momentum, local.weight_decay, local.decay) == (0.4, 0.9, 1e-4, 0.999)
    assert (local.batch, FRL().keep, FRL().score_key) == (8, 0.5, "abs")


def test_an_increasing_transform_of_a_site_s_scores_changes_nothing() -> None:
    scores = [random_scores(seed=seed) for seed in range(5)]
    plain = election(scores)
    for transform in (lambda x: 1e5 * x, torch.exp, lambda x: x**3 - 7):
        assert torch.equal(election([transform(scores[0]), *scores[1:]]), plain)
    # An average of scores is what a single site can steer.
    loud = torch.stack([-1e5 * scores[0], *scores[1:]]).mean(dim=0).argsort()
    assert torch.equal(loud, (-scores[0]).argsort())
    assert not torch.equal(election([-1e5 * scores[0], *scores[1:]]), loud)


def test_equal_ballots_elect_that_ballot_and_raw_uploads_do_not() -> None:
    order = random_scores().argsort()
    assert torch.equal(elected([ranks_of(order, 40)] * 3), order)
    assert not torch.equal(elected([order] * 3), order)


def test_a_vote_that_turns_one_pair_around() -> None:
    # Two voters say 0 < 1 < 2, one 2 < 1 < 0: sums of ranks 2, 3, 4.
    ballots = [torch.tensor(ballot) for ballot in ([0, 1, 2], [0, 1, 2], [2, 1, 0])]
    assert elected([ranks_of(ballot, 3) for ballot in ballots]).tolist() == [0, 1, 2]


def test_layers_vote_apart_and_the_edges_bytes_are_exact() -> None:
    result = labelled.go(method(cohort=3))
    replied = [event for event in result.events if event["event"] == "replied"]
    wanted = math.ceil(512 * 9 / 8) + math.ceil(32 * 5 / 8)
    assert {event["up"]["votes"] for event in replied} == {wanted}
    assert {(event["round"], event["down"].get("votes")) for event in replied} == {
        (0, None),
        (1, wanted),
    }
    assert all(set(event["up"]) == {"frame", "votes"} for event in replied)


def test_uploads_are_at_most_half_of_fedavg_s() -> None:
    big = (
        "server={width: 64, image: {name: pixel-mlp, side: 8, bias: false}}",
        "populations.site.models=[{width: 64, image: {name: pixel-mlp, side: 8, bias: false}}]",
    )
    sent = {}
    for name in ("frl", "fedavg"):
        result = labelled.go(name, "method.rounds=1", "method.local.epochs=0", *big)
        replied = [event for event in result.events if event["event"] == "replied"]
        sent[name] = sum(event["up"]["frame"] for event in replied)
    assert sent["frl"] <= 0.5 * sent["fedavg"]


def test_hub_and_sites_draw_one_network() -> None:
    wanted = labelled.recipe(method())
    made = labelled.parties(wanted)
    models = [made.build_server(), *(site.build() for site in made.sites)]
    first, *others = [model.state_dict() for model in models]
    assert set(weights_of(models[0])) == {f"{name}.scores" for name in EDGES}
    for other in others:
        assert all(torch.equal(other[name], first[name]) for name in first)
    head = [masked_layers(model)["head"] for model in models]
    # Frozen ones are the same memory, scores are each site's own.
    assert len({layer.edges.weight.data_ptr() for layer in head}) == 1
    assert len({layer.levels.data_ptr() for layer in head}) == 1
    assert len({layer.scores.data_ptr() for layer in head}) == 4


def test_training_moves_scores_and_never_weights() -> None:
    fed = labelled.federation(method(cohort=3))
    frozen = {name: value.clone() for name, value in fed.model.state_dict().items()}
    fed.start()
    after = fed.model.state_dict()
    for name, layer in masked_layers(fed.model).items():
        assert torch.equal(after[f"{name}.edges.weight"], frozen[f"{name}.edges.weight"])
        assert not torch.equal(after[f"{name}.scores"], frozen[f"{name}.scores"])
        assert torch.equal(layer.scores.detach().flatten().sort().values, layer.levels)
        order = unpack_order(fed.state["orders"][name])
        assert torch.equal(layer.scores.detach().flatten()[order], layer.levels)


def test_sites_send_the_order_of_their_trained_scores() -> None:
    """Without training everybody's order is the one that came down."""
    fed = labelled.federation(method(local={"epochs": 0}))
    replies = fed.all.ask(FRL.train, orders=orders())
    for reply in replies.values():
        assert wire.digest(reply["votes"]) == wire.digest(orders())
    first = fed.all.ask(FRL.train)
    for name, layer in masked_layers(fed.model).items():
        for reply in first.values():
            assert torch.equal(unpack_order(reply["votes"][name]), layer.ranking())


def test_the_hub_counts_every_site_once_whatever_it_holds() -> None:
    fed = labelled.federation(method())
    sent = {f"site-{i}": {"votes": orders(i), "samples": 10.0**i} for i in range(3)}
    found = fed.method.elect(fed, Replies(sent, {}))
    for name, n in EDGES.items():
        ballots = [unpack_order(reply["votes"][name]) for reply in sent.values()]
        assert torch.equal(
            unpack_order(found[name]),
            sum(ballot.argsort() for ballot in ballots).argsort(stable=True),
        )
        assert len(ballots[0]) == n


def test_adopting_an_order_moves_positions_alone() -> None:
    fed = labelled.federation(method())
    adopt(fed.model, orders(1))
    first = clone(fed.model.state_dict())
    adopt(fed.model, orders(2))
    adopt(fed.model, orders(1))
    assert wire.digest(first) == wire.digest(fed.model.state_dict())
    with pytest.raises(WireError, match="orders of"):
        adopt(fed.model, {"head": orders()["head"]})


@pytest.mark.parametrize(
    "bad",
    [
        None,
        {},
        {"head": orders()["head"]},
        {**orders(), "more": orders()["head"]},
        {**orders(), "head": pack_order(torch.arange(31), 31)},
        {**orders(), "head": {**orders()["head"], "bits": torch.zeros(20, dtype=torch.uint8)}},
        {**orders(), "head": torch.randn(32)},
    ],
)
def test_a_ballot_that_is_none_is_left_out_and_told(bad: Any) -> None:
    with pytest.raises(WireError):
        read_ballot(bad, EDGES)
    fed = labelled.federation(method())
    good = {"site-1": {"votes": orders(1)}, "site-3": {"votes": orders(3)}}
    found = fed.method.elect(fed, Replies({**good, "site-2": {"votes": bad}}, {}))
    assert wire.digest(found) == wire.digest(fed.method.elect(fed, Replies(good, {})))
    (event,) = [event for event in fed.events.memory if event["event"] == "log"]
    assert event["refused"] == "site-2"
    with pytest.raises(SiteError, match="no site sent"):
        fed.method.elect(fed, Replies({"site-2": {"votes": bad}}, {}))


def test_a_sparse_upload_names_the_top() -> None:
    fed = labelled.federation(method(named=0.25, local={"epochs": 0}))
    reply = fed.all.ask(FRL.train, orders=orders())["site-1"]
    for name, n in EDGES.items():
        top = unpack_order(reply["votes"][name], n)
        assert torch.equal(top, unpack_order(orders()[name])[-n // 4 :])
    found = fed.method.elect(fed, Replies({"site-1": reply}, {}))
    for name, n in EDGES.items():
        order = unpack_order(found[name])
        assert torch.equal(order[-n // 4 :], unpack_order(orders()[name])[-n // 4 :])
        # The others have rank 0 alike, and stand in the order of their numbers.
        rest = order[: n - n // 4]
        assert torch.equal(rest.sort().values, rest)


@pytest.mark.parametrize("unnamed", ["zero", "mean"])
def test_what_unnamed_edges_count_for(unnamed: str) -> None:
    fed = labelled.federation(method(named=0.5, unnamed=unnamed))
    n = EDGES["head"]
    sparse, whole = torch.arange(16), torch.arange(n)
    sent = {
        site: {"votes": {**orders(), "head": pack_order(order, n)}}
        for site, order in (("a", sparse), ("b", whole))
    }
    found = unpack_order(fed.method.elect(fed, Replies(sent, {}))["head"])
    low = 0 if unnamed == "zero" else 7
    votes = torch.cat([torch.arange(16, 32), torch.full((16,), low)]) + whole
    assert torch.equal(found, votes.argsort(stable=True))


def test_the_rate_falls_as_a_cosine_over_local_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    from motet.core.optim import Optimizer

    rates: list[float] = []
    momenta: list[bool] = []
    step = Optimizer.step

    def noted(self: Optimizer, *given: Any, **named: Any) -> None:
        rates.append(self.inner.param_groups[0]["lr"])
        momenta.append(bool(self.inner.state))
        step(self, *given, **named)

    monkeypatch.setattr(Optimizer, "step", noted)
    local = {"lr": 0.4, "epochs": 4, "batch": 100, "momentum": 0.9, "decay": 0.5}
    labelled.go(method(cohort=1, local=local))
    shape = [0.4 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert rates == pytest.approx([*shape, *(0.5 * rate for rate in shape)])
    # One optimiser for all epochs of a round, a fresh one in the next.
    assert momenta == [False, True, True, True] * 2
    rates.clear()
    labelled.go(method(cohort=1, cosine=False, local=local))
    assert rates == pytest.approx([0.4] * 4 + [0.2] * 4)
    rates.clear()
    labelled.go(method(cohort=1, local={**local, "steps": 3}))
    assert rates == pytest.approx([0.4] * 3 + [0.2] * 3)


def test_epochs_differ_in_their_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from motet.methods import frl

    seen: list[tuple[int, ...]] = []
    classify = frl.classify

    def noted(model: Any, batch: Any) -> Tensor:
        seen.append(tuple(batch.rows.tolist()))
        return classify(model, batch)

    monkeypatch.setattr(frl, "classify", noted)
    labelled.go(method(cohort=1, rounds=1, local={"lr": 0.1, "epochs": 2, "batch": 100}))
    assert sorted(seen[0]) == sorted(seen[1])
    assert seen[0] != seen[1]


@pytest.mark.parametrize("key", ["abs", "identity"])
def test_it_learns(key: str) -> None:
    settings = ("method.rounds=8", "method.cohort=3", f"method.score_key={key}")
    result = labelled.go({"name": "frl"}, *settings)
    assert result.last("accuracy") >= 75
    assert labelled.go({"name": "frl"}, *settings).hash == result.hash


def test_the_score_key_reaches_every_layer() -> None:
    for key in ("abs", "identity"):
        fed = labelled.federation(method(score_key=key, keep=0.3))
        layers = masked_layers(fed.model).values()
        assert {layer.key for layer in layers} == {key}
        assert [layer.count for layer in layers] == [512 - 358, 32 - 22]


def test_the_control_adds_uploads_as_they_are() -> None:
    fed = labelled.federation(method(counted="uploads"))
    sent = {f"site-{i}": {"votes": orders(i)} for i in (1, 2)}
    found = fed.method.elect(fed, Replies(sent, {}))
    for name in EDGES:
        total = sum(unpack_order(reply["votes"][name]) for reply in sent.values())
        assert torch.equal(unpack_order(found[name]), total.argsort(stable=True))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["common_start=false"], "common_start: true"),
        (["method.counted=uploads", "method.named=0.5"], "named: 1.0"),
        (["populations.site.models.0.image.hidden=[4]"], "server's encoders"),
    ],
)
def test_what_cannot_work_is_refused(settings: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        labelled.go(method(), *settings)


def test_a_cnn_with_batch_norm_works() -> None:
    image = "{name: cnn, side: 8, maps: [4], kernel: 3, norm: batch}"
    both = f"{{width: 8, image: {image}}}"
    result = labelled.go(method(cohort=3), f"server={both}", f"populations.site.models=[{both}]")
    assert set(weights_of(result.model)) == {
        f"{name}.scores" for name in masked_layers(result.model)
    }


def test_a_majority_of_liars_ruins_it_and_a_minority_does_less() -> None:
    def ended(*liars: str) -> Any:
        chosen = f"attack={{name: rotated-ranks, sites: [{', '.join(liars)}]}}"
        settings = ("method.rounds=6", "method.cohort=3")
        return labelled.go({"name": "frl"}, *settings, *([chosen] if liars else []))

    clean, few = ended(), ended("site-1")
    many = ended("site-1", "site-2", "site-3")
    assert clean.last("accuracy") > many.last("accuracy") + 20
    assert few.last("accuracy") > many.last("accuracy") + 10
    told = [event for event in few.events if event["event"] == "attacked"]
    assert [event["sites"] for event in told] == [["site-1"]] * 6


def test_with_abs_the_reverse_of_an_order_keeps_nearly_the_same_edges() -> None:
    """Scores are symmetric: the reverse turns their signs. This attack is weak against "abs"."""
    fed = labelled.federation(method())
    layer = masked_layers(fed.model)["encoders.image.layers.0"]
    order = layer.ranking()
    masks = []
    for given in (order, order.flip(0), order.roll(256)):
        layer.adopt(given)
        masks.append(edge_mask(layer.scores.detach(), layer.count, "abs"))
    assert float((masks[0] == masks[1]).float().mean()) > 0.9
    assert float((masks[0] == masks[2]).float().mean()) < 0.1
