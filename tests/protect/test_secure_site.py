"""A site's half: what it refuses, what it tells no one, and whom it names for damage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protect.room import Room, names, rng_of, vectors

from motet.core import ConfigError, SiteError, Tree, WireError
from motet.protect.secure_site import KEPT, SecureSite
from motet.protect.secure_sum import SecureSumSpec

examples = settings(max_examples=30, deadline=None, derandomize=True, database=None)
SPEC = SecureSumSpec(dropouts=2)
VECTOR = torch.ones(5)


def ready(tag: str = "1", room: Room | None = None) -> tuple[Room, dict[str, Tree]]:
    """Five sites that have each other's boxes."""
    room = room or Room(SPEC, 5)
    return room, room.hub.prepare(tag, room.names)


def changed(box: torch.Tensor) -> torch.Tensor:
    found = box.clone()
    found[17] ^= 1
    return found


def mask(room: Room, site: str, boxes: Any, tag: str = "1") -> Tree:
    return room.sites[site].mask(VECTOR, 1.0, tag, boxes)


@pytest.mark.parametrize("sender", ["s00", "s04"])
def test_a_changed_box_is_noticed_and_its_sender_named(sender: str) -> None:
    room, each = ready()
    boxes = {**each["s02"]["boxes"], sender: changed(each["s02"]["boxes"][sender])}
    with pytest.raises(WireError, match=f"site s02.* shares that {sender} sent.* changed"):
        mask(room, "s02", boxes)
    # Nothing has left, so that the right boxes still do.
    mask(room, "s02", each["s02"]["boxes"])


def test_a_box_of_another_question_is_noticed() -> None:
    room, earlier = ready("1")
    _, now = ready("2", room)
    replayed = {**now["s02"]["boxes"], "s03": earlier["s02"]["boxes"]["s03"]}
    with pytest.raises(WireError, match="site s02.* that s03 sent.* another question"):
        mask(room, "s02", replayed, "2")


def test_a_box_of_the_same_question_asked_before_is_noticed() -> None:
    room, earlier = ready("1")
    _, now = ready("1", room)
    replayed = {**now["s02"]["boxes"], "s03": earlier["s02"]["boxes"]["s03"]}
    with pytest.raises(WireError, match="that s03 sent"):
        mask(room, "s02", replayed)


def test_a_box_from_or_for_somebody_else_is_noticed() -> None:
    room, each = ready()
    right = each["s02"]["boxes"]
    with pytest.raises(WireError, match="that s03 sent"):
        mask(room, "s02", {**right, "s03": right["s04"]})
    with pytest.raises(WireError, match="that s03 sent"):
        mask(room, "s02", {**right, "s03": each["s01"]["boxes"]["s03"]})
    # What it sent itself, sent back.
    with pytest.raises(WireError, match="that s03 sent"):
        mask(room, "s02", {**right, "s03": each["s03"]["boxes"]["s02"]})


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ("none", "shares from strangers"),
        ({"eve": torch.zeros(82, dtype=torch.uint8)}, "strangers"),
        ({"s02": torch.zeros(82, dtype=torch.uint8)}, "strangers"),
        ({"s00": torch.zeros(81, dtype=torch.uint8)}, "that s00 sent is not 82 bytes"),
        ({"s00": torch.zeros(82)}, "that s00 sent is not 82 bytes"),
        ({"s00": torch.zeros(2, 41, dtype=torch.uint8)}, "not 82 bytes"),
        ({"s00": None}, "not 82 bytes"),
    ],
)
def test_boxes_that_are_none(boxes: Any, message: str) -> None:
    room, _ = ready()
    with pytest.raises(WireError, match=f"site s02.*{message}"):
        mask(room, "s02", boxes)


def test_too_few_boxes_are_refused() -> None:
    room, each = ready()
    boxes = dict(list(each["s02"]["boxes"].items())[:1])
    with pytest.raises(
        SiteError, match="2 sites are left for '1', 3 are needed; missing: s0., s0., s0."
    ):
        mask(room, "s02", boxes)


def test_a_vector_that_cannot_be_summed_names_the_site() -> None:
    room, each = ready()
    with pytest.raises(WireError, match="site s02.*not finite"):
        room.sites["s02"].mask(VECTOR * torch.nan, 1.0, "1", each["s02"]["boxes"])


