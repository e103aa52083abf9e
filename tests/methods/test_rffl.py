"""RFFL held against its algorithm box, and in its limits."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.methods import labelled
from tests.methods.plain import WHOLE, Plain
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from motet.core import ConfigError, Dataset, Federation, SiteError, Tree, WireError, parameters_of
from motet.core.replies import Replies
from motet.core.tree import clone
from motet.methods.rffl import RFFL, cosines, reputations, reward, shares
from motet.nn.kept import unpack_kept

UNEVEN = "populations.site.partition={name: by_size, law: [1, 2, 6]}"
LIAR = "attack={name: sign-flip, sites: [site-1], factor: 1.0}"
CNN = "{width: 8, image: {name: cnn, side: 8, maps: [4, 4], kernel: 3, norm: batch}}"
BATCH_NORM = (f"server={CNN}", f"populations.site.models=[{CNN}]")


def rffl(rounds: int = 4, **more: Any) -> dict[str, Any]:
    local = {**WHOLE, "epochs": 1, "decay": 1.0, **more.pop("local", {})}
    return {"name": "rffl", "rounds": rounds, "local": local, **more}


def run_through(method: dict[str, Any], *settings: str, data: Dataset | None = None) -> list[Tree]:
    """Reputations and the sites' models after every round; the last entry also has the events."""
    fed = labelled.federation(method, *settings, data=data)
    kept: list[Tree] = []
    report = fed.report

    def watched(**more: Any) -> None:
        doors = fed.engine.engine._doors if hasattr(fed.engine, "engine") else fed.engine._doors
        models = {name: door._kept["learner"]["model"] for name, door in doors.items()}
        kept.append({"reputation": clone(fed.state["reputation"]), "models": clone(models)})
        report(**more)

    fed.report = watched
    fed.start()
    kept[-1]["events"] = fed.events.memory
    return kept


def vector(model: Tree) -> Tensor:
    return parameters_to_vector(list(model.values()))


def logs(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "log"]


def by_hand(plain: Plain, tensors: list[int], method: RFFL, liars: set[str]) -> list[Tree]:
    """The algorithm on flat vectors, step by step, with all sites kept by name."""
    names = sorted(plain.gradients)
    models = {name: plain.start.clone() for name in names}
    rho = dict.fromkeys(names, 0.0)
    inside = list(names)
    kept = []
    for t in range(method.rounds):
        sent = {}
        for name in inside:
            before = models[name].clone()
            step = -method.local.lr * plain.gradients[name](before)
            if step.norm() > method.norm:
                step = method.norm * step / step.norm()
            models[name] = before + step
            sent[name] = -step if name in liars else step
        rows = sum(plain.sizes.values())
        a = {name: plain.sizes[name] / rows if t == 0 else rho[name] for name in inside}
        g = torch.stack([a[name] * sent[name] for name in inside]).sum(dim=0)
        cosine = {name: float((sent[name] @ g) / (sent[name].norm() * g.norm())) for name in inside}
        rho = {
            name: method.memory * rho[name] + (1 - method.memory) * cosine[name] for name in inside
        }
        total = sum(rho.values())
        rho = {name: rho[name] / total for name in inside}
        if t >= method.trial:
            beta = method.threshold / len(inside)
            inside = [name for name in inside if rho[name] >= beta]
        total = sum(rho[name] for name in inside)
        rho = {name: rho[name] / total for name in inside}
        for name in inside:
            q = max(rho[name] / max(rho.values()), 0.0)
            gets = g - a[name] * sent[name] if method.subtract_own else g
            parts = []
            for part, whole in zip(gets.split(tensors), g.split(tensors), strict=True):
                k = math.ceil(len(whole) * q - 1e-6)
                order = sorted(range(len(whole)), key=lambda i: (-abs(float(whole[i])), i))
                mask = torch.zeros(len(whole))
                mask[order[:k]] = 1
                parts.append(part * mask)
            models[name] = models[name] + torch.cat(parts)
        kept.append({"reputation": dict(rho), "models": clone(models)})
    return kept


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize("liars", [set(), {"site-1"}])
def test_it_is_the_algorithm(subtract: bool, liars: set[str]) -> None:
    # Reputations of 0.27, 0.34 and 0.39 or so: all get something else.
    method = rffl(rounds=4, trial=2, subtract_own=subtract, memory=0.7, norm=0.05)
    settings = [UNEVEN, LIAR] if liars else [UNEVEN]
    found = run_through(method, *settings)
    plain = Plain(method, UNEVEN)
    like = parameters_of(labelled.federation(method).model)
    fields = {name: value for name, value in method.items() if name != "name"}
    wanted = by_hand(plain, [value.numel() for value in like.values()], RFFL(**fields), liars)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours["reputation"] == pytest.approx(theirs["reputation"], abs=1e-5)
        for name, model in ours["models"].items():
            torch.testing.assert_close(vector(model), theirs["models"][name], atol=1e-5, rtol=1e-4)
    assert ("site-1" in found[-1]["reputation"]) is not bool(liars)
    assert len({round(rho, 3) for rho in found[-1]["reputation"].values()}) > 1


