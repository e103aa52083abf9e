"""Groups: who is drawn, who is asked, how many answers suffice, and what is counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytest
import torch
from tests.core.toys import NAMES, Backwards, Dead, Wrapper, federation

from motet.core import (
    ConfigError,
    Engine,
    Federation,
    Kind,
    Method,
    Reply,
    Request,
    Site,
    SiteError,
    Traits,
    Tree,
    WireError,
    at_site,
    wire,
)
from motet.core.group import _needed


class Question(Method):
    """Asks what it is told to ask, in one round."""

    def run(self, fed: Federation) -> None:
        raise AssertionError("every test brings its own")

    @at_site(sends={"w": Kind.WEIGHTS}, takes={"rows": Kind.CONTROL})
    def answer(self, site: Site, **payload: Any) -> Tree:
        if payload.get("fail") == site.name:
            raise ValueError("cannot")
        return {"w": torch.full((2,), len(site.data)), "samples": len(site.data), "n": len(payload)}


METHOD = Question()


def fresh(wrap: Callable[[Engine], Engine] = lambda engine: engine, seed: int = 0) -> Federation:
    return federation(METHOD, wrap=wrap, seed=seed)


def test_groups_are_sorted_and_known() -> None:
    fed = fresh()
    assert fed.all.names == NAMES
    assert list(fed.at(["eve", "ada", "eve"])) == ["ada", "eve"]
    assert len(fed.at([])) == 0
    with pytest.raises(ConfigError, match="there is no site 'zoe'; there are"):
        fed.at(["ada", "zoe"])
    assert fed.at(["ben"]).traits == {"ben": Traits(("x",), 7, public=fed.row_order)}


def test_groups_are_chosen_by_modality() -> None:
    class Varied(Wrapper):
        def sites(self) -> dict[str, Traits]:
            known = super().sites()
            return {**known, "ben": Traits(("text", "x"), 3), "eve": Traits(("text",), 3)}

    fed = fresh(Varied)
    assert fed.where(modality="text").names == ("ben", "eve")
    assert fed.where(modality="x").names == ("ada", "ben", "cleo", "dan")
    assert fed.where(modality="text").where(modality="x").names == ("ben",)
    assert len(fed.where(modality="audio")) == 0


def draws(fed: Federation, rounds: int = 4, count: int = 2) -> list[tuple[str, ...]]:
    return [fed.sample(count).names for _ in fed.rounds(rounds)]


@pytest.mark.usefixtures("rng_untouched")
def test_a_sample_is_keyed_by_run_round_and_draw() -> None:
    def first(seed: int) -> list[tuple[str, ...]]:
        class Draws(Question):
            def run(self, fed: Federation) -> None:
                found.extend(draws(fed))

        found: list[tuple[str, ...]] = []
        federation(Draws(), seed=seed).start()
        return found

    once = first(0)
    assert once == first(0) != first(1)
    assert len(set(once)) > 1
    assert all(len(set(names)) == 2 and set(names) <= set(NAMES) for names in once)


def test_two_draws_of_a_round_differ() -> None:
    fed = fresh()
    pairs = [(fed.sample(2).names, fed.sample(2).names) for _ in range(10)]
    assert any(one != other for one, other in pairs)


def test_what_is_asked_does_not_change_who_is_drawn_next() -> None:
    quiet, busy = fresh(), fresh()
    busy.all.ask(METHOD.answer)
    assert quiet.sample(2).names == busy.sample(2).names


def test_every_site_is_drawn_alike() -> None:
    fed = fresh()
    counts = dict.fromkeys(NAMES, 0)
    for _ in range(2000):
        for name in fed.sample(2):
            counts[name] += 1
    # Two of five, 2,000 times: 800 each, with a standard deviation of 22.
    assert all(abs(count - 800) < 90 for count in counts.values())


def test_a_sample_is_never_larger_than_its_group() -> None:
    fed = fresh()
    assert fed.sample(99).names == NAMES
    assert len(fed.at([]).sample(3)) == 0
    with pytest.raises(ConfigError, match="at least 1 site, not 0"):
        fed.sample(0)


@pytest.mark.parametrize("wrap", [Wrapper, Backwards])
def test_answers_are_in_the_order_of_names(wrap: Callable[[Engine], Engine]) -> None:
    replies = fresh(wrap).all.ask(METHOD.answer)
    assert list(replies) == list(NAMES)
    assert [reply["samples"] for reply in replies.values()] == [6, 7, 8, 9, 10]


def test_each_site_may_be_told_something_of_its_own() -> None:
    fed = fresh()
    replies = fed.all.ask(METHOD.answer, each={"ben": {"b": 1, "c": 2}}, a=1)
    assert {name: reply["n"] for name, reply in replies.items()} == {
        "ada": 1,
        "ben": 3,
        "cleo": 1,
        "dan": 1,
        "eve": 1,
    }
    with pytest.raises(ConfigError, match="each= names 'zoe', which is not asked"):
        fed.all.ask(METHOD.answer, each={"zoe": {}})


def test_an_empty_group_has_no_answers() -> None:
    fed = fresh()
    assert len(fed.at([]).ask(METHOD.answer, a=torch.ones(2))) == 0
    assert len(fed.at([]).ask(METHOD.answer, quorum=0.5)) == 0
    with pytest.raises(SiteError, match="0 of 0 sites answered, 1 were wanted: the group is empty"):
        fed.at([]).ask(METHOD.answer, quorum=1)


def test_only_operations_can_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="run is not an @at_site function of Question"):
        fresh().all.ask(METHOD.run)


def test_a_stranger_in_a_payload_is_named() -> None:
    with pytest.raises(WireError, match=r"payload at a\.0 is of type set"):
        fresh().all.ask(METHOD.answer, a=[{1}])


@pytest.mark.parametrize(
    ("quorum", "needed"),
    [(None, 5), (0, 0), (2, 2), (7, 7), (0.0, 0), (0.5, 3), (0.6, 3), (0.61, 4), (1.0, 5)],
)
def test_a_quorum_is_a_number_or_a_share(quorum: float | None, needed: int) -> None:
    assert _needed(quorum, 5) == needed


def test_a_share_is_not_rounded_up_by_a_last_bit() -> None:
    assert math.ceil(0.07 * 100) == 8
    assert _needed(0.07, 100) == 7
    assert _needed(0.55, 100) == 55


@pytest.mark.parametrize("quorum", [-1, -0.5, 1.5, 2.0])
def test_a_quorum_that_makes_no_sense_is_refused(quorum: float) -> None:
    with pytest.raises(ConfigError, match=f"quorum is a whole number, or a share .* not {quorum}"):
        fresh().all.ask(METHOD.answer, quorum=quorum)


def dead(*sites: str) -> Callable[[Engine], Engine]:
    return lambda engine: Dead(engine, *sites)


@pytest.mark.parametrize("quorum", [3, 0.6, 0])
def test_enough_answers_are_enough(quorum: float) -> None:
    replies = fresh(dead("ben", "eve")).all.ask(METHOD.answer, quorum=quorum)
    assert list(replies) == ["ada", "cleo", "dan"]
    assert replies.failed == {"ben": "site ben is down", "eve": "site eve is down"}


@pytest.mark.parametrize("quorum", [4, 0.61, None])
def test_too_few_answers_are_an_error(quorum: float | None) -> None:
    with pytest.raises(SiteError, match=r"3 of 5 sites answered, [45] were wanted: site \w+ is"):
        fresh(dead("ben", "eve")).all.ask(METHOD.answer, quorum=quorum)


def test_a_site_that_fails_is_told_in_the_events() -> None:
    fed = fresh()
    replies = fed.all.ask(METHOD.answer, quorum=0, fail="cleo", rows=torch.arange(3))
    assert "cleo" not in replies
    (failed,) = [event for event in fed.events.memory if event["event"] == "failed"]
    assert (failed["site"], failed["op"], failed["round"]) == ("cleo", "answer", -1)
    assert failed["error"].startswith("site cleo, round -1, operation answer: ValueError: cannot")
    assert failed["down"]["control"] == 24
    assert "up" not in failed


def test_bytes_are_those_of_the_frames_and_of_the_kinds() -> None:
    fed = fresh()
    payload: Tree = {"rows": torch.arange(3), "w": torch.ones(5), "other": torch.ones(1)}
    fed.all.ask(METHOD.answer, each={"ben": {"w": torch.ones(7)}}, **payload)
    notes = {event["site"]: event for event in fed.events.memory}
    assert {key: notes["ada"]["down"][key] for key in ("weights", "control", "other")} == {
        "weights": 20,
        "control": 24,
        "other": 4,
    }
    reply = {"w": torch.full((2,), 6), "samples": 6, "n": 3}
    assert notes["ada"]["up"] == {"frame": len(wire.encode(reply)), "weights": 16}
    question = {"op": "answer", "tag": "-1.-1.1", "round": -1, "shared": payload, "own": {}}
    assert notes["ada"]["down"]["frame"] == len(wire.encode(question))


class Slow(Wrapper):
    """Time passes by with every answer, and some never come."""

    def __init__(self, engine: Engine, clock: list[float], lost: Sequence[str] = ()) -> None:
        super().__init__(engine)
        self.clock = clock
        self.lost = lost
        self.timeouts: list[float | None] = []

    def send(self, requests: Sequence[Request]) -> None:
        super().send([request for request in requests if request.site not in self.lost])

    def recv(self, timeout: float | None = None) -> Reply | None:
        self.timeouts.append(timeout)
        self.clock[0] += 2
        return super().recv(timeout)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("motet.core.exchange.time.monotonic", lambda: now[0])
    return now


def test_the_timeout_is_for_all_answers_together(clock: list[float]) -> None:
    slow: list[Slow] = []

    def wrap(engine: Engine) -> Engine:
        slow.append(Slow(engine, clock, lost=["ben"]))
        return slow[0]

    replies = fresh(wrap).all.ask(METHOD.answer, quorum=0, timeout=7)
    assert slow[0].timeouts == [7, 5, 3, 1, 0]
    assert replies.failed == {"ben": "no answer within 7 s"}


def test_an_answer_to_an_earlier_question_is_passed_over() -> None:
    class Late(Wrapper):
        def recv(self, timeout: float | None = None) -> Reply | None:
            reply = super().recv(timeout)
            if reply is not None and reply.site == "ada" and not early:
                early.append(reply)
                self.send([Request("ada", "answer", reply.tag, -1)])
                return Reply("ada", "-1.-1.0", value={"samples": 999})
            return reply

    early: list[Reply] = []
    replies = fresh(Late).all.ask(METHOD.answer)
    assert early
    assert replies["ada"]["samples"] == 6


class Fussy:
    """A middleware that cannot read what one site packed."""

    def pack(self, tree: Tree, kinds: Mapping[str, Kind]) -> Tree:
        return tree

    def unpack(self, tree: Tree) -> Tree:
        if tree.get("samples") == 8:
            raise WireError("w is not a tensor that was packed")
        return tree


def test_a_reply_that_cannot_be_read_counts_as_failed() -> None:
    fed = federation(METHOD, middleware=[Fussy()])
    replies = fed.all.ask(METHOD.answer, quorum=4)
    assert replies.failed == {
        "cleo": "site cleo: its reply is refused: w is not a tensor that was packed"
    }


def test_what_a_site_is_told_of_its_own_may_be_any_mapping() -> None:
    fed = fresh()
    own = MappingProxyType({"rows": torch.arange(2)})
    replies = fed.at(["ada"]).ask(METHOD.answer, each={"ada": own})
    assert replies["ada"]["n"] == 1


def test_nothing_is_sent_where_one_site_is_told_what_cannot_travel() -> None:
    fed = fresh()
    with pytest.raises(WireError, match="payload at rows is of type set"):
        fed.at(["ada", "ben"]).ask(METHOD.answer, each={"ben": {"rows": {1}}})
    assert not [event for event in fed.events.memory if event["event"] == "replied"]
