"""CreamFL: the points that are easy to get wrong, each decided as the paper means it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from tests.methods import tiny
from torch import Tensor
from torch.nn import functional as F

from motet.core import ConfigError, Dataset, Facts, Replies, Site, Tree
from motet.core.rng import generator
from motet.experiment.build import Parties
from motet.experiment.runner import Result, run
from motet.methods import creamfl as module
from motet.methods.creamfl import CreamFL
from motet.methods.parts import Distil, encode_all
from motet.models.hashed import HashedMLP


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the tiny recipe with these settings."""

    def start(*settings: str, **method: Any) -> Result:
        made = tiny.experiment(*settings, method=method or None)
        return run(made, parties=tiny.parties(made, monkeypatch))

    return start


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch) -> Parties:
    return tiny.parties(tiny.experiment(), monkeypatch)


def rsum(result: Result) -> list[float]:
    return [
        event["metrics"]["rsum"][0]
        for event in result.events
        if event["event"] == "metric" and event["party"] == "hub"
    ]


def replied(result: Result, op: str = "contrast") -> Iterator[dict[str, Any]]:
    return (e for e in result.events if e["event"] == "replied" and e["op"] == op)


def test_weights_zero_make_the_server_a_server_alone(go: Any) -> None:
    creamfl = go("method.distil.epochs=0")
    alone = go(name="server-only", rounds=2, server=tiny.TASK)
    assert creamfl.hash == alone.hash


def test_no_contrast_and_no_private_pass_leave_a_site_as_it_was(go: Any) -> None:
    settings = ["method.private_passes=false", "method.inter=false", "method.intra=false"]
    first = go(*settings, "method.rounds=1")
    second = go(*settings)
    assert first.last("rsum", "pair-1") == second.last("rsum", "pair-1")


def test_gamma_zero_equals_no_contrast(go: Any) -> None:
    # Adam's moments see gradients of zero instead of no step at all, so private passes are off.
    settings = ["method.private_passes=false", "method.rounds=1"]
    zero = go(*settings, "method.gamma=0")
    none = go(*settings, "method.inter=false", "method.intra=false")
    assert zero.hash == none.hash


def test_gamma_weighs_single_contrasts_too(sites: Parties) -> None:
    # The official code applies the weight only when both contrasts are on.
    public = sites.public.only(["image"])
    site = next(s for s in sites.sites if s.name == "image-1")
    model = site.build()
    ready = model.prepare(public)
    rows = {"image": unit(len(public), 8), "text": unit(len(public), 8, 1)}
    before = {"image": unit(len(public), 8, 2)}
    for only in ({"inter": False}, {"intra": False}):
        losses = [
            CreamFL(gamma=gamma, **only).contrast_loss(public, rows, before)(
                model, ready.batch(torch.arange(5))
            )
            for gamma in (1.0, 0.25)
        ]
        torch.testing.assert_close(losses[0] * 0.25, losses[1])


def unit(rows: int, width: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=generator(seed, "unit")), dim=1)


def test_contrast_uses_the_other_modality_between_and_the_same_within(sites: Parties) -> None:
    public = sites.public
    model = next(s for s in sites.sites if s.name == "pair-1").build()
    index = torch.tensor([3, 11, 0, 7])
    batch = model.prepare(public).batch(index)
    z = model(batch).features
    ours = {"image": unit(len(public), 8), "text": unit(len(public), 8, 1)}
    before = {"image": unit(len(public), 8, 2), "text": unit(len(public), 8, 3)}
    loss = CreamFL(gamma=0.5).contrast_loss(public, ours, before)(model, batch)
    inter = F.cross_entropy(z["image"] @ ours["text"].T / 0.5, index)
    inter = inter + F.cross_entropy(z["text"] @ ours["image"].T / 0.5, index)
    parts = []
    for name in ("image", "text"):
        towards = (z[name] * ours[name][index]).sum(1) / 0.5
        away = (z[name] * before[name][index]).sum(1) / 0.5
        parts.append(-F.log_softmax(torch.stack([towards, away]), dim=0)[0])
    intra = torch.cat(parts).mean()
    torch.testing.assert_close(loss, 0.5 * (inter + intra))


class Spy(CreamFL):
    """Keeps what the hub aggregates."""

    def aggregate(self, replies: Replies, ours: Any) -> Any:
        targets = super().aggregate(replies, ours)
        SEEN.append((replies, ours, targets))
        return targets


SEEN: list[Any] = []


def spied(monkeypatch: pytest.MonkeyPatch, *settings: str, seed: int = 0) -> list[Any]:
    SEEN.clear()
    made = tiny.experiment(*settings, f"seed={seed}")
    made = made.model_copy(update={"method": Spy(**dict(made.method))})
    run(made, parties=tiny.parties(made, monkeypatch))
    return list(SEEN)