def test_three_sites_worked_by_hand() -> None:
    updates = torch.tensor([[3.0, 0.0], [0.0, 3.0], [3.0, 3.0]], dtype=torch.float64)
    weights = shares(torch.tensor([10.0, 10, 20], dtype=torch.float64))
    assert weights.tolist() == [0.25, 0.25, 0.5]
    total = weights @ updates
    assert total.tolist() == [2.25, 2.25]
    cosine = cosines(updates, total)
    torch.testing.assert_close(cosine, torch.tensor([0.5**0.5, 0.5**0.5, 1]).double())
    # The first ones are the shares of the cosines, whatever the memory.
    first = reputations(torch.zeros(3).double(), cosine, 0.95)
    torch.testing.assert_close(first, cosine / (2 * 0.5**0.5 + 1))
    torch.testing.assert_close(first, reputations(torch.zeros(3).double(), cosine, 0.1))
    # Then a third that turns round: 0.95 * 0.4142 - 0.05, of 0.95 + 0.05 * (1 + 1 - 1).
    later = reputations(first, torch.tensor([1.0, 1, -1]).double(), 0.95)
    wanted = [(0.95 * float(first[0]) + 0.05), (0.95 * float(first[2]) - 0.05)]
    assert later[[0, 2]].tolist() == pytest.approx([wanted[0], wanted[1]])
    assert float(later.sum()) == pytest.approx(1)


def test_the_cosine_is_that_of_the_weighted_sum_and_of_nothing_it_is_0() -> None:
    updates = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]).double()
    total = torch.tensor([0.9, 0.1]).double() @ updates[:2]
    found = cosines(updates, total)
    assert found.tolist() == pytest.approx([0.9 / 0.85**0.5, 0.2 / 0.85**0.5, 0.0])
    assert cosines(updates, torch.zeros(2).double()).tolist() == [0, 0, 0]


@pytest.mark.parametrize("values", [[-1.0, 0.5], [0.0, 0.0], [1.0, -1.0]])
def test_reputations_that_do_not_sum_to_something_end_the_run(values: list[float]) -> None:
    with pytest.raises(SiteError, match=r"the sites' reputations sum to -?[\d.]+, and nothing can"):
        shares(torch.tensor(values))


def test_a_run_in_which_nobody_learns_says_so() -> None:
    with pytest.raises(SiteError, match="the sites' reputations sum to 0, .* look for attackers"):
        labelled.go(rffl(local={"epochs": 0}))


def stub(number: int, state: Tree | None = None) -> Any:
    told: list[Tree] = []
    fed = SimpleNamespace(round=number, state=state or {}, told=told)
    fed.log = lambda **fields: told.append(fields)
    return fed


