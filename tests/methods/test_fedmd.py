"""FedMD on class scores: consensus, digest, revisit, in the paper's order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.methods.labelled import federation, go

from motet.core import ConfigError
from motet.methods.fedmd import score_distance

ALL = "method.cohort=3"
SMALL = {"transfer_epochs": 1, "first_epochs": 1, "epochs": 1, "batch": 8, "lr": 0.01}


def method(**more: Any) -> dict[str, Any]:
    return {"name": "fedmd", "rounds": 2, **SMALL, **more}


def asked(fed: Any) -> list[Any]:
    """All requests of a run to its end."""
    seen: list[Any] = []
    send = fed.engine.send

    def watch(requests: Any) -> None:
        seen.extend(requests)
        send(requests)

    fed.engine.send = watch
    fed.start()
    return seen


def test_distances_are_those_of_the_paper() -> None:
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert float(score_distance(a, b, "absolute")) == 1.5
    p, q = b.softmax(dim=1), a.softmax(dim=1)
    torch.testing.assert_close(score_distance(a, b, "kl"), (p * (p / q).log()).sum())


def test_the_order_of_a_round() -> None:
    operations = [(r.round, r.op) for r in asked(federation(method(), ALL))]
    distinct = list(dict.fromkeys(operations))
    usual = ["communicate", "learn", "evaluate"]
    assert distinct == [(0, op) for op in ["start", *usual]] + [(1, op) for op in usual]


def test_the_consensus_is_the_plain_mean_of_the_scores_of_the_same_rows() -> None:
    fed = federation(method(rounds=1, public_rows=5), ALL)
    scores: list[torch.Tensor] = []
    receive = fed.engine.recv

    def watch(timeout: float | None = None) -> Any:
        reply = receive(timeout)
        if reply is not None and reply.value and "scores" in reply.value:
            scores.append(reply.value["scores"])
        return reply

    fed.engine.recv = watch  # type: ignore[method-assign]
    sent = [r.shared for r in asked(fed) if r.op == "learn"]
    assert len(scores) == 3
    assert len(sent) == 3
    torch.testing.assert_close(sent[0]["scores"], torch.stack(scores).mean(dim=0))
    assert sent[0]["scores"].shape == (5, 4)


def test_the_public_rows_of_a_round_are_drawn_anew() -> None:
    found = [
        r.shared["rows"].tolist()
        for r in asked(federation(method(public_rows=4), ALL))
        if r.op == "communicate" and r.site == "site-1"
    ]
    assert len(found) == 2
    assert found[0] != found[1]
    assert all(len(set(rows)) == 4 for rows in found)


def test_digest_pulls_scores_to_the_consensus() -> None:
    """Without revisiting, sites agree more after each round."""
    quiet = {"epochs": 0, "digest_epochs": 20, "lr": 0.02}
    fed = federation(method(rounds=3, **quiet), ALL)
    spread: list[float] = []
    report = fed.report

    def watch(*args: Any, **more: Any) -> None:
        doors: dict[str, Any] = fed.engine._doors  # type: ignore[attr-defined]
        rows = next(fed.prepared(fed.public).batches(12))
        scores = torch.stack([door.site.model.eval()(rows).logits for door in doors.values()])
        spread.append(float(scores.detach().std(dim=0).mean()))
        report(*args, **more)

    fed.report = watch  # type: ignore[method-assign]
    fed.start()
    assert spread[-1] < 0.9 * spread[0]


def test_without_digest_sites_learn_alone() -> None:
    """The scores are asked for, but nobody uses them."""
    first, second = (
        [
            e["metrics"]
            for e in go(method(digest_epochs=0, match=match), ALL).events
            if "metrics" in e
        ]
        for match in ("absolute", "kl")
    )
    assert first == second


def test_it_needs_a_public_set() -> None:
    with pytest.raises(ConfigError, match="FedMD needs a public set"):
        go(method(), "data.public=0")