def test_no_two_vectors_get_the_same_masks() -> None:
    room, each = ready()
    mask(room, "s02", each["s02"]["boxes"])
    with pytest.raises(SiteError, match="already has a masked vector"):
        mask(room, "s02", each["s02"]["boxes"])


def test_steps_have_an_order() -> None:
    room = Room(SPEC, 5)
    site = room.sites["s00"]
    with pytest.raises(SiteError, match="no sum '1' has begun here"):
        site.shares("1", {}, 5)
    site.keys("1")
    with pytest.raises(SiteError, match="has no shares"):
        site.mask(VECTOR, 1.0, "1", {})
    keys = {name: room.sites[name].keys("1") for name in room.names[1:]}
    site.shares("1", keys, 5)
    with pytest.raises(SiteError, match="have left already"):
        site.shares("1", keys, 5)
    with pytest.raises(SiteError, match="has no vector in '1'"):
        site.unmask("1", ["s00", "s01", "s02"], [])
    with pytest.raises(SiteError, match="'open' is no question"):
        site.answer("open", {"tag": "1"})


def test_stochastic_rounding_needs_a_generator() -> None:
    room, each = ready(room=Room(SecureSumSpec(dropouts=2, rounding="stochastic"), 5))
    with pytest.raises(ConfigError, match="rounding"):
        mask(room, "s02", each["s02"]["boxes"])
    room.sites["s02"].mask(VECTOR, 1.0, "1", each["s02"]["boxes"], rng_of("s02"))


def keys_of(room: Room) -> dict[str, Any]:
    return {name: room.sites[name].keys("1") for name in room.names if name != "s00"}


BAD_KEYS: list[tuple[Callable[[dict[str, Any]], Any], Any, str]] = [
    (lambda keys: None, 5, "keys without names"),
    (lambda keys: {**keys, 3: keys["s01"]}, 5, "keys without names"),
    (lambda keys: {**keys, "s00": keys["s01"]}, 5, "its own keys"),
    (lambda keys: {**keys, "s01": None}, 5, "keys of s01"),
    (lambda keys: {**keys, "s01": {"box": keys["s01"]["box"]}}, 5, "keys of s01"),
    (lambda keys: {**keys, "s01": dict.fromkeys(("box", "pair"), "k")}, 5, "keys of s01"),
    (
        lambda keys: {**keys, "s01": {**keys["s01"], "box": torch.zeros(32, dtype=torch.uint8)}},
        5,
        "keys of s01",
    ),
    (lambda keys: keys, "5", "out of '5' sites"),
    (lambda keys: keys, True, "out of True sites"),
    (lambda keys: keys, 4, "4 neighbours' keys out of 4"),
    (lambda keys: keys, 2**40, "4 neighbours' keys out of"),
    (lambda keys: keys, 5000, "bits=22 for 5000 sites"),
]


@pytest.mark.parametrize(("change", "of", "message"), BAD_KEYS)
def test_keys_that_are_none(change: Callable[[dict[str, Any]], Any], of: Any, message: str) -> None:
    room = Room(SPEC, 5)
    keys = keys_of(room)
    room.sites["s00"].keys("1")
    with pytest.raises(WireError, match=f"site s00.*{message}"):
        room.sites["s00"].shares("1", change(keys), of)


def test_shares_for_too_few_are_refused() -> None:
    room = Room(SPEC, 5)
    keys = keys_of(room)
    room.sites["s00"].keys("1")
    with pytest.raises(SiteError, match="2 sites for its shares, 3 are needed"):
        room.sites["s00"].shares("1", {"s01": keys["s01"]}, 5)


def opened() -> Room:
    """Five sites that have sent their vectors."""
    room, _ = ready()
    room.masked("1", vectors(room.names, 5))
    return room