def judged(method: RFFL, number: int, values: list[float]) -> tuple[dict[str, float], Any]:
    fed = stub(number)
    sites: Any = tuple("abcdefg"[: len(values)])
    return method.judge(fed, sites, torch.tensor(values).double()), fed


def test_the_bound_is_an_equal_share_before_anyone_goes() -> None:
    # 0.13 is above half of a fourth, though below half of a third when a and b are gone.
    worth, fed = judged(RFFL(threshold=0.5, trial=3), 3, [0.12, 0.00, 0.13, 0.75])
    assert fed.state["reputation"] == pytest.approx({"c": 0.13 / 0.88, "d": 0.75 / 0.88})
    assert worth == pytest.approx({"c": 0.13 / 0.75, "d": 1.0})
    assert worth["d"] == 1
    assert [(note["removed"], note["reason"]) for note in fed.told[:2]] == [
        ("a", "its reputation is below 0.125"),
        ("b", "its reputation is below 0.125"),
    ]
    reputations = {"a/reputation": 0, "b/reputation": 0}
    reputations |= {"c/reputation": 0.13 / 0.88, "d/reputation": 0.75 / 0.88}
    assert fed.told[2] == pytest.approx({"active": 2, **reputations})
    assert len(fed.told) == 3


def test_just_enough_is_enough() -> None:
    worth, _ = judged(RFFL(threshold=0.5, trial=0), 0, [0.25, 0.75])
    assert set(worth) == {"a", "b"}


def test_nobody_goes_before_the_trial_is_over_and_less_than_nothing_is_kept() -> None:
    worth, fed = judged(RFFL(trial=3), 2, [-0.1, 0.3, 0.8])
    assert fed.state["reputation"] == pytest.approx({"a": -0.1, "b": 0.3, "c": 0.8})
    assert worth == pytest.approx({"a": -0.125, "b": 0.375, "c": 1})
    assert [sorted(note) for note in fed.told] == [
        ["a/reputation", "active", "b/reputation", "c/reputation"]
    ]
    assert set(judged(RFFL(trial=3), 3, [-0.1, 0.3, 0.8])[0]) == {"b", "c"}


def test_equal_sites_are_worth_the_same_and_stay() -> None:
    worth, fed = judged(RFFL(threshold=0.99, trial=0), 0, [0.2] * 5)
    assert worth == dict.fromkeys("abcde", 1.0)
    assert fed.state["reputation"] == pytest.approx(dict.fromkeys("abcde", 0.2))


LIKE = {"w": torch.zeros(2, 3), "b": torch.zeros(1)}
TOTAL = torch.tensor([1.0, -2, 3, -4, 5, -6, 7])


def given(share: float, own: Tensor | None = None) -> list[float]:
    found = reward(TOTAL, torch.zeros(7) if own is None else own, share, LIKE)
    whole = {name: unpack_kept(found[name], value) for name, value in LIKE.items()}
    return [number for value in whole.values() for number in value.flatten().tolist()]


def test_a_reward_is_the_largest_entries_of_each_tensor() -> None:
    assert given(1.0) == TOTAL.tolist()
    # 3 of 6, and of the tensor of size 1 all.
    assert given(0.5) == [0, 0, 0, -4, 5, -6, 7]
    assert given(0.51) == [0, 0, 3, -4, 5, -6, 7]
    assert given(0.1) == [0, 0, 0, 0, 0, -6, 7]
    assert given(0.0) == given(-0.5) == [0] * 7


def test_what_is_subtracted_does_not_change_which_entries_come() -> None:
    own = torch.tensor([-100.0, 0, 0, 0, 0.5, -6, 1])
    assert given(0.5, own) == [0, 0, 0, -4, 4.5, 0, 6]