def test_uploads_are_unit_rows_of_the_sites_own_modalities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replies, ours, targets = spied(monkeypatch)[0]
    assert {name: sorted(set(reply) - {"samples"}) for name, reply in replies.items()} == {
        "image-1": ["image"],
        "pair-1": ["image", "text"],
        "pair-2": ["image", "text"],
        "text-1": ["text"],
    }
    for reply in replies.values():
        for name in set(reply) - {"samples"}:
            torch.testing.assert_close(reply[name].norm(dim=1), torch.ones(24))
    assert set(targets) == set(ours) == {"image", "text"}
    # Not renormalised: a mean of different unit rows is shorter than 1.
    assert float(targets["image"].norm(dim=1).max()) < 1


def test_gca_scores_against_the_other_modality(monkeypatch: pytest.MonkeyPatch) -> None:
    replies, ours, targets = spied(monkeypatch)[0]
    sent = torch.stack(list(replies.having("image").values()))
    logits = sent @ ours["text"].T
    scores = torch.stack([rows.log_softmax(dim=1).diagonal() for rows in logits])
    wanted = (scores.softmax(dim=0).unsqueeze(-1) * sent).sum(dim=0)
    torch.testing.assert_close(targets["image"], wanted)


@pytest.mark.parametrize(("name", "shares"), [("mean", [1, 1, 1]), ("size", None)])
def test_plain_aggregations(
    monkeypatch: pytest.MonkeyPatch, name: str, shares: Sequence[float] | None
) -> None:
    replies, _, targets = spied(monkeypatch, f"method.aggregation={name}")[0]
    sent = replies.having("text")
    weights = torch.tensor(shares or [replies[site]["samples"] for site in sent]).float()
    wanted = torch.einsum("c,cpd->pd", weights / weights.sum(), torch.stack(list(sent.values())))
    torch.testing.assert_close(targets["text"], wanted)


def test_two_sites_start_from_different_weights(sites: Parties) -> None:
    # One seed for all sites made the official code's clients identical.
    one, two = (next(s for s in sites.sites if s.name == n).build() for n in ("pair-1", "pair-2"))
    weights = [next(iter(model.parameters())) for model in (one, two)]
    assert not torch.equal(*weights)


def test_the_seed_has_an_effect(go: Any) -> None:
    assert go("seed=1").hash != go("seed=2").hash


def test_a_round_without_a_modality_distils_the_other(go: Any) -> None:
    keep = tiny.recipe()["populations"][1]
    result = go(f"populations=[{keep}]", "method.cohort=1")
    assert len(rsum(result)) == 2
    assert all("image" not in event["up"] for event in replied(result))


def test_every_cohort_is_asked_and_no_other(go: Any) -> None:
    result = go("method.cohort=2")
    asked = [(event["round"], event["site"]) for event in replied(result)]
    assert sorted({number for number, _ in asked}) == [0, 1]
    assert len(asked) == 4


def test_a_subset_of_the_public_set_costs_its_share_of_bytes(go: Any) -> None:
    whole = next(replied(go()))
    half = next(replied(go("method.public_rows=12")))
    assert half["up"]["representations"] * 2 == whole["up"]["representations"]
    assert half["down"]["representations"] * 2 == whole["down"]["representations"]


def test_a_subset_is_drawn_anew_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    draw = CreamFL.draw_public

    def kept(self: CreamFL, fed: Any) -> Any:
        public, rows = draw(self, fed)
        drawn.append(rows)
        return public, rows

    monkeypatch.setattr(CreamFL, "draw_public", kept)
    made = tiny.experiment("method.public_rows=12")
    run(made, parties=tiny.parties(made, monkeypatch))
    assert len(drawn) == 2
    assert not torch.equal(*drawn)
    assert all(torch.equal(rows, rows.sort().values) for rows in drawn)


def test_the_whole_set_as_a_subset_is_the_whole_set(go: Any) -> None:
    assert go("method.public_rows=24").hash == go().hash


def test_distillation_is_counted_once_and_has_its_own_optimiser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[list[str]] = []
    train = Distil.train

    def kept(self: Distil, fed: Any, data: Any, targets: Any, *rest: Any) -> float:
        calls.append(sorted(targets))
        value = train(self, fed, data, targets, *rest)
        assert {"task", "distil"} == set(fed._optimizers)
        return value

    monkeypatch.setattr(module.Distil, "train", kept)
    made = tiny.experiment()
    run(made, parties=tiny.parties(made, monkeypatch))
    assert calls == [["image", "text"]] * 2


def test_distillation_brings_the_server_to_its_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    far = spied(monkeypatch, "method.distil.epochs=0", "method.server.epochs=0")
    near = spied(monkeypatch, "method.distil.epochs=60", "method.server.epochs=0")

    def gap(seen: list[Any]) -> float:
        # What the server sends in round 2 is what it learnt in round 1.
        return float((seen[1][1]["image"] - seen[0][2]["image"]).square().sum(dim=1).mean())

    assert gap(near) < 0.5 * gap(far)


