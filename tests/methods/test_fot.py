from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.methods import labelled
from torch import Tensor

from motet.core import ConfigError, DataError, Dataset, Federation, Replies, SiteError, weights_of
from motet.core.rng import generator
from motet.data.vision import with_tasks
from motet.evaluate import continual
from motet.experiment.runner import Result
from motet.methods.fot import FOT, stepped

MODEL = "{width: 8, image: {name: pixel-mlp, side: 8, hidden: [12]}}"
SETTINGS = (
    f"server={MODEL}",
    f"populations.site.models=[{MODEL}]",
    "data.unit=picture",
    "data.public_rows=all",
    "data.public=0",
)
LAYERS = ["encoders.image.layers.0.weight", "encoders.image.layers.2.weight", "head.weight"]


def rows(tasks: int = 3) -> Dataset:
    made = labelled.rows(styles=1)
    return with_tasks(made.columns["image"], made.labels, made.classes, tasks)


def method(**fields: Any) -> dict[str, Any]:
    small = {"rounds": 6, "tasks": 3, "local": {"lr": 0.1, "batch": 8}}
    return {"name": "fot", **small, **fields}


def go(*settings: str, **fields: Any) -> Result:
    return labelled.go(method(**fields), *SETTINGS, *settings, data=rows(3))


def watched(*settings: str, **fields: Any) -> tuple[list[Any], list[Replies]]:
    """A run's (weights, bases) before every round and at the end, and all replies."""
    fed = labelled.federation(method(**fields), *SETTINGS, *settings, data=rows(3))
    states: list[Any] = []
    heard: list[Replies] = []
    rounds, ask = fed.rounds, FOT.ask

    def each(count: int) -> Any:
        for number in rounds(count):
            states.append((weights_of(fed.model), fed.state["bases"]))
            yield number
        states.append((weights_of(fed.model), fed.state["bases"]))

    def listening(self: FOT, fed: Federation, op: Callable[..., Any], **payload: Any) -> Replies:
        heard.append(ask(self, fed, op, **payload))
        return heard[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fed, "rounds", each)
        patch.setattr(FOT, "ask", listening)
        fed.start()
    return states, heard


def logs(result: Result) -> list[dict[str, Any]]:
    return [event for event in result.events if event["event"] == "log"]


def test_in_task_1_it_is_fedavg_bit_by_bit() -> None:
    fot, _ = watched(rounds=6)
    plain, _ = watched(rounds=6, project=False)
    same = [
        all(torch.equal(a[name], b[name]) for name in a)
        for (a, _), (b, _) in zip(fot, plain, strict=True)
    ]
    # Two rounds per task: equal before rounds 0, 1, 2, and no longer after a projected one.
    assert same == [True, True, True, False, False, False, False]


def test_with_one_task_it_is_fedavg_itself() -> None:
    local = {"lr": 0.1, "batch": 8, "weight_decay": 0.0}
    alone = [*SETTINGS[:2], "data.public=0"]
    fot = labelled.go(method(rounds=3, tasks=1, local=local), *alone)
    fedavg = {"name": "fedavg", "rounds": 3, "weighting": "uniform", "local": local}
    assert fot.hash == labelled.go(fedavg, *alone).hash


def test_after_every_later_round_old_inputs_are_left_alone() -> None:
    """(w - w at the end of task 1) U = 0 with U the basis of task 1, for every layer."""
    states, _ = watched(rounds=9, keep=0.8)
    end, bases = states[3]
    assert sorted(bases) == LAYERS
    for weights, _ in states[4:]:
        for name in LAYERS:
            moved = weights[name] - end[name]
            assert 0 < bases[name].shape[1] < moved.shape[1]
            assert float(moved.abs().max()) > 1e-4
            assert float((moved @ bases[name]).abs().max()) < 1e-5


def test_biases_and_plain_rounds_are_averaged_as_they_are() -> None:
    states, heard = watched(rounds=6, keep=0.8)
    mean = heard[2].mean("weights")
    after = states[3][0]
    for name in after:
        assert torch.equal(after[name], mean[name]) == (name not in LAYERS)


def test_sites_are_averaged_alike_whatever_their_rows() -> None:
    share = "populations.site.partition={name: by_size, law: linear, unit: picture}"
    states, heard = watched(share, rounds=3)
    assert len({reply["samples"] for reply in heard[0].values()}) == 3
    first = torch.stack([reply["weights"]["head.bias"] for reply in heard[0].values()])
    torch.testing.assert_close(states[1][0]["head.bias"], first.mean(dim=0))


def test_sketches_come_in_a_tasks_last_round_alone_and_without_the_old_basis() -> None:
    states, heard = watched(rounds=6, keep=0.8)
    assert [["sketch" in reply for reply in replies.values()] for replies in heard] == [
        [False] * 3,
        [True] * 3,
    ] * 3
    old = states[3][1]
    for reply in heard[3].values():
        for name in LAYERS:
            sketch = reply["sketch"][name]
            assert sketch.shape == (len(sketch), len(sketch))
            assert float((old[name].T @ sketch).abs().max()) < 1e-3 * float(sketch.abs().max())
            assert 0 < reply["ratio"][name] < 1
    assert all(set(reply["ratio"].values()) == {1.0} for reply in heard[1].values())
    first, second, _ = heard[1].having("sketch").values()
    assert not torch.equal(first[LAYERS[0]], second[LAYERS[0]])