def test_a_reward_is_sparse_on_the_wire() -> None:
    found = reward(TOTAL, torch.zeros(7), 0.5, LIKE)
    assert found["w"]["values"].tolist() == [-4, 5, -6]
    assert found["w"]["values"].dtype == torch.float32
    events = run_through(rffl(rounds=1), UNEVEN)[-1]["events"]
    like = parameters_of(labelled.federation(rffl()).model)
    sizes = [value.numel() for value in like.values()]
    told = next(note for note in logs(events) if "active" in note)
    best = max(told[f"site-{i}/reputation"] for i in (1, 2, 3))
    for event in events:
        if event["event"] == "replied" and event["op"] == "receive":
            q = told[f"{event['site']}/reputation"] / best
            wanted = sum(4 * math.ceil(q * n - 1e-9) + math.ceil(n / 8) for n in sizes)
            assert event["down"]["weights"] == wanted
        if event["event"] == "replied" and event["op"] == "train":
            assert event["up"]["weights"] == 4 * sum(sizes)
            assert "weights" not in event["down"]


def test_who_is_shut_out_is_not_asked_again_and_keeps_its_model() -> None:
    found = run_through(rffl(rounds=4, trial=1), UNEVEN, LIAR)
    events = found[-1]["events"]
    replied = [e for e in events if e["event"] == "replied" and e["site"] == "site-1"]
    ops = ("train", "receive", "evaluate")
    asked = {op: [event["round"] for event in replied if event["op"] == op] for op in ops}
    # Told in round 1 that it is out, it gets no more, and is still looked at.
    assert asked == {"train": [0, 1], "receive": [0], "evaluate": [0, 1, 2, 3]}
    first, *others = (vector(entry["models"]["site-1"]) for entry in found[1:])
    assert all(torch.equal(first, other) for other in others)
    notes = [note for note in logs(events) if "removed" in note]
    assert [(note["round"], note["removed"]) for note in notes] == [(1, "site-1")]
    assert notes[0]["reason"] == "its reputation is below 0.111"
    assert [note["active"] for note in logs(events) if "active" in note] == [3, 2, 2, 2]


def test_who_is_good_for_nothing_gets_nothing_while_the_trial_lasts() -> None:
    method = rffl(rounds=2, trial=9, norm=0.05)
    found = run_through(method, UNEVEN, LIAR)
    assert found[0]["reputation"]["site-1"] < 0
    plain = Plain(method, UNEVEN)
    alone = plain.start.clone()
    for entry in found:
        step = -0.1 * plain.gradients["site-1"](alone)
        alone = alone + step * min(1, 0.05 / float(step.norm()))
        torch.testing.assert_close(vector(entry["models"]["site-1"]), alone, atol=1e-6, rtol=1e-5)


def site_of(fed: Federation, name: str) -> Any:
    site = fed.engine._doors[name].site
    site.key = ("train", "0")
    return site


@pytest.mark.parametrize("bound", [1e-3, 1e3])
def test_an_update_is_clipped_and_never_stretched(bound: float) -> None:
    fed = labelled.federation(rffl(norm=bound))
    site = site_of(fed, "site-1")
    start = vector(parameters_of(site.model))
    plain = -0.1 * Plain(rffl()).gradients["site-1"](start)
    found = vector(fed.method.train(site)["update"])
    assert 1e-3 < plain.norm() < 1e3
    wanted = plain if bound > 1 else plain * (1e-3 / plain.norm())
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(vector(parameters_of(site.model)), start + wanted)


def read(values: dict[str, Tree], norm: float = 10.0) -> tuple[Tensor, Tensor]:
    fed = labelled.federation(rffl(norm=norm))
    sites = fed.all
    return fed.method.read(fed, sites, Replies(values, {}))


