"""The hub's half: who may drop out when, who is named, and what garbage does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protect.room import PHASES, Room, names, plain, vectors

from motet.core import ConfigError, SiteError, Tree, WireError
from motet.protect.secure_hub import SecureHub
from motet.protect.secure_site import KEPT
from motet.protect.secure_sum import SecureSumSpec
from motet.protect.secure_words import public_key, to_tensor

examples = settings(max_examples=25, deadline=None, derandomize=True, database=None)
SPEC = SecureSumSpec(dropouts=3)
COUNT = 8


def close(room: Room, found: torch.Tensor, given: Any, gone: set[str]) -> bool:
    alive = set(room.names) - gone
    off = float((found - plain(given, alive)).abs().max())
    return off <= len(alive) * room.hub.spec.step / 2 * 1.000001


def chosen(count: int) -> list[str]:
    """First, last and middle ones first."""
    return [names(COUNT)[i] for i in (0, COUNT - 1, 3, 4)[:count]]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("dropped", range(4))
@pytest.mark.parametrize("neighbours", [None, 6])
def test_announced_dropouts_do_no_harm(phase: str, dropped: int, neighbours: int | None) -> None:
    spec = SecureSumSpec(dropouts=3, neighbours=neighbours)
    room = Room(spec, COUNT, drops={phase: chosen(dropped)})
    given = vectors(room.names)
    found = room.total("1", given)
    # Who drops out once its vector is there is in the sum.
    assert close(room, found, given, room.gone("vectors"))
    assert set(room.hub.failed) == set(chosen(dropped))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("neighbours", [None, 6])
def test_one_more_is_refused_and_named(phase: str, neighbours: int | None) -> None:
    spec = SecureSumSpec(dropouts=3, neighbours=neighbours)
    room = Room(spec, COUNT, drops={phase: chosen(4)})
    with pytest.raises(SiteError, match=f"secure sum, {phase}: 4 of 8 .* 5 are needed") as caught:
        room.total("1", vectors(room.names))
    told = str(caught.value)
    assert [site for site in room.names if f"{site} (" in told] == sorted(chosen(4))
    assert "nothing was opened" in told
    assert set(room.hub.failed) == set(chosen(4))
    # Over is over: later vectors cannot open it either.
    with pytest.raises((SiteError, WireError)):
        room.hub.open("1", {})


@examples
@given(st.permutations(names(COUNT)), st.lists(st.sampled_from(PHASES), max_size=3))
def test_dropouts_may_come_in_all_phases(order: list[str], phases: list[str]) -> None:
    drops: dict[str, list[str]] = {}
    for site, phase in zip(order, phases, strict=False):
        drops.setdefault(phase, []).append(site)
    room = Room(SPEC, COUNT, drops=drops)
    given = vectors(room.names)
    assert close(room, room.total("1", given), given, room.gone("vectors"))


@examples
@given(st.sets(st.sampled_from(names(12)), max_size=3), st.sampled_from(PHASES))
def test_a_sparse_ring_stands_what_it_announces(gone: set[str], phase: str) -> None:
    spec = SecureSumSpec(dropouts=0.3, neighbours=6)
    room = Room(spec, 12, drops={phase: gone})
    given = vectors(room.names)
    near = spec.holders(12) - spec.threshold(spec.holders(12))
    told = ""
    try:
        found = room.total("1", given)
    except SiteError as error:
        told = str(error)
    if not told:
        # Sites with too few neighbours left have sent no vector.
        assert close(room, found, given, room.gone("vectors") | room.errors.keys())
    if told or room.errors:
        # Only where more of one neighbourhood have gone than its share.
        assert len(gone) > near
        assert any(site in f"{told} {room.errors}" for site in gone)


def test_several_sums_may_be_under_way() -> None:
    room = Room(SPEC, COUNT)
    given = {tag: vectors(room.names, seed=int(tag)) for tag in ("1", "2")}
    masked = {tag: room.masked(tag, given[tag]) for tag in ("1", "2")}
    for tag in ("2", "1"):
        assert close(room, room.hub.open(tag, masked[tag]), given[tag], set())


def test_vectors_of_another_sum_do_not_pass_for_this_one() -> None:
    room = Room(SPEC, COUNT)
    given = vectors(room.names)
    earlier, now = room.masked("1", given), room.masked("2", given)
    found = room.hub.open("2", {**now, "s00": earlier["s00"]})
    # The hub cannot see it, and what it gets is noise, not the other vector.
    assert float(found.abs().median()) > 100


def test_an_empty_vector_has_an_empty_sum() -> None:
    room = Room(SPEC, COUNT)
    assert room.total("1", {site: torch.zeros(0) for site in room.names}).shape == (0,)


def test_sums_that_were_never_opened_are_forgotten() -> None:
    room = Room(SPEC, 7)
    for number in range(KEPT + 1):
        room.hub.prepare(str(number), room.names)
    assert len(room.hub._sums) == KEPT
    with pytest.raises(SiteError, match="no secure sum '0' was prepared"):
        room.hub.open("0", {})


def test_a_number_of_sites_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="dropouts=3 leaves 3 of 6"):
        Room(SPEC, 6).hub.prepare("1", names(6))


def test_a_ring_that_nobody_can_foretell() -> None:
    spec = SecureSumSpec(dropouts=0, neighbours=2)
    rings = set()
    for _ in range(8):
        room = Room(spec, 9)
        room.hub = SecureHub(spec, room.ask)
        room.hub.prepare("1", room.names)
        rings.add(room.hub._sums["1"].near["s00"])
    assert len(rings) > 1


WORDS = torch.zeros(50, dtype=torch.int32)


@pytest.mark.parametrize(
    "masked",
    [
        None,
        [],
        {},
        {"words": None},
        {"words": WORDS.float()},
        {"words": WORDS.long()},
        {"words": WORDS.reshape(5, 10)},
        {"words": WORDS[0]},
        {"words": WORDS.to_sparse()},
        {"words": WORDS.to("meta")},
        {"words": WORDS, "more": 1},
        {"words": WORDS[:49]},
        {"words": torch.cat([WORDS, WORDS])},
    ],
)
def test_a_masked_vector_that_is_none(masked: Any) -> None:
    room = Room(SPEC, COUNT)
    given = vectors(room.names)
    sent = room.masked("1", given)
    with pytest.raises(WireError, match="site s05"):
        room.hub.open("1", {**sent, "s05": masked})
    with pytest.raises(WireError, match="site s05"):
        room.hub.check("1", "s05", masked, 50)
    # Left out, its sender has dropped out, and the others' sum is there.
    del sent["s05"]
    assert close(room, room.hub.open("1", sent, 50), given, {"s05"})
    assert room.hub.failed == {"s05": "no masked vector"}


def test_all_vectors_of_a_wrong_size_are_refused() -> None:
    room = Room(SPEC, COUNT)
    sent = room.masked("1", vectors(room.names))
    with pytest.raises(WireError, match="site s00.* has 50 numbers, not 51"):
        room.hub.open("1", sent, 51)


def test_a_stranger_has_no_vector() -> None:
    room = Room(SPEC, COUNT, drops={"shares": ["s01"]})
    sent = room.masked("1", vectors(room.names))
    for stranger in ("eve", "s01"):
        with pytest.raises(WireError, match=f"site {stranger}"):
            room.hub.open("1", {**sent, stranger: sent["s00"]})


def flipped(octets: torch.Tensor, place: int = -1) -> torch.Tensor:
    found = octets.clone()
    found[place] ^= 1
    return found


@pytest.mark.parametrize("half", ["seeds", "pairs"])
@pytest.mark.parametrize("liars", [1, 2, 3])
def test_a_wrong_share_is_noticed_and_its_holder_named(half: str, liars: int) -> None:
    wrong = names(COUNT)[1 : 1 + liars]
    owner = "s06" if half == "seeds" else "s07"

    def change(op: str, site: str, reply: Tree) -> Tree:
        if op != "unmask" or site not in wrong:
            return reply
        return {**reply, half: {**reply[half], owner: flipped(reply[half][owner])}}

    room = Room(SPEC, COUNT, drops={"vectors": ["s07"]}, change=change)
    given = vectors(room.names)
    if liars <= 2:
        assert close(room, room.total("1", given), given, {"s07"})
    else:
        with pytest.raises(SiteError, match="secure sum, unmask: 4 of 8 sites are left"):
            room.total("1", given)
    assert set(room.hub.failed) == {"s07", *wrong}
    for site in wrong:
        assert f"share of {owner} is not the one that {owner} gave it" in room.hub.failed[site]


def test_a_share_of_the_other_secret_or_site_is_noticed() -> None:
    def change(op: str, site: str, reply: Tree) -> Tree:
        if op != "unmask" or site not in ("s01", "s02"):
            return reply
        seeds, pairs = dict(reply["seeds"]), dict(reply["pairs"])
        if site == "s01":
            seeds["s03"], seeds["s04"] = seeds["s04"], seeds["s03"]
        else:
            seeds["s03"], pairs["s07"] = pairs["s07"], seeds["s03"]
        return {"seeds": seeds, "pairs": pairs}

    room = Room(SPEC, COUNT, drops={"vectors": ["s07"]}, change=change)
    given = vectors(room.names)
    assert close(room, room.total("1", given), given, {"s07"})
    assert set(room.hub.failed) == {"s01", "s02", "s07"}


def test_a_key_that_was_not_shared_is_noticed() -> None:
    def change(op: str, site: str, reply: Tree) -> Tree:
        if op == "keys" and site == "s03":
            return {**reply, "pair": to_tensor(public_key(b"another key of 32 bytes, " + b"x" * 7))}
        return reply

    room = Room(SPEC, COUNT, drops={"vectors": ["s03"]}, change=change)
    with pytest.raises(SiteError, match="site s03: its shares do not restore the key"):
        room.total("1", vectors(room.names))


def test_boxes_changed_on_the_way_stop_their_receivers_who_name_the_sender() -> None:
    def change(op: str, site: str, reply: Tree) -> Tree:
        if op != "shares" or site != "s03":
            return reply
        return {**reply, "boxes": {**reply["boxes"], "s05": flipped(reply["boxes"]["s05"])}}

    room = Room(SPEC, COUNT, change=change)
    with pytest.raises(WireError, match="site s05.* shares that s03 sent"):
        room.masked("1", vectors(room.names))


leaf = st.one_of(
    st.none(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from(names(COUNT)),
    st.sampled_from([torch.uint8, torch.int32, torch.float32]).flatmap(
        lambda dtype: st.sampled_from([0, 32, 33, 50, 64, 82]).map(
            lambda size: torch.full((size,), 7, dtype=dtype)
        )
    ),
)
keyed = st.sampled_from(["box", "pair", "boxes", "digests", "seeds", "pairs", *names(COUNT)])
garbage = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keyed, inner, max_size=4)
)


def spoiled(reply: Any, path: list[int], by: Any) -> Any:
    """The reply with garbage in place of the part that the path leads to."""
    if not path or not isinstance(reply, dict) or not reply:
        return by
    key = sorted(reply)[path[0] % len(reply)]
    return {**reply, key: spoiled(reply[key], path[1:], by)}


@settings(max_examples=70, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(["keys", "shares", "unmask"]),
    st.lists(st.integers(0, 9), max_size=3),
    garbage,
    st.booleans(),
)
def test_garbage_never_crashes_the_hub(op: str, path: list[int], by: Any, drop: bool) -> None:
    def change(asked: str, site: str, reply: Tree) -> Tree:
        return spoiled(reply, path, by) if asked == op and site == "s02" else reply

    room = Room(SPEC, 7, drops={"vectors": ["s06"]} if drop else {}, change=change)
    given = vectors(room.names)
    told = ""
    try:
        found = room.total("1", given)
    except WireError as error:
        # Bytes of the right size that are no keys or boxes: sites notice, and name it.
        told = str(error)
    if told:
        assert "s02" in told
        return
    lost = ({"s06"} if drop else set()) | ({"s02"} if op != "unmask" else set())
    assert "s02" in room.hub.failed
    assert close(room, found, given, lost)


def test_errors_of_sites_are_not_lost_in_numbers() -> None:
    room = Room(SPEC, COUNT, drops={"keys": ["s00"], "shares": ["s01"], "vectors": ["s02", "s03"]})
    with pytest.raises(SiteError) as caught:
        room.total("1", vectors(room.names))
    assert str(caught.value) == (
        "secure sum, vectors: 4 of 8 sites are left, 5 are needed, and nothing was opened; "
        "missing: s00 (no answer to keys), s01 (no answer to shares), "
        "s02 (no masked vector), s03 (no masked vector)"
    )


def test_a_lossless_round_for_many() -> None:
    room = Room(SecureSumSpec(dropouts=0.3, neighbours=20), 60, drops={"vectors": ["s10", "s40"]})
    given = vectors(room.names, size=10)
    found = room.total("1", given)
    assert math.isfinite(float(found.sum()))
    assert close(room, found, given, {"s10", "s40"})
