from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from tests.core.toys import NAMES, Averaging, Dead, Phases, Wrapper, federation, specs

from motet.audit.tap import Enough, Seen, Tap
from motet.core import Engine, Kind, Method, Reply, Request, weights_of
from motet.core.errors import WireError
from motet.core.guard import Passage, Protection
from motet.core.middleware import pack_all
from motet.core.tree import Tree, leaves, map_tensors
from motet.engines.serial import Serial
from motet.protect.compress import Codec


def tapped(method: Method, **options: object) -> tuple[Tap, list[dict[str, object]]]:
    """A tap on a whole run, and the run's events."""
    taps: list[Tap] = []
    events: list[dict[str, object]] = []

    def wrap(engine: Engine) -> Engine:
        taps.append(Tap(engine, method, **options))  # type: ignore[arg-type]
        return taps[0]

    federation(method, wrap=wrap, listener=events.append).start()
    return taps[0], events


def stripped(events: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{key: value for key, value in event.items() if key != "time"} for event in events]


@pytest.mark.parametrize("method", [Averaging(), Phases()])
@pytest.mark.usefixtures("rng_untouched")
def test_a_run_does_not_notice_its_tap(method: Method) -> None:
    plain: list[dict[str, object]] = []
    federation(method, listener=plain.append).start()
    _, events = tapped(method)
    assert stripped(events) == stripped(plain)
    assert events[-1]["hash"]


def test_replies_are_kept_with_what_they_answer() -> None:
    tap, events = tapped(Averaging(rounds=2, cohort=3))
    trained = [item for item in tap.seen if item.op == "train"]
    told = [e for e in events if e["event"] == "replied" and e["op"] == "train"]
    assert [(item.site, item.round, item.tag) for item in trained] == [
        (e["site"], e["round"], e["tag"]) for e in told
    ]
    assert [item.up for item in trained] == [e["up"]["frame"] for e in told]  # type: ignore[index]
    first = trained[0]
    assert first.sends == {"weights": Kind.WEIGHTS}
    assert first.sent["weights"].keys() == first.reply["weights"].keys()
    assert not torch.equal(
        first.sent["weights"]["layer.weight"], first.reply["weights"]["layer.weight"]
    )


class Spoiling(Wrapper):
    """A hub that changes in place what it received, after the tap has seen it."""

    def recv(self, timeout: float | None = None) -> Reply | None:
        reply = self.inner.recv(timeout)
        if reply is not None and reply.value:
            map_tensors(lambda value: value.fill_(7), reply.value)
        return reply


def test_a_copy_is_taken_before_the_hub_gets_to_it() -> None:
    method = Averaging(rounds=1)
    taps: list[Tap] = []

    def wrap(engine: Engine) -> Engine:
        taps.append(Tap(engine, method))
        return Spoiling(taps[0])

    federation(method, wrap=wrap).start()
    value = next(item.reply["weights"]["layer.weight"] for item in taps[0].seen)
    assert not torch.equal(value, torch.full_like(value, 7))


def test_one_site_alone_can_be_tapped() -> None:
    tap, _ = tapped(Averaging(rounds=3, cohort=5), sites={"ben"})
    assert {item.site for item in tap.seen} == {"ben"}
    assert len(tap.of("ben", Kind.WEIGHTS)) == 3
    assert len(tap.of("ben", Kind.METRIC)) == 3
    assert tap.of("ada") == []


def test_memory_is_bounded_and_the_oldest_go_first() -> None:
    whole, _ = tapped(Averaging(rounds=3, cohort=5), sites={"ben"})
    # The last training, its report, and the report before: those hold no tensors.
    last = whole.seen[-3:]
    most = sum(leaf.nbytes for item in last for _, leaf in leaves({"a": item.sent, "b": item.reply})
               if isinstance(leaf, torch.Tensor))  # fmt: skip
    tap, _ = tapped(Averaging(rounds=3, cohort=5), sites={"ben"}, most_bytes=most)
    assert [item.tag for item in tap.seen] == [item.tag for item in last]
    assert tap.dropped == len(whole.seen) - 3
    assert tap.bytes == most
    none, _ = tapped(Averaging(rounds=1), most_bytes=0)
    assert none.bytes == 0
    assert none.dropped > 0