def test_the_hub_clips_sorts_names_and_counts_silence_as_nothing() -> None:
    like = parameters_of(labelled.federation(rffl()).model)
    ones = {name: torch.full_like(value, 2.0) for name, value in like.items()}
    rising = {
        name: torch.arange(value.numel()).float().view_as(value) for name, value in like.items()
    }
    turned = dict(reversed(list(rising.items())))
    values = {"site-1": {"update": ones, "samples": 5}, "site-3": {"update": turned, "samples": 7}}
    updates, rows = read(values, norm=3.0)
    assert rows.tolist() == [5, 0, 7]
    assert updates.dtype == torch.float64
    assert updates.norm(dim=1).tolist() == pytest.approx([3, 0, 3])
    assert torch.allclose(updates[0], updates[0, :1])
    torch.testing.assert_close(updates[2], 3 * vector(rising).double() / vector(rising).norm())


def test_an_update_of_other_tensors_is_refused() -> None:
    like = parameters_of(labelled.federation(rffl()).model)
    with pytest.raises(WireError, match="only one of them has stranger"):
        read({"site-1": {"update": {**like, "stranger": torch.zeros(1)}, "samples": 5}})


def test_a_silent_site_loses_reputation_and_weighs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = RFFL.train

    def failing(self: RFFL, site: Any) -> Tree:
        if site.name == "site-3" and site.round > 0:
            raise SiteError("is down")
        return train(self, site)

    failing.__motet_operation__ = train.__motet_operation__
    failing.__name__ = "train"
    monkeypatch.setattr(RFFL, "train", failing)
    found = run_through(rffl(rounds=3, quorum=0.5, memory=0.5))
    rhos = [entry["reputation"]["site-3"] for entry in found]
    assert rhos[0] > 2 * rhos[1] * 0.9 > 4 * rhos[2] * 0.8 > 0
    got = [e["site"] for e in found[-1]["events"] if e["event"] == "replied" and e["round"] == 1]
    assert got.count("site-3") == 1, "it is evaluated and gets no reward"
    with pytest.raises(SiteError, match="is down"):
        run_through(rffl(rounds=3))


def test_statistics_of_batch_norms_stay_at_the_sites() -> None:
    method = rffl(rounds=2, local={"batch": 16})
    fed = labelled.federation(method, *BATCH_NORM)
    site = site_of(fed, "site-1")
    buffers = {name for name, _ in site.model.named_buffers()}
    assert any("running_mean" in name for name in buffers)
    assert not buffers & set(fed.method.train(site)["update"])
    models = run_through(method, *BATCH_NORM)[-1]["models"]
    name = next(name for name in models["site-1"] if "running_mean" in name)
    assert not torch.equal(models["site-1"][name], models["site-2"][name])


def test_where_all_are_alike_everyone_gets_everything() -> None:
    """Every model then moves by its own update, and again by the same one."""
    method = rffl(rounds=1)
    alike = replace(labelled.rows(4).take(torch.arange(96) % 4), rows=torch.arange(96))
    groups = "{name: class_groups, groups: [[0, 1, 2, 3]], rows: 3}"
    settings = ("data.public=0", f"populations.site.partition={groups}")
    fed = labelled.federation(method, *settings, data=alike)
    plain = Plain(method, *settings, data=alike)
    found = run_through(method, *settings, data=alike)[0]
    assert found["reputation"] == pytest.approx(dict.fromkeys(fed.all, 1 / 3), abs=1e-6)
    step = -0.1 * plain.gradients["site-1"](plain.start)
    for model in found["models"].values():
        torch.testing.assert_close(vector(model), plain.start + 2 * step, atol=1e-5, rtol=1e-4)


def test_sites_must_start_alike_and_have_one_model() -> None:
    with pytest.raises(ConfigError, match="start alike; write common_start: true"):
        labelled.go(rffl(), "common_start=false")
    with pytest.raises(ConfigError, match="give the recipe its model: server"):
        labelled.go(rffl(), "server=null", "classify=false")


@pytest.mark.parametrize("field", ["norm=0", "memory=1", "threshold=1", "threshold=-0.1"])
def test_bounds_of_the_fields(field: str) -> None:
    with pytest.raises(ConfigError, match=f"method.{field.partition('=')[0]}"):
        labelled.go(rffl(), f"method.{field}")