def test_bases_are_orthonormal_and_grow() -> None:
    states, _ = watched(rounds=6, keep=0.8)
    ranks = []
    for _, bases in states[2::2]:
        for basis in bases.values():
            eye = torch.eye(basis.shape[1])
            torch.testing.assert_close(basis.T @ basis, eye, atol=1e-5, rtol=0)
        ranks.append([bases[name].shape[1] for name in LAYERS])
    for before, after in pairwise(ranks):
        assert all(old <= new for old, new in zip(before, after, strict=True))
    assert sum(ranks[0]) < sum(ranks[-1])


def test_the_kept_share_grows_by_its_step() -> None:
    more, _ = watched(rounds=6, keep=0.7, keep_step=0.15)
    less, _ = watched(rounds=6, keep=0.7)

    def rank(states: list[Any], task: int) -> int:
        return sum(basis.shape[1] for basis in states[2 * task][1].values())

    assert rank(more, 1) == rank(less, 1)
    assert rank(more, 3) > rank(less, 3)


def test_it_says_what_is_learnt_and_forgotten() -> None:
    found = logs(go())
    assert [event["round"] for event in found] == [1, 3, 5]
    last = found[-1]
    tasks = [last[f"task {number}"] for number in (1, 2, 3)]
    assert last["ACC"] == pytest.approx(sum(tasks) / 3)
    old = [found[0]["task 1"] - tasks[0], found[1]["task 2"] - tasks[1]]
    assert last["FGT"] == pytest.approx(sum(old) / 2)
    assert last["learnt"] == min(found[0]["task 1"], found[1]["task 2"], found[2]["task 3"])
    assert found[0]["FGT"] == 0
    assert last[f"rank {LAYERS[0]}"] > 0


def test_sites_train_on_the_task_at_hand() -> None:
    """Rows of the other tasks are poisoned here: were one of them read, the loss would say so."""
    made = rows(2)
    other = made.about["task"] != 0
    labels = torch.where(other, -100, made.labels)
    plain = labelled.go(method(rounds=1, tasks=1), *SETTINGS, data=made)
    poisoned = labelled.go(method(rounds=1, tasks=1), *SETTINGS, data=replace(made, labels=labels))
    assert plain.hash == poisoned.hash


def test_rounds_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="a multiple of 3, not 7"):
        go(rounds=7)


def test_rows_without_tasks_are_refused_before_the_first_round() -> None:
    with pytest.raises(DataError, match=r"no column 'task' .*data.options.tasks: 3"):
        labelled.go(method(), *SETTINGS[:2])


def without_site_2(fed: Federation) -> None:
    send = fed.engine.send

    def failing(requests: Any) -> None:
        send([replace(item, op="nothing") if item.site == "site-2" else item for item in requests])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fed.engine, "send", failing)
        fed.start()


def test_a_round_goes_on_without_a_site_where_it_may() -> None:
    fed = labelled.federation(method(quorum=0.5), *SETTINGS, data=rows(3))
    without_site_2(fed)
    assert sorted(fed.state["bases"]) == LAYERS
    strict = labelled.federation(method(), *SETTINGS, data=rows(3))
    with pytest.raises(SiteError, match="2 of 3 sites answered"):
        without_site_2(strict)


def test_a_step_is_projected_on_the_side_of_the_inputs() -> None:
    rng = generator(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=rng)

    start = {"w": random(3, 5), "b": random(3)}
    mean = {"w": random(3, 5), "b": random(3)}
    basis = torch.linalg.qr(random(5, 2)).Q
    found = stepped(start, mean, {"w": basis})
    eye = torch.eye(5)
    expected = start["w"] - (start["w"] - mean["w"]) @ (eye - basis @ basis.T)
    torch.testing.assert_close(found["w"], expected)
    assert torch.equal(found["b"], mean["b"])
    plain = stepped(start, mean, {})
    assert torch.equal(plain["w"], mean["w"])


def test_forgetting_by_hand() -> None:
    table = [[90.0], [60.0, 80.0], [50.0, 75.0, 70.0]]
    assert continual.average(table) == pytest.approx(65.0)
    assert continual.forgotten(table) == pytest.approx((40 + 5) / 2)
    assert continual.learnt(table) == 70.0
    assert continual.forgotten(table[:1]) == 0.0


def test_a_task_without_test_rows_is_named() -> None:
    made = rows(2)
    with pytest.raises(DataError, match="no test rows of task 1"):
        continual.by_task(made.where("task", 0), 2)
    with pytest.raises(DataError, match="no test rows of task 0"):
        continual.by_task(None, 2)