def test_the_order_of_rows_is_the_public_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny.experiment()
    sites = tiny.parties(made, monkeypatch)
    public = sites.public
    index = torch.tensor([5, 3, 20])
    assert torch.equal(public.positions(public.rows[index]), index)


def test_scrambled_rows_keep_their_number_and_lose_their_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = tiny.parties(tiny.experiment(), monkeypatch).sites
    mixed = tiny.parties(tiny.experiment("data.scrambled=true"), monkeypatch).sites
    for one, other in zip(plain, mixed, strict=True):
        assert len(one.data) == len(other.data)
        assert sorted(one.data.labels.tolist()) == sorted(other.data.labels.tolist())
        assert not torch.equal(one.data.labels, other.data.labels)
    before, after = (next(s for s in x if s.name == "pair-1").data for x in (plain, mixed))
    assert torch.equal(before.columns["image"], after.columns["image"])
    assert before.columns["text"] != after.columns["text"]
    assert sorted(before.columns["text"]) == sorted(after.columns["text"])


def test_anchors_are_sent_and_reach_one_modality_sites_alone(go: Any) -> None:
    plain, anchored = go("method.rounds=1"), go("method.rounds=1", "method.anchors=true")
    assert plain.last("rsum", "pair-1") == anchored.last("rsum", "pair-1")
    assert plain.last("accuracy", "image-1") != anchored.last("accuracy", "image-1")
    extra = next(replied(anchored))["down"]["representations"]
    assert extra - next(replied(plain))["down"]["representations"] == len(tiny.WORDS) * 8 * 4


def test_anchors_need_a_server_that_reads_texts() -> None:
    method = CreamFL(anchors=True)
    with pytest.raises(ConfigError, match="anchors"):
        method.check(Facts(24, ("image", "text"), ("image",), {}, classes=4))
    method.check(Facts(24, ("image", "text"), ("image", "text"), {}, classes=4))


def test_a_public_set_of_one_row_is_refused_before_the_first_round(go: Any) -> None:
    with pytest.raises(ConfigError, match="public"):
        go("data.public=1")
    with pytest.raises(ConfigError, match="public"):
        go("data.public=0")


@pytest.mark.parametrize("codec", ["fp16", "int8"])
def test_codecs_shrink_what_travels_and_hardly_change_the_result(go: Any, codec: str) -> None:
    plain, packed = go(), go(f"protect.compress.representations={codec}")
    before = next(replied(plain))["up"]["frame"]
    after = next(replied(packed))["up"]["frame"]
    assert after < before
    assert packed.hash != plain.hash
    assert abs(packed.last("rsum") - plain.last("rsum")) < 60


class Encoding(CreamFL):
    """Notes what a site takes for its former representations, and what they truly are."""

    def before(self, site: Site, public: Dataset) -> Tree:
        taken = super().before(site, public)
        BEFORE.append((site.round, "upload" in site.state, taken, encode_all(site, public)))
        return taken


BEFORE: list[Any] = []


@pytest.mark.parametrize("settings", [[], ["method.public_rows=10"]])
def test_what_was_before_is_what_the_model_gives_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    BEFORE.clear()
    made = tiny.experiment(*settings, "method.rounds=3")
    made = made.model_copy(update={"method": Encoding(**dict(made.method))})
    run(made, parties=tiny.parties(made, monkeypatch))
    assert {number for number, *_ in BEFORE} == {0, 1, 2}
    for number, kept, taken, true in BEFORE:
        assert kept == (number > 0)
        assert taken.keys() == true.keys()
        for name in taken:
            assert torch.equal(taken[name], true[name])


def test_a_site_does_not_encode_the_same_rows_twice(
    go: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []
    encode = Site.encode

    def counted(self: Site, data: Dataset, modality: str) -> Tensor:
        seen.append((self.name, modality))
        return encode(self, data, modality)

    monkeypatch.setattr(Site, "encode", counted)
    go("method.rounds=3")
    # Before the first round, and after each.
    assert seen.count(("image-1", "image")) == 4


def test_rows_of_a_round_are_not_prepared_anew(go: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    prepare = HashedMLP.prepare

    def noted(self: HashedMLP, column: Any) -> Tensor:
        sizes.append(len(column))
        return prepare(self, column)

    monkeypatch.setattr(HashedMLP, "prepare", noted)
    # As if every party prepared in a way of its own, so that none can take over from another.
    monkeypatch.setattr(HashedMLP, "key", property(lambda self: f"{id(self)}"))
    go("method.public_rows=10", "method.rounds=3")
    # The public set at the hub and at three sites that read texts.
    assert sizes.count(24) == 4
    assert 10 not in sizes
