"""Questions that are posted: who is at work, whose answer comes first, and what a kill does."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core.test_federation import after, finish, told
from tests.core.toys import NAMES, Backwards, Dead, Wrapper, cross_entropy, federation

from motet.core import (
    Adam,
    ConfigError,
    Engine,
    Federation,
    Kind,
    Method,
    Reply,
    Request,
    Site,
    Tree,
    at_site,
    load,
    read_events,
    weights_of,
)
from motet.core.exchange import Patience
from motet.core.guard import Protection
from motet.core.replies import Origin, Replies, moved, together
from motet.engines.clock import ClientProfile, ClientProfiles, Clocked
from motet.protect.robust import RobustRule, RobustSpec

# Seconds per call: ada is the fastest and eve the slowest, whatever their rows.
PACE = {"ada": 1.0, "ben": 2.0, "cleo": 4.0, "dan": 8.0, "eve": 16.0}


class Restless(Method):
    """Sites keep their model and count their visits; the hub takes what comes first."""

    rounds: int = 5
    buffer: int = 3

    def run(self, fed: Federation) -> None:
        fed.all.post(self.greet)
        fed.state["seen"] = []
        for number in fed.rounds(self.rounds):
            parts: list[Replies] = []
            while sum(map(len, parts)) < self.buffer:
                fed.free.post(self.train, weights=weights_of(fed.model))
                if number == 2 and not parts:
                    # What is asked beside what is posted must not lose it.
                    fed.report(sites=fed.all)
                parts.append(fed.collect())
            replies = together(parts)
            ages = {name: number - asked for name, asked in replies.rounds.items()}
            trained = {name: 1.0 for name in replies if "weights" in replies[name]}
            fed.log(who=list(replies), ages=list(ages.values()))
            if trained:
                load(fed.model, replies.mean("weights", onto=weights_of(fed.model)))
            visits = [replies[name]["visits"] for name in replies]
            fed.state["seen"] = [*fed.state["seen"], visits]
            fed.report()

    @at_site()
    def greet(self, site: Site) -> Tree:
        site.state = {"visits": 100.0 * len(site.data)}
        return {"visits": site.state["visits"]}

    @at_site(sends={"weights": Kind.WEIGHTS}, keeps="model")
    def train(self, site: Site, weights: Tree) -> Tree:
        site.state = {"visits": site.state["visits"] + 1}
        own = site.state.get("mine", weights)
        load(site.model, own)
        site.fit(cross_entropy, site.private(3), site.optimizer("local", Adam(0.02)))
        return {"weights": weights_of(site.model), "visits": site.state["visits"]}


def clocked(engine: Engine) -> Clocked:
    only = {
        name: ClientProfile(speed=engine.sites()[name].rows / seconds)
        for name, seconds in PACE.items()
        if name in engine.sites()
    }
    return Clocked(engine, ClientProfiles(only=only), seed=0)


def fresh(
    method: Method | None = None,
    wrap: Callable[[Engine], Engine] = clocked,
    patience: Patience | None = None,
    **rest: Any,
) -> Federation:
    fed = federation(method or Restless(), wrap=wrap, **rest)
    fed.patience = patience or Patience()
    return fed


def greet(fed: Federation, *names: str, **rest: Any) -> Any:
    return fed.at(names or NAMES).post(Restless().greet, **rest)


def events(fed: Federation, kind: str) -> list[dict[str, Any]]:
    return [event for event in fed.events.memory if event["event"] == kind]


def test_answers_come_when_they_arrive() -> None:
    fed = fresh()
    greet(fed)
    got = [(list(fed.collect()), fed.events.memory[-1]["seconds"]) for _ in NAMES]
    assert got == [([name], PACE[name]) for name in NAMES]
    assert len(fed.collect()) == 0


def test_who_is_at_work_is_busy_until_it_is_collected() -> None:
    fed = fresh()
    assert (fed.busy.names, fed.free.names) == ((), NAMES)
    greet(fed, "dan", "ben")
    assert (fed.busy.names, fed.free.names) == (("ben", "dan"), ("ada", "cleo", "eve"))
    fed.collect()
    assert fed.busy.names == ("dan",)
    with pytest.raises(ConfigError, match="site dan is still at work .* fed.free"):
        greet(fed)
    assert fed.busy.names == ("dan",)


def test_a_busy_site_is_not_asked_beside_it() -> None:
    fed = fresh()
    greet(fed, "ada")
    replies = fed.all.ask(Restless().greet, quorum=0.5)
    assert list(replies) == ["ben", "cleo", "dan", "eve"]
    assert "still at work" in replies.failed["ada"]
    # It took the others 16 seconds, and ada's answer has waited since the first of them.
    assert list(fed.collect(timeout=0.0)) == ["ada"]
    assert fed.events.memory[-1]["seconds"] == 16.0


def test_of_several_questions_those_wanted_are_collected() -> None:
    fed = fresh()
    fast, slow = greet(fed, "ada", "ben"), greet(fed, "eve", "dan")
    assert list(fed.collect(slow)) == ["dan"]
    assert list(fed.collect([slow])) == ["eve"]
    assert list(fed.collect(slow)) == []
    assert list(fed.collect([fast, slow], count=2)) == ["ada", "ben"]


def test_a_count_is_waited_for_and_more_is_taken_if_it_is_there() -> None:
    fed = fresh()
    greet(fed)
    assert list(fed.collect(count=2)) == ["ada", "ben"]
    fed.at(["ada"]).ask(Restless().greet)
    fed.at(["ben"]).ask(Restless().greet)
    # 5 seconds have gone by: cleo is there.
    assert list(fed.collect(count=1, most=9)) == ["cleo"]
    assert list(fed.collect(count=9)) == ["dan", "eve"]


def test_equal_arrivals_are_taken_together() -> None:
    fed = fresh(wrap=lambda engine: Clocked(engine, ClientProfiles(speed=None), seed=0))
    greet(fed)
    assert list(fed.collect(most=3)) == ["ada", "ben", "cleo"]
    assert list(fed.collect(most=3)) == ["dan", "eve"]


def test_a_timeout_leaves_the_rest_open() -> None:
    fed = fresh()
    greet(fed)
    assert list(fed.collect(count=5, timeout=5.0)) == ["ada", "ben", "cleo"]
    assert fed.busy.names == ("dan", "eve")
    assert list(fed.collect(timeout=2.0)) == []
    assert list(fed.collect(timeout=2.0)) == ["dan"]


def test_a_lost_answer_is_asked_for_again_and_then_given_up() -> None:
    lost = ["ben", "ben", "cleo"]

    class Lossy(Wrapper):
        def __init__(self, engine: Engine) -> None:
            super().__init__(engine)
            self.engine = engine

        def recv(self, timeout: float | None = None) -> Reply | None:
            reply = super().recv(timeout)
            if reply is not None and reply.site in lost:
                lost.remove(reply.site)
                return self.recv(timeout)
            return reply

    fed = fresh(wrap=lambda engine: Lossy(clocked(engine)), patience=Patience(3.0, retries=1))
    greet(fed, "ada", "ben", "cleo")
    assert list(fed.collect()) == ["ada"]
    replies = fed.collect(count=2)
    # cleo's four seconds are over the timeout; its answer, from the cache, comes at once then.
    assert list(replies) == ["cleo"]
    assert replies.failed == {"ben": "no answer within 3 s"}
    again = [(event["site"], event["reason"]) for event in events(fed, "asked again")]
    assert again == [(name, "no answer within 3 s") for name in ("ben", "cleo")]
    assert [event["site"] for event in events(fed, "failed")] == ["ben"]
    assert fed.busy.names == ()


def test_a_site_that_fails_is_collected_as_such() -> None:
    fed = fresh(wrap=lambda engine: Dead(engine, "ben"))
    greet(fed, "ada", "ben")
    replies = fed.collect(count=2)
    assert (list(replies), replies.failed) == (["ada"], {"ben": "site ben is down"})


def test_sites_with_other_public_rows_are_not_asked() -> None:
    class Odd(Wrapper):
        asked: tuple[str, ...] = ()

        def sites(self) -> Any:
            found = super().sites()
            return {**found, "ben": found["cleo"].__class__(("x",), 7, public="other")}

        def send(self, requests: Sequence[Request]) -> None:
            self.asked += tuple(request.site for request in requests)
            super().send(requests)

    fed = fresh(wrap=Odd)
    greet(fed, "ada", "ben")
    replies = fed.collect(count=2)
    assert list(replies) == ["ada"]
    assert "other public rows" in replies.failed["ben"]
    assert fed.engine.asked == ("ada",)  # type: ignore[attr-defined]


def test_an_answer_remembers_what_it_started_from() -> None:
    fed = fresh()
    greet(fed, "ada")
    fed.collect()
    fed.round = 3
    first = {"weights": {"w": torch.ones(2)}}
    fed.at(["ada"]).post(Restless().greet)
    fed.round = 7
    assert fed.collect().rounds == {"ada": 3}
    replies = Replies(
        {"a": first}, {}, origins={"a": Origin(3, {"weights": {"w": torch.zeros(2)}})}
    )
    mean = replies.mean("weights", onto={"w": torch.full((2,), 10.0)}, factors={"a": 0.5})
    assert mean["w"].tolist() == [10.5, 10.5]


def test_what_started_from_the_present_value_is_taken_as_it_is() -> None:
    value = {"w": torch.tensor([0.1, 0.7]), "seen": torch.tensor(5)}
    base = {"w": torch.tensor([0.3, 1e-8]), "seen": torch.tensor(2), "more": torch.ones(1)}
    same = moved(value, base, {**base, "w": base["w"].clone()}, 1.0)
    assert same["w"] is value["w"]
    half = moved(value, base, base, 0.5)
    torch.testing.assert_close(half["w"], (value["w"] + base["w"]) / 2)
    assert int(half["seen"]) == 5
    with pytest.raises(ConfigError, match="under the same key"):
        moved(value, None, base, 1.0)


def test_a_site_may_answer_twice_for_one_mean() -> None:
    def one(site: str, value: float) -> Replies:
        return Replies({site: {"x": value}}, {}, origins={site: Origin(0)})

    replies = together([one("b", 1.0), one("a", 2.0), one("b", 6.0)])
    assert list(replies) == ["a", "b", "b (2)"]
    assert replies.mean("x") == 3.0
    assert len(together([])) == 0


def test_a_robust_rule_puts_collected_answers_together() -> None:
    rule = RobustRule(RobustSpec(name="median", share=0.3))
    fed = fresh()
    fed.protection = Protection(combiners=[rule])
    greet(fed, "ada", "ben", "cleo")
    fed.collect(count=3)
    zero = {name: torch.zeros_like(value) for name, value in weights_of(fed.model).items()}
    fed.at(["ada", "ben", "cleo"]).post(Restless().train, weights=zero)
    replies = fed.collect(count=3)
    each = [replies[name]["weights"]["layer.bias"] for name in replies]
    found = replies.mean("weights", onto=zero)["layer.bias"]
    assert torch.equal(found, torch.stack(each).median(dim=0).values)


def test_protection_of_whole_rounds_is_refused() -> None:
    class Hiding(RobustRule):
        hides = True

    fed = fresh()
    fed.protection = Protection(combiners=[Hiding(RobustSpec(name="median"))])
    with pytest.raises(ConfigError, match="collects answers one by one, and protect"):
        fed.all.post(Restless().train, weights={})
    assert fed.busy.names == ()


def test_other_replies_are_noted_and_passed_over() -> None:
    class Stray(Wrapper):
        def send(self, requests: Sequence[Request]) -> None:
            super().send([Request("ada", "greet", "9.9.9", 0), *requests])

    fed = fresh(wrap=Stray)
    greet(fed, "ada", "ben")
    assert list(fed.collect(count=2)) == ["ada", "ben"]
    ignored = [(event["site"], event["tag"]) for event in events(fed, "ignored")]
    assert ignored == [("ada", "9.9.9")]


def reference() -> tuple[bytes, list[dict[str, Any]]]:
    fed = fresh()
    return finish(fed), told(fed.events.memory)


def test_two_runs_are_equal_whatever_the_order_in_which_sites_run() -> None:
    fed = fresh(wrap=lambda engine: clocked(Backwards(engine)))
    assert (finish(fed), told(fed.events.memory)) == reference()
    logs = events(fed, "log")
    assert max(max(log["ages"]) for log in logs) > 1
    assert any("ada (2)" in log["who"] for log in logs)


def child(folder: Path, die: Callable[[], None]) -> bool:
    """Whether the run was killed; forked, since processes are what is killed."""
    pid = os.fork()
    if not pid:
        try:
            fresh(folder=folder, listener=lambda _: die()).start()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def test_a_kill_after_any_event_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites keep models and counts, and questions are open at every checkpoint."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    expected = reference()
    count = 0
    while child(tmp_path / str(count), after(count + 1)):
        folder = tmp_path / str(count)
        fed = fresh(folder=folder)
        assert finish(fed) == expected[0], f"other state after event {count}"
        assert told(read_events(folder / "events.jsonl")) == expected[1], f"event {count}"
        count += 3
    assert count > 40


def test_kills_upon_kills_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    folder = tmp_path / "run"
    kills = sum(child(folder, after(count)) for count in (9, 14, 5, 17, 20, 11, 3, 25))
    assert kills > 3
    fed = fresh(folder=folder)
    assert (finish(fed), told(read_events(folder / "events.jsonl"))) == reference()


def test_a_payload_that_several_share_is_kept_once() -> None:
    fed = fresh()
    weights = weights_of(fed.model)
    fed.at(["ada"]).post(Restless().train, weights=weights)
    greet(fed, "ben")
    payload: Tree = {"weights": weights}
    fed._posted._pending["-1.-1.1"].exchange.requests[0].shared.update(payload)
    tree = fed._posted.tree()
    assert [question["payload"] for question in tree["questions"]] == [0, 1]
    assert [question["sites"] for question in tree["questions"]] == [["ada"], ["ben"]]
    assert fresh()._posted.tree() == {}
