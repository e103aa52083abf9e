"""Attackers: who they are, what they see, what they send, and that all others are left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core.toys import NAMES, Averaging, federation, specs

from motet.core import (
    ConfigError,
    Events,
    Federation,
    Kind,
    Method,
    Reply,
    Request,
    Site,
    Traits,
    Tree,
    at_site,
    wire,
)
from motet.core.guard import Protection
from motet.core.middleware import Middleware
from motet.engines.serial import Serial
from motet.nn.bits import pack_order, unpack_order
from motet.nn.robust import elected, ranks_of
from motet.protect.attacks import AttackSpec, Hostile, forge
from motet.protect.compress import Codec
from motet.protect.forgeries import (
    alie,
    alie_strength,
    directed_krum,
    min_max,
    min_sum,
    tailored,
    tailored_krum,
)

LIARS = ("ben", "dan")


class Sending(Method):
    """Sites send weights with a counter, an order, and a number."""

    def run(self, fed: Federation) -> None:
        for _ in fed.rounds(1):
            fed.all.ask(self.work)

    @at_site(sends={"weights": Kind.WEIGHTS, "votes": Kind.VOTES})
    def work(self, site: Site, weights: Tree | None = None) -> Tree:
        number = float(NAMES.index(site.name))
        order = torch.randperm(9, generator=site.rng("order"))
        value = {"w": torch.full((2, 2), 10 + number), "n": torch.tensor(3)}
        return {"weights": value, "votes": {"l": pack_order(order, 9)}, "samples": 6}

    @at_site(sends={"score": Kind.METRIC})
    def score(self, site: Site) -> Tree:
        return {"score": torch.ones(1)}


def hostile(
    attack: AttackSpec,
    method: Method | None = None,
    middleware: Sequence[Middleware] = (),
    **kw: Any,
) -> Hostile:
    method = method or Sending()
    engine = Serial(specs(), method, seed=0, protection=Protection(middleware))
    return Hostile(engine, attack, method, seed=0, protection=Protection(middleware), **kw)


def spec(name: str, **fields: Any) -> AttackSpec:
    who = {} if "share" in fields else {"sites": LIARS}
    return AttackSpec.model_validate({"name": name, **who, **fields})


SENT = {"w": torch.full((2, 2), 10.0), "n": torch.tensor(3)}


def answers(engine: Any, op: str = "work", **shared: Any) -> dict[str, Reply]:
    payload = {"weights": SENT, **shared} if op == "work" else {}
    engine.send([Request(name, op, "t", 4, payload) for name in NAMES])
    found: dict[str, Reply] = {}
    while (reply := engine.recv()) is not None:
        assert reply.error is None
        assert reply.site not in found
        found[reply.site] = reply
    return found


def numbers(replies: Mapping[str, Reply]) -> dict[str, float]:
    """Site -> what its weights differ by from those that it was sent."""
    values = {site: reply.value["weights"]["w"] for site, reply in replies.items()}
    assert all(len(value.unique()) == 1 for value in values.values())
    return {site: float(value[0, 0]) - 10 for site, value in values.items()}


def test_attackers_are_drawn_by_seed_alone() -> None:
    names = [f"s{i}" for i in range(20)]
    attack = AttackSpec(name="noise", share=0.2)
    chosen = attack.attackers(names, 3)
    assert len(chosen) == 4
    assert chosen == attack.attackers(names[::-1], 3)
    assert len({attack.attackers(names, seed) for seed in range(9)}) > 5


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({}, "either"), ({"share": 0.2, "sites": ["ben"]}, "either"), ({"share": 1.0}, "less than 1")],
)
def test_an_attack_names_its_attackers_in_one_way(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        AttackSpec.model_validate({"name": "noise", **fields})


def test_strangers_and_nobody_are_refused() -> None:
    with pytest.raises(ConfigError, match="sites names 'zoe'"):
        hostile(spec("noise", sites=["zoe"]))
    with pytest.raises(ConfigError, match="is none"):
        hostile(spec("noise", share=0.05))


def test_an_attack_on_what_is_not_sent_is_refused() -> None:
    with pytest.raises(ConfigError, match="changes votes, and Averaging sends none"):
        hostile(spec("reversed-ranks"), Averaging())


def test_scaled_sends_the_attackers_mean_turned() -> None:
    # ben moves by 1 and dan by 3.
    found = numbers(answers(hostile(spec("scaled"))))
    assert found == {"ada": 0, "ben": -20, "cleo": 2, "dan": -20, "eve": 4}


def test_sign_flip_sends_the_own_update_turned() -> None:
    found = numbers(answers(hostile(spec("sign-flip", factor=2.0))))
    assert found == {"ada": 0, "ben": -2, "cleo": 2, "dan": -6, "eve": 4}


def test_without_a_reference_what_is_sent_is_the_update() -> None:
    for other in (None, {"w": torch.zeros(3)}, {"v": torch.zeros(2, 2)}):
        replies = answers(hostile(spec("sign-flip", factor=1.0)), weights=other)
        assert numbers(replies) == {"ada": 0, "ben": -21, "cleo": 2, "dan": -23, "eve": 4}


def test_an_own_payload_is_the_reference_too() -> None:
    engine = hostile(spec("sign-flip", factor=1.0))
    own = {"weights": {"w": torch.full((2, 2), 8.0), "n": torch.tensor(0)}}
    engine.send([Request("ben", "work", "t", 0, own=own)])
    assert engine.recv().value["weights"]["w"].unique().tolist() == [5]


def test_the_rest_of_a_reply_stays() -> None:
    honest = answers(Serial(specs(), Sending(), seed=0))
    for name in ("scaled", "noise"):
        replies = answers(hostile(spec(name)))
        for site in NAMES:
            value, before = replies[site].value, honest[site].value
            assert wire.digest(value["votes"]) == wire.digest(before["votes"])
            assert (value["samples"], int(value["weights"]["n"])) == (6, 3)
            same = torch.equal(value["weights"]["w"], before["weights"]["w"])
            assert same == (site not in LIARS)


def test_other_operations_are_left_alone() -> None:
    engine = hostile(spec("scaled"))
    assert all(float(reply.value["score"]) == 1 for reply in answers(engine, "score").values())


def test_reversed_ranks_sends_the_reverse_of_the_attackers_own_sum() -> None:
    honest = answers(Serial(specs(), Sending(), seed=0))
    orders = {site: unpack_order(reply.value["votes"]["l"]) for site, reply in honest.items()}
    wanted = elected([ranks_of(orders[site], 9) for site in LIARS]).flip(0)
    replies = answers(hostile(spec("reversed-ranks")))
    for site, reply in replies.items():
        sent = unpack_order(reply.value["votes"]["l"], 9)
        assert torch.equal(sent, wanted if site in LIARS else orders[site])
        assert numbers(replies)[site] == NAMES.index(site)


def test_rotated_ranks_puts_the_middle_of_the_own_sum_at_its_ends() -> None:
    honest = answers(Serial(specs(), Sending(), seed=0))
    orders = [unpack_order(honest[site].value["votes"]["l"]) for site in LIARS]
    wanted = elected([ranks_of(order, 9) for order in orders]).roll(4)
    sent = answers(hostile(spec("rotated-ranks")))["ben"].value["votes"]["l"]
    assert torch.equal(unpack_order(sent, 9), wanted)
    # The two ends, of which the order makes most, are now in the middle.
    assert {int(wanted[3]), int(wanted[4])} == {int(wanted.roll(-4)[-1]), int(wanted.roll(-4)[0])}


def test_noise_is_as_large_as_the_update_and_each_attacker_s_own() -> None:
    own = torch.stack([torch.full((4000,), 2.0), torch.full((4000,), 5.0)])
    rngs = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    found = forge(spec("noise"), own, own, rngs)
    torch.testing.assert_close(found.std(dim=1), torch.tensor([2.0, 5.0]), rtol=0.05, atol=0)
    found = forge(spec("noise", std=200.0), own, own, rngs)
    assert abs(float(found.std()) - 200) < 5
    assert abs(float(torch.corrcoef(found)[0, 1])) < 0.1
    first, second = (answers(hostile(spec("noise")))["ben"] for _ in range(2))
    assert wire.digest(first.value) == wire.digest(second.value)


def test_tailored_knows_its_own_updates_or_all() -> None:
    def sent(knowledge: str) -> float:
        found = numbers(answers(hostile(spec("tailored", knowledge=knowledge))))
        assert found["ben"] == pytest.approx(found["dan"])
        assert [found[site] for site in ("ada", "cleo", "eve")] == [0, 2, 4]
        return found["ben"]

    own = float(tailored(torch.tensor([[1.0], [3.0]]), 2))
    others = float(tailored(torch.tensor([[0.0], [2.0], [4.0]]), 2))
    assert sent("own") == pytest.approx(own, abs=1e-4)
    assert sent("all") == pytest.approx(others, abs=1e-4)
    assert own != pytest.approx(others)


OWN = torch.tensor([[1.0], [3.0]])
OTHERS = torch.tensor([[0.0], [2.0], [4.0]])


@pytest.mark.parametrize(
    ("fields", "forged"),
    [
        # Five sites, two attackers: one of three honest ones has to be won over.
        ({"name": "alie"}, lambda known: alie(known, alie_strength(5, 2))),
        ({"name": "ipm", "eps": 3.0}, lambda known: -3 * known.mean(dim=0)),
        ({"name": "min-max"}, min_max),
        ({"name": "min-max", "perturbation": "sign"}, lambda known: min_max(known, "sign")),
        ({"name": "min-sum", "perturbation": "unit"}, lambda known: min_sum(known, "unit")),
        ({"name": "tailored", "trim": 1}, lambda known: tailored(known, 2, 1)),
        ({"name": "tailored", "against": "krum"}, lambda known: tailored_krum(known, 2)),
        ({"name": "fang", "against": "krum"}, lambda known: directed_krum(known, 2)),
    ],
)
@pytest.mark.parametrize("knowledge", ["own", "all"])
def test_attackers_send_one_update_made_of_those_they_know(
    fields: dict[str, Any], forged: Any, knowledge: str
) -> None:
    found = numbers(answers(hostile(spec(knowledge=knowledge, **fields))))
    # The toys' updates are four equal numbers.
    known = (OWN if knowledge == "own" else OTHERS).expand(-1, 4)
    wanted = float(forged(known)[0])
    assert [found[site] for site in ("ada", "cleo", "eve")] == [0, 2, 4]
    assert found["ben"] == found["dan"] == pytest.approx(wanted, abs=1e-4)


def test_alie_counts_the_sites_that_were_asked() -> None:
    for asked in (NAMES, ("ben", "dan", "eve")):
        engine = hostile(spec("alie", knowledge="all"))
        engine.send([Request(name, "work", "t", 0, {"weights": SENT}) for name in asked])
        found = {}
        while (reply := engine.recv()) is not None:
            found[reply.site] = reply
        honest = OTHERS if len(asked) == 5 else OTHERS[2:]
        wanted = float(alie(honest, alie_strength(len(asked), 2)))
        assert numbers(found)["ben"] == pytest.approx(wanted, abs=1e-5)
    everyone = hostile(spec("alie", sites=NAMES))
    assert numbers(answers(everyone))["ada"] == 2


def test_fang_sends_extremes_of_its_own_to_each() -> None:
    replies = answers(hostile(spec("fang", knowledge="all")))
    moved = {site: reply.value["weights"]["w"] - 10 for site, reply in replies.items()}
    # The honest ones move by 0, 2 and 4: below 0, stretched, is 0.
    assert moved["ben"].unique().tolist() == moved["dan"].unique().tolist() == [0]
    replies = answers(hostile(spec("fang")))
    moved = {site: replies[site].value["weights"]["w"] - 10 for site in LIARS}
    for value in moved.values():
        off = (2 - value) / 2**0.5
        assert float(off.min()) >= 3 - 1e-5
        assert float(off.max()) <= 4 + 1e-5
        assert len(value.unique()) > 1
    assert not torch.equal(moved["ben"], moved["dan"])


def test_a_free_rider_sends_what_it_got_or_noise_around_it() -> None:
    assert numbers(answers(hostile(spec("free-rider")))) == {
        "ada": 0,
        "ben": 0,
        "cleo": 2,
        "dan": 0,
        "eve": 4,
    }
    for std in (None, 0.5):
        replies = answers(hostile(spec("free-rider", update="noise", std=std)))
        values = torch.stack([replies[site].value["weights"]["w"] - 10 for site in LIARS])
        width = 1e-3 if std is None else std
        assert width / 8 < float(values.abs().max()) <= width * 1.01
        assert len(values.unique()) == 8


def ridden(engine: Hostile, round: int, start: float) -> float:
    sent = {"w": torch.full((2, 2), start), "n": torch.tensor(3)}
    engine.send([Request("ben", "work", f"t{round}", round, {"weights": sent})])
    reply = engine.recv()
    assert reply is not None
    assert reply.value is not None
    return float(reply.value["weights"]["w"][0, 0]) - start


def test_a_free_rider_repeats_the_hub_s_own_last_step(tmp_path: Path) -> None:
    attack = spec("free-rider", update="last")
    engine = hostile(attack, folder=tmp_path)
    assert [ridden(engine, 0, 1.0), ridden(engine, 1, 3.0)] == [0, 2]
    # Two rounds without being asked.
    assert ridden(engine, 3, 10.0) == 3.5
    # A run that is taken up asks again for the last round, and for the one before.
    again = hostile(attack, folder=tmp_path)
    assert [ridden(again, 3, 10.0), ridden(again, 1, 3.0)] == [3.5, 2]
    assert ridden(hostile(attack), 3, 10.0) == 0


class Pictured(Method):
    """Sites send rows of the modality that they hold, and which rows they are."""

    @at_site(sends={"image": Kind.REPRESENTATIONS, "text": Kind.LOGITS}, optional=("image", "text"))
    def work(self, site: Site) -> Tree:
        key = "image" if site.name < "c" else "text"
        rng = torch.Generator().manual_seed(NAMES.index(site.name))
        rows = torch.randn((7, 3 if key == "image" else 4), generator=rng)
        bias = torch.ones(3)
        return {key: {"rows": rows, "ids": torch.arange(7).view(7, 1), "bias": bias}, "samples": 6}


def rows_of(engine: Any) -> dict[str, dict[str, torch.Tensor]]:
    engine.send([Request(name, "work", "t", 0) for name in NAMES])
    found: dict[str, dict[str, torch.Tensor]] = {}
    while (reply := engine.recv()) is not None:
        (key,) = set(reply.value) - {"samples"}
        found[reply.site] = reply.value[key]
    return found


@pytest.mark.parametrize(
    "name", ["permuted-rows", "swapped-representations", "random-representations"]
)
def test_rows_of_different_modalities_are_poisoned(name: str) -> None:
    before = rows_of(Serial(specs(), Pictured(), seed=0))
    found = rows_of(hostile(spec(name), Pictured()))
    orders = []
    for site in NAMES:
        old, new = before[site]["rows"], found[site]["rows"]
        assert torch.equal(before[site]["ids"], found[site]["ids"])
        assert torch.equal(before[site]["bias"], found[site]["bias"])
        if site not in LIARS:
            assert torch.equal(old, new)
        elif name == "random-representations":
            torch.testing.assert_close(old.norm(dim=1), new.norm(dim=1))
            assert not bool((old == new).any())
        else:
            matches = (new.unsqueeze(1) == old.unsqueeze(0)).all(dim=2)
            assert bool((matches.sum(dim=1) == 1).all())
            orders.append(matches.int().argmax(dim=1).tolist())
    if name == "permuted-rows":
        # ben sends images and dan texts, but rows go where the colluders' permutation says.
        assert orders[0] == orders[1]
        assert sorted(orders[0]) == list(range(7)) != orders[0]
    if name == "swapped-representations":
        for site, order in zip(LIARS, orders, strict=True):
            distance = torch.cdist(before[site]["rows"], before[site]["rows"])
            assert order == distance.argmax(dim=1).tolist()


def test_an_attack_on_rows_is_refused_where_none_are_sent() -> None:
    with pytest.raises(ConfigError, match="changes logits or representations, and Sending sends"):
        hostile(spec("permuted-rows"))


def test_attacks_on_data_leave_replies_alone_but_for_their_boost() -> None:
    honest = {"ada": 0, "ben": 1, "cleo": 2, "dan": 3, "eve": 4}
    for name in ("label-flip", "backdoor"):
        assert numbers(answers(hostile(spec(name)))) == honest
        found = numbers(answers(hostile(spec(name, boost=2.5))))
        assert found == {**honest, "ben": 2.5, "dan": 7.5}
    # They need nothing that a reply holds, unless they boost it.
    hostile(spec("label-flip"), Pictured())
    with pytest.raises(ConfigError, match="changes gradients or weights"):
        hostile(spec("label-flip", boost=2.0), Pictured())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "ipm", "factor": 2.0}, "factor is an option of scaled, sign-flip, not of ipm"),
        ({"name": "scaled", "knowledge": "all"}, "knowledge is an option of alie"),
        ({"name": "noise", "boost": 2.0}, "boost is an option of label-flip, backdoor"),
        ({"name": "label-flip", "source": 1, "target": 1}, "write another target"),
        ({"name": "backdoor", "minority": True}, "leave it out"),
        ({"name": "ipm", "eps": 0.0}, "greater than 0"),
    ],
)
def test_options_that_do_not_belong_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        AttackSpec.model_validate({"share": 0.2, **fields})


def test_a_spec_reads_back_what_it_writes() -> None:
    for name in ("backdoor", "tailored", "permuted-rows"):
        plain = spec(name).model_dump(mode="json")
        assert AttackSpec.model_validate(plain) == spec(name)


def test_a_minority_attacks_where_that_is_wanted() -> None:
    attackers = ("ada", "ben", "cleo", "dan")
    found = numbers(answers(hostile(spec("scaled", sites=attackers))))
    assert sum(value < 0 for value in found.values()) == 4
    found = numbers(answers(hostile(spec("scaled", sites=attackers, minority=True))))
    assert sum(value < 0 for value in found.values()) == 2


@pytest.mark.parametrize("middleware", [(), (Codec({Kind.WEIGHTS: "int8"}),)])
def test_bytes_and_codecs_are_those_of_the_new_reply(middleware: Sequence[Middleware]) -> None:
    packed: Any = SENT
    for codec in middleware:
        packed = codec.pack({"weights": SENT}, {"weights": Kind.WEIGHTS})["weights"]
    for reply in answers(hostile(spec("scaled"), middleware=middleware), weights=packed).values():
        assert reply.up == len(wire.encode(reply.value))
        value = reply.value
        for codec in middleware:
            value = codec.unpack(value)
        expected = -10.0 if reply.site in LIARS else 10.0 + NAMES.index(reply.site)
        torch.testing.assert_close(value["weights"]["w"], torch.full((2, 2), expected))


class Partly:
    """Answers of some sites fail, or do not come."""

    def __init__(self, engine: Serial, failing: Sequence[str] = (), silent: Sequence[str] = ()):
        self.engine, self.failing, self.silent = engine, failing, silent

    def sites(self) -> Mapping[str, Traits]:
        return self.engine.sites()

    def send(self, requests: Sequence[Request]) -> None:
        self.engine.send([request for request in requests if request.site not in self.silent])

    def recv(self, timeout: float | None = None) -> Reply | None:
        reply = self.engine.recv(timeout)
        if reply is not None and reply.site in self.failing:
            return Reply(reply.site, reply.tag, error="down")
        return reply

    def close(self) -> None:
        self.engine.close()


@pytest.mark.parametrize(("failing", "silent"), [(["ben"], []), ([], ["ben"])])
def test_attackers_make_do_with_those_that_answer(failing: list[str], silent: list[str]) -> None:
    method = Sending()
    engine = Partly(Serial(specs(), method, seed=0), failing, silent)
    attack = Hostile(engine, spec("scaled"), method, seed=0)
    attack.send([Request(name, "work", "t", 0, {"weights": SENT}) for name in NAMES])
    found = {}
    while (reply := attack.recv(5.0)) is not None:
        found[reply.site] = reply
    if failing:
        assert found.pop("ben").error == "down"
    assert numbers(found) == {"ada": 0, "cleo": 2, "dan": -30, "eve": 4}


def test_two_questions_at_a_time_are_kept_apart() -> None:
    engine = hostile(spec("scaled"))
    first = [Request(name, "work", "a", 0, {"weights": SENT}) for name in ("ada", "ben")]
    engine.send([*first, Request("dan", "work", "b", 0, {"weights": SENT})])
    found = {}
    while (reply := engine.recv()) is not None:
        found[reply.site] = reply
    assert numbers(found) == {"ada": 0, "ben": -10, "dan": -30}


def test_closing_drops_what_is_held_back() -> None:
    engine = hostile(spec("scaled"))
    engine.send([Request("ben", "work", "t", 0, {"weights": SENT})])
    engine.close()
    assert engine.recv() is None


def test_events_say_who_attacked_and_when() -> None:
    events = Events()
    answers(hostile(spec("scaled"), events=events))
    (event,) = events.memory
    assert event.pop("time")
    assert event == {
        "event": "attacked",
        "attack": "scaled",
        "round": 4,
        "op": "work",
        "tag": "t",
        "sites": list(LIARS),
    }


@pytest.mark.usefixtures("rng_untouched")
def test_a_whole_run_under_attack_repeats_itself() -> None:
    def ended(attack: AttackSpec | None) -> str:
        method = Averaging()
        fed = federation(method)
        if attack is not None:
            fed.engine = Hostile(fed.engine, attack, method, seed=0)
        fed.start()
        return str(wire.digest(fed.state))

    assert ended(spec("noise")) == ended(spec("noise"))
    assert len({ended(spec("noise")), ended(spec("scaled")), ended(None)}) == 3


def test_sizes_that_differ_cannot_be_put_together() -> None:
    class Uneven(Method):
        @at_site(sends={"w": Kind.GRADIENTS})
        def work(self, site: Site) -> Tree:
            return {"w": torch.ones(NAMES.index(site.name) + 1)}

    engine = hostile(spec("scaled"), Uneven())
    engine.send([Request(name, "work", "t", 0) for name in LIARS])
    with pytest.raises(ConfigError, match="sizes of it differ"):
        engine.recv()
    alone = hostile(spec("sign-flip", factor=2.0), Uneven())
    alone.send([Request(name, "work", "t", 0) for name in LIARS])
    sizes = [reply.value["w"].tolist() for reply in (alone.recv(), alone.recv())]
    assert sizes == [[-2.0] * 2, [-2.0] * 4]
