"""The reference engine: copies or frames, with equal results, equal bytes and no side doors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core.toys import NAMES, Averaging, federation, specs

from motet.core import (
    Federation,
    Kind,
    Method,
    Reply,
    Request,
    Site,
    Tree,
    WireError,
    at_site,
    wire,
)
from motet.core.tree import clone
from motet.engines.serial import Serial


class Meddling(Method):
    """Both sides change in place what they sent and what they were sent."""

    # Large tensors are copied when they are written to, and small ones at once.
    size: int = 2

    def run(self, fed: Federation) -> None:
        sent: Tree = {"z": torch.ones(self.size), "list": [1.0]}
        fed.state["seen"] = []
        for _ in fed.rounds(3):
            replies = fed.all.ask(self.meddle, shared=sent)
            for reply in replies.values():
                fed.state["seen"] += [clone(reply["z"]), list(reply["list"])]
                reply["z"].mul_(100)
                reply["list"].append(9.0)
            sent["z"].add_(1)

    @at_site(sends={"z": Kind.LOGITS, "list": Kind.LOGITS}, keeps="model")
    def meddle(self, site: Site, shared: Tree) -> Tree:
        shared["z"].mul_(2)
        shared["list"].append(2.0)
        total = site.state.get("z", torch.zeros(self.size)) + shared["z"]
        site.state = {"z": total, "shared": shared["z"]}
        with torch.no_grad():
            for value in site.model.parameters():
                value.add_(1)
        return {"z": total, "list": shared["list"]}


class Alive(Method):
    """A site that sends its living weights, and a hub that trains on what it got."""

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(2):
            replies = fed.all.ask(self.send)
            fed.state.setdefault("kept", []).append(replies["ada"]["w"])

    @at_site(sends={"w": Kind.WEIGHTS}, keeps="model")
    def send(self, site: Site) -> Tree:
        weight = next(site.model.parameters())
        with torch.no_grad():
            weight.mul_(2)
        return {"w": weight.T}


METHODS = [Meddling(), Meddling(size=9000), Alive(), Averaging()]


@pytest.mark.parametrize("method", METHODS, ids=["small", "large", "alive", "averaging"])
def test_copies_and_frames_give_the_same(method: Method) -> None:
    ends = []
    for strict in (False, True):
        fed = federation(method, strict=strict)
        fed.start()
        frames = [(event["down"], event["up"]) for event in replied(fed)]
        ends.append((wire.encode({"state": fed.state, "learner": fed.tree()}), frames))
    assert ends[0] == ends[1]


def replied(fed: Federation) -> list[dict[str, Any]]:
    return [event for event in fed.events.memory if event["event"] == "replied"]


def test_a_reply_is_contiguous_and_free() -> None:
    fed = federation(Alive())
    fed.start()
    first, second = fed.state["kept"]
    assert torch.equal(2 * first, second)
    assert first.is_contiguous()
    assert not first.requires_grad


@pytest.fixture(params=[False, True], ids=["copies", "frames"])
def engine(request: pytest.FixtureRequest) -> Serial:
    return Serial(specs(), Averaging(), seed=0, strict=request.param)


def ask(engine: Serial, op: str = "evaluate", site: str = "ada", **own: Any) -> Reply:
    engine.send([Request(site, op, "0.0.1", 0, own=own)])
    reply = engine.recv()
    assert reply is not None
    return reply


def test_sites_are_known_by_name(engine: Serial) -> None:
    assert list(engine.sites()) == list(NAMES)
    assert engine.sites()["ben"].rows == 7


def test_a_reply_has_the_bytes_of_both_frames(engine: Serial) -> None:
    reply = ask(engine)
    question = {"op": "evaluate", "tag": "0.0.1", "round": 0, "shared": {}, "own": {}}
    assert reply.value is not None
    assert reply.down == len(wire.encode(question))
    assert reply.up == len(wire.encode(reply.value))
    assert (reply.site, reply.tag, reply.error) == ("ada", "0.0.1", None)


def test_a_failure_is_a_reply(engine: Serial) -> None:
    reply = ask(engine, "nothing")
    assert reply.value is None
    assert reply.error is not None
    assert reply.error.startswith("site ada refuses 'nothing'")
    assert (reply.down > 0, reply.up) == (True, 0)


def test_a_payload_that_cannot_travel_is_refused(engine: Serial) -> None:
    with pytest.raises(WireError, match=r"payload at own\.x is of type set"):
        ask(engine, x={1})


def test_requests_wait_until_their_replies_are_fetched(engine: Serial) -> None:
    assert engine.recv() is None
    engine.send([Request(name, "evaluate", "0.0.1", 0) for name in ("ben", "ada")])
    engine.send([Request("cleo", "evaluate", "0.0.1", 0)])
    replies = [engine.recv(timeout=1.0) for _ in range(4)]
    assert [reply.site if reply else None for reply in replies] == ["ben", "ada", "cleo", None]


def test_a_closed_engine_has_forgotten_its_queue(engine: Serial) -> None:
    engine.send([Request("ben", "evaluate", "0.0.1", 0)])
    engine.close()
    assert engine.recv() is None


def test_sites_keep_their_states_in_folders_of_their_own(tmp_path: Path) -> None:
    fed = federation(Meddling(), folder=tmp_path)
    fed.start()
    fed.events.close()
    assert sorted(path.name for path in (tmp_path / "sites").iterdir()) == list(NAMES)


def test_every_question_has_a_size_of_its_own(engine: Serial) -> None:
    """Though that of a payload which several sites share is worked out once."""
    ada, bob = "ada", list(engine.sites())[-1]
    shared: dict[str, Any] = {"weights": None}
    asked = [
        Request(ada, "evaluate", "1", 0, shared),
        Request(bob, "evaluate", "1", 0, shared),
        Request(ada, "evaluate", "1", 0, shared, {"weights": None}),
        Request(ada, "evaluate", "100", 0, shared),
        Request(bob, "evaluate", "100", 0, {}),
        Request(ada, "evaluate", "100", 0, {}),
    ]
    engine.send(asked)
    for request in asked:
        reply = engine.recv()
        assert reply is not None
        message = {
            "op": request.op,
            "tag": request.tag,
            "round": request.round,
            "shared": request.shared,
            "own": request.own,
        }
        assert reply.down == len(wire.encode(message))