@pytest.mark.parametrize(
    ("alive", "dropped", "message"),
    [
        (["s00", "s01", "s02", "s03"], ["s03"], "s03 is alive and dropped out at once"),
        (["s01", "s02", "s03"], ["s00"], "it is not among the survivors"),
        (["s01", "s02", "s03"], [], "it is not among the survivors"),
        (["s00", "s01"], ["s02", "s03", "s04"], "2 sites are left in '1', 3 are needed"),
        (["s00", "s00", "s00", "s01"], [], "2 sites are left"),
    ],
)
def test_a_site_refuses_to_help_open_what_it_must_not(
    alive: list[str], dropped: list[str], message: str
) -> None:
    with pytest.raises(SiteError, match=message):
        opened().sites["s00"].unmask("1", alive, dropped)


@pytest.mark.parametrize(
    ("alive", "dropped"),
    [(None, []), (["s00", "s01", "s02"], "s03"), ([1, 2, 3], []), (["s00", "s01", "eve"], [])],
)
def test_lists_of_survivors_that_are_none(alive: Any, dropped: Any) -> None:
    with pytest.raises(WireError, match="site s00"):
        opened().sites["s00"].unmask("1", alive, dropped)


def test_a_sum_is_opened_for_one_set_of_survivors() -> None:
    site = opened().sites["s00"]
    first = site.unmask("1", ["s00", "s01", "s02", "s03"], ["s04"])
    assert list(first["seeds"]) == ["s00", "s01", "s02", "s03"]
    assert list(first["pairs"]) == ["s04"]
    again = site.unmask("1", ["s03", "s02", "s01", "s00"], ["s04"])
    assert all(torch.equal(again["seeds"][name], first["seeds"][name]) for name in first["seeds"])
    with pytest.raises(SiteError, match="opened with other survivors"):
        site.unmask("1", ["s00", "s01", "s02", "s04"], ["s03"])
    with pytest.raises(SiteError, match="opened with other survivors"):
        site.unmask("1", ["s00", "s01", "s02"], ["s04"])


some = st.lists(st.sampled_from(names(5)), max_size=6)


@examples
@given(st.lists(st.tuples(some, some), min_size=1, max_size=12))
def test_nobody_ever_gets_both_shares_of_a_site(asked: list[tuple[list[str], list[str]]]) -> None:
    site = opened().sites["s00"]
    seeds, pairs = set(), set()
    # Whatever was asked before, one honest question is answered, or it was already.
    for alive, dropped in [*asked, (names(3), names(5)[3:])]:
        try:
            reply = site.unmask("1", alive, dropped)
        except SiteError:
            continue
        seeds.update(reply["seeds"])
        pairs.update(reply["pairs"])
    assert len(seeds) >= 3
    assert not seeds & pairs


def test_a_question_begun_again_has_new_keys() -> None:
    # Otherwise it could be opened once with a site and once without.
    room, first = ready()
    before = mask(room, "s00", first["s00"]["boxes"])
    _, second = ready(room=room)
    after = mask(room, "s00", second["s00"]["boxes"])
    assert not torch.equal(before["words"], after["words"])
    assert float((before["words"] == after["words"]).double().mean()) < 0.5


def test_sums_that_were_never_opened_are_forgotten() -> None:
    site = SecureSite("s00", SPEC)
    for number in range(KEPT + 1):
        site.keys(str(number))
    with pytest.raises(SiteError, match="no sum '0' has begun"):
        site.shares("0", {}, 5)
    assert len(site._sums) == KEPT


leaf = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**40),
    st.floats(),
    st.sampled_from([*names(5), "1", "eve", ""]),
    st.sampled_from(
        [
            torch.zeros(size, dtype=dtype)
            for size in (0, 32, 82)
            for dtype in (torch.uint8, torch.int32)
        ]
    ),
)
keyed = st.sampled_from(["tag", "keys", "of", "alive", "dropped", "box", "pair", *names(3)])
garbage = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keyed, inner, max_size=4)
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(["keys", "shares", "unmask", "other"]),
    st.booleans(),
    st.dictionaries(keyed, garbage, max_size=4) | garbage,
)
def test_garbage_never_raises_anything_else(op: str, begun: bool, payload: Any) -> None:
    site = SecureSite("s00", SPEC, b"fuzz")
    if begun:
        site.keys("1")
        payload = {**payload, "tag": "1"} if isinstance(payload, dict) else payload
    told = "site s00"
    try:
        site.answer(op, payload)
    except (WireError, SiteError) as error:
        told = str(error)
    assert "site s00" in told
