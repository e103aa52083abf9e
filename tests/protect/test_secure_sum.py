"""The secure sum: exact to its step, blind to single vectors, alive with few drop-outs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protect.room import PHASES, Room, plain, rng_of, uniform, vectors

from motet.core import ConfigError, Kind, Tree
from motet.core.errors import SiteError, WireError
from motet.protect.secure_site import SecureSite
from motet.protect.secure_sum import SecureSumSpec, check_secure_sum

SPEC = SecureSumSpec(dropouts=2)
TAG = "0.0.1"
few = settings(max_examples=15, deadline=None, derandomize=True)


def total(room: Room, tag: str = TAG, size: int = 50) -> torch.Tensor:
    return room.total(tag, vectors(room.names, size))


@few
@given(
    st.integers(3, 9), st.integers(0, 40), st.floats(0.5, 16.0), st.integers(12, 24), st.booleans()
)
def test_it_is_the_plain_sum_to_half_a_step_a_site(
    count: int, size: int, clip: float, bits: int, near: bool
) -> None:
    neighbours = 2 * (count // 3) if near and count > 5 else None
    spec = SecureSumSpec(dropouts=0, clip=clip, bits=bits, neighbours=neighbours)
    room = Room(spec, count)
    found = room.total(TAG, vectors(room.names, size))
    cut = {site: v.clamp(-clip, clip) for site, v in vectors(room.names, size).items()}
    assert (
        float((found - plain(cut, room.names)).abs().max() if size else 0)
        <= count * spec.step / 2 + 1e-9
    )


def test_stochastic_rounding_is_within_a_step_a_site() -> None:
    spec = SecureSumSpec(dropouts=0, rounding="stochastic", bits=12)
    room = Room(spec, 4)
    gap = total(room) - plain(vectors(room.names), room.names)
    assert 0 < float(gap.abs().max()) <= 4 * spec.step


def test_weights_scale_what_is_summed() -> None:
    room = Room(SPEC, 6)
    found = room.hub.open(TAG, room.masked(TAG, vectors(room.names), 0.25))
    torch.testing.assert_close(
        found, plain(vectors(room.names), room.names) / 4, atol=6 * SPEC.step, rtol=0
    )


def test_keys_of_the_operating_system_give_the_same_sum() -> None:
    assert torch.equal(total(Room(SPEC, 5, secret=None)), total(Room(SPEC, 5)))


def words(room: Room, given_: dict[str, torch.Tensor], site: str = "s01") -> torch.Tensor:
    found: torch.Tensor = room.masked(TAG, given_)[site]["words"]
    return found


def test_a_single_message_looks_uniform_whatever_is_in_it() -> None:
    size = 40_000
    zeros = {site: torch.zeros(size) for site in Room(SPEC, 5).names}
    full = {site: torch.full((size,), 7.9) for site in zeros}
    for given_ in (zeros, full, vectors(zeros, size)):
        for secret in (b"room", b"other"):
            sent = words(Room(SPEC, 5, secret=secret), given_)
            assert uniform(sent.view(torch.uint8)), secret
    # Under the same masks they differ by the input alone; under others by everything.
    one, other = words(Room(SPEC, 5), zeros), words(Room(SPEC, 5), full)
    assert len((one - other).unique()) == 1
    fresh = words(Room(SPEC, 5, secret=b"other"), zeros)
    assert len((one - fresh).unique()) > size / 2


def test_the_messages_of_all_but_two_do_not_show_their_part() -> None:
    room = Room(SPEC, 5)
    sent = room.masked(TAG, {site: torch.zeros(20_000) for site in room.names})
    part = sum(sent[site]["words"].long() for site in room.names[:3]) % 2**32
    assert uniform(part.to(torch.uint32).view(torch.uint8))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("gone", [(), ("s01",), ("s01", "s04")])
def test_so_many_may_drop_out_at_any_phase(phase: str, gone: tuple[str, ...]) -> None:
    room = Room(SPEC, 7, {phase: gone})
    left = room.names if phase == "unmask" else [name for name in room.names if name not in gone]
    torch.testing.assert_close(
        total(room), plain(vectors(room.names), left), atol=7 * SPEC.step, rtol=0
    )


@pytest.mark.parametrize("phase", PHASES)
def test_one_more_is_refused_and_nothing_opened(phase: str) -> None:
    room = Room(SPEC, 7, {phase: ("s01", "s03", "s04")})
    with pytest.raises(SiteError, match=r"4 of 7 sites are left, 5 are needed.*s01.*s03.*s04"):
        total(room)


def test_drop_outs_at_different_phases_add_up() -> None:
    room = Room(SPEC, 7, {"shares": ("s00",), "vectors": ("s06",)})
    left = room.names[1:6]
    torch.testing.assert_close(
        total(room), plain(vectors(room.names), left), atol=7 * SPEC.step, rtol=0
    )
    with pytest.raises(SiteError, match="nothing was opened"):
        total(Room(SPEC, 7, {"keys": ("s02",), "shares": ("s00",), "vectors": ("s06",)}))


def flipped(value: torch.Tensor) -> torch.Tensor:
    made = value.clone()
    made.view(torch.uint8)[3] ^= 1
    return made


def test_a_tampered_box_is_noticed_by_whom_it_is_for() -> None:
    def change(op: str, site: str, reply: Tree) -> Tree:
        if op != "shares" or site != "s02":
            return reply
        return {**reply, "boxes": {**reply["boxes"], "s00": flipped(reply["boxes"]["s00"])}}

    room = Room(SPEC, 6, change=change)
    with pytest.raises(WireError, match="site s00.*s02"):
        total(room)


def test_a_tampered_share_is_noticed_and_its_sender_left_out() -> None:
    def change(op: str, site: str, reply: Tree) -> Tree:
        if op != "unmask" or site != "s02":
            return reply
        return {**reply, "seeds": {k: flipped(v) for k, v in reply["seeds"].items()}}

    room = Room(SPEC, 6, change=change)
    torch.testing.assert_close(
        total(room), plain(vectors(room.names), room.names), atol=6 * SPEC.step, rtol=0
    )
    assert "not the one" in room.hub.failed["s02"]


def test_shares_of_another_question_are_noticed() -> None:
    kept: dict[str, Tree] = {}

    def change(op: str, site: str, reply: Tree) -> Tree:
        if op == "shares" and site == "s02":
            return kept.setdefault("old", reply)
        return reply

    room = Room(SPEC, 6, change=change)
    total(room, "0.0.1")
    with pytest.raises(WireError, match="s02"):
        total(room, "0.0.2")


def test_a_site_never_gives_both_halves_nor_opens_twice() -> None:
    room = Room(SPEC, 6)
    room.masked(TAG, vectors(room.names))
    site, rest = room.sites["s00"], room.names
    with pytest.raises(SiteError, match="nobody gets both"):
        site.unmask(TAG, rest, ["s03"])
    site.unmask(TAG, rest[:5], ["s05"])
    with pytest.raises(SiteError, match="other survivors"):
        site.unmask(TAG, rest, [])
    # The same question again is answered again: a reply may have been lost.
    site.unmask(TAG, rest[:5], ["s05"])


def test_a_site_opens_for_enough_survivors_alone() -> None:
    room = Room(SPEC, 6)
    room.masked(TAG, vectors(room.names))
    with pytest.raises(SiteError, match="3 sites are left .* 4 are needed"):
        room.sites["s00"].unmask(TAG, room.names[:3], room.names[3:])
    with pytest.raises(SiteError, match="not among the survivors"):
        room.sites["s00"].unmask(TAG, room.names[1:], [])


@pytest.mark.parametrize("payload", [None, {}, {"tag": 3}, {"tag": TAG, "keys": 7}, {"tag": "new"}])
@pytest.mark.parametrize("op", ["keys", "shares", "unmask", "open sesame"])
def test_garbage_is_named_and_never_breaks_a_site(op: str, payload: Any) -> None:
    site = SecureSite("s00", SPEC)
    try:
        site.answer(op, payload)
    except (WireError, SiteError) as error:
        told = str(error)
    else:
        told = "site s00" if op == "keys" else ""
    assert "site s00" in told


JUNK: list[Any] = [None, {}, [], 3, "x", {"words": torch.ones(50)}, {"words": None}, torch.ones(2)]


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("op", ["keys", "shares", "unmask"])
def test_garbage_from_a_site_counts_as_dropping_out(op: str, junk: Any) -> None:
    room = Room(SPEC, 6, change=lambda o, s, r: junk if (o, s) == (op, "s02") else r)
    left = room.names if op == "unmask" else [name for name in room.names if name != "s02"]
    torch.testing.assert_close(
        total(room), plain(vectors(room.names), left), atol=6 * SPEC.step, rtol=0
    )
    assert "s02" in room.hub.failed


@pytest.mark.parametrize("junk", JUNK)
def test_a_vector_that_is_none_names_its_site(junk: Any) -> None:
    room = Room(SPEC, 6)
    sent = room.masked(TAG, vectors(room.names))
    with pytest.raises(WireError, match="site s02"):
        room.hub.open(TAG, {**sent, "s02": junk})


def test_a_vector_of_another_size_names_its_site() -> None:
    room = Room(SPEC, 6)
    sent = room.masked(TAG, {**vectors(room.names), "s02": torch.zeros(49)})
    with pytest.raises(WireError, match="site s02.* 49 numbers, not 50"):
        room.hub.open(TAG, sent)


@pytest.mark.parametrize(
    ("fields", "sites", "flags", "told"),
    [
        ({}, 5, {"robust": True}, "protect.robust has to compare"),
        ({}, 5, {"lossy": True}, "protect.compress would spoil"),
        ({}, 5, {"central": True}, "privacy.mode: local"),
        ({"bits": 30}, 5, {}, "write at most 29"),
        ({"dropouts": 3}, 5, {}, "two halves could open"),
        ({"dropouts": 0}, 1, {}, "and 2, must stay"),
    ],
)
def test_what_cannot_work_is_refused(
    fields: dict[str, Any], sites: int, flags: dict[str, bool], told: str
) -> None:
    spec = SecureSumSpec(**{"dropouts": 1, **fields})
    with pytest.raises(ConfigError, match=told):
        check_secure_sum(spec, sites, **flags)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"kinds": (Kind.VOTES,)}, "votes cannot be added up"),
        ({"dropouts": 0.5}, "below 0.5"),
        ({"neighbours": 3}, "even number"),
    ],
)
def test_what_no_recipe_may_ask_for(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SecureSumSpec(**fields)


def test_a_share_of_drop_outs_is_a_threshold() -> None:
    assert SecureSumSpec(dropouts=0.29).threshold(100) == 71
    assert SecureSumSpec(dropouts=0.3).threshold(5) == 4
    assert SecureSumSpec(dropouts=2).threshold(5) == 3


def test_rounding_at_random_needs_a_generator() -> None:
    spec = SecureSumSpec(dropouts=0, rounding="stochastic")
    room = Room(spec, 3)
    boxes = room.hub.prepare(TAG, room.names)
    with pytest.raises(ConfigError, match="needs a generator"):
        room.sites["s00"].mask(torch.ones(2), 1.0, TAG, boxes["s00"]["boxes"])
    room.sites["s00"].mask(torch.ones(2), 1.0, TAG, boxes["s00"]["boxes"], rng_of("s00"))