def test_a_run_ends_when_enough_rounds_were_seen() -> None:
    method = Averaging(rounds=5, cohort=5)
    taps: list[Tap] = []

    def wrap(engine: Engine) -> Engine:
        taps.append(Tap(engine, method, sites={"ada"}, rounds=2))
        return taps[0]

    with pytest.raises(Enough):
        federation(method, wrap=wrap).start()
    assert [item.round for item in taps[0].of("ada", Kind.WEIGHTS)] == [0, 1]
    # What belongs to the second round is seen to its end.
    assert [item.op for item in taps[0].seen] == ["train", "evaluate"] * 2


class Halving:
    """A guard whose replies are half of what they were, and whose arrival puts that right."""

    name = "halving"

    def leave(self, value: Tree, passage: Passage) -> Tree:
        return {**map_tensors(lambda t: t / 2 if t.is_floating_point() else t, value), "@note": 1}

    def arrive(self, value: Tree, passage: Passage) -> Tree:
        assert "weights" in passage.received or passage.op == "evaluate"
        return map_tensors(lambda t: t * 2 if t.is_floating_point() else t, value)  # type: ignore[no-any-return]


class Masking:
    """A guard that hides weights as whole numbers, as a secret sum does."""

    name = "masking"

    def leave(self, value: Tree, passage: Passage) -> Tree:
        return map_tensors(lambda t: (t * 1000).to(torch.int64), value)  # type: ignore[no-any-return]

    def arrive(self, value: Tree, passage: Passage) -> Tree:
        return value


class Refusing(Halving):
    """A guard that cannot read what it gets."""

    def arrive(self, value: Tree, passage: Passage) -> Tree:
        raise WireError("no such share")


def exchange(guard: object, codec: Mapping[Kind, str] | None = None) -> Seen:
    """The first training reply of ada under this guard, put together without a hub."""
    method = Averaging()
    protection = Protection(
        middleware=(Codec(codec),) if codec else (),  # type: ignore[arg-type]
        guards=(guard,),  # type: ignore[arg-type]
    )
    engine = Serial(specs(("ada",)), method, seed=0, protection=protection)
    tap = Tap(engine, method, protection=protection)
    payload = {"weights": weights_of(specs(("ada",))[0].build())}  # type: ignore[misc]
    shared = pack_all(protection.middleware, payload, {"weights": Kind.WEIGHTS})
    tap.send([Request("ada", "train", "0.0.1", 0, shared)])
    reply = tap.recv()
    assert reply is not None
    assert reply.error is None
    tap.close()
    return tap.seen[0]


def test_codecs_and_guards_are_undone_as_the_hub_undoes_them() -> None:
    bare = exchange(Plain())
    seen = exchange(Halving())
    assert torch.allclose(
        seen.reply["weights"]["layer.weight"], bare.reply["weights"]["layer.weight"]
    )
    assert "@note" not in seen.reply
    short = exchange(Plain(), {Kind.WEIGHTS: "fp16"})
    value = short.reply["weights"]["layer.weight"]
    assert value.dtype == torch.float32
    assert torch.equal(value, value.half().float())
    assert short.sent["weights"]["layer.weight"].dtype == torch.float32


class Plain(Halving):
    """A guard that changes nothing."""

    def leave(self, value: Tree, passage: Passage) -> Tree:
        return value

    def arrive(self, value: Tree, passage: Passage) -> Tree:
        return value


def test_a_secret_share_stays_masked_and_is_told_from_real_numbers() -> None:
    assert exchange(Masking()).masked("weights")
    assert not exchange(Plain()).masked("weights")
    votes = Seen("a", "op", "0.0.1", 0, {"v": Kind.VOTES}, {}, {"v": torch.tensor([1, 2])})
    assert not votes.masked("v")
    assert not votes.masked("samples")


def test_a_reply_that_cannot_be_read_is_kept_as_it_travelled() -> None:
    seen = exchange(Refusing())
    assert seen.problem == "no such share"
    assert seen.reply["@note"] == 1


def test_failures_and_built_in_operations_leave_no_trace() -> None:
    method = Averaging(rounds=1, cohort=5)
    taps: list[Tap] = []

    def wrap(engine: Engine) -> Engine:
        taps.append(Tap(Dead(engine, "dan"), method))
        return taps[0]

    with pytest.raises(Exception, match="dan is down"):
        federation(method, wrap=wrap).start()
    assert "dan" not in {item.site for item in taps[0].seen}
    assert set(NAMES) == set(taps[0].sites())
