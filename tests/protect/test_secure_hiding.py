"""What messages of a secure sum do not show, and what a recipe may ask of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.protect.room import Room, names, plain, uniform, vectors
from torch import Tensor

from motet.core import ConfigError, Kind, Tree, wire
from motet.protect.secure_site import SecureSite
from motet.protect.secure_sum import SecureSumSpec, check_secure_sum
from motet.protect.secure_words import add_mask, self_mask

SIZE = 40_000


def spec(**given: Any) -> SecureSumSpec:
    return SecureSumSpec(**{"dropouts": 1, **given})


def test_an_integer_sum_is_exact() -> None:
    # The clip is the number of steps, so that every step is a whole number.
    exact = spec(clip=2.0**15 - 1, bits=16)
    given = {site: (vector * 5e3).round() for site, vector in vectors(names(6)).items()}
    assert torch.equal(Room(exact, 6).total("1", given), plain(given, names(6)))


def test_values_beyond_the_clip_are_cut() -> None:
    given = {site: torch.tensor([100.0, -3.0]) for site in names(3)}
    assert Room(spec(dropouts=0, clip=1.0), 3).total("1", given).tolist() == [3.0, -3.0]


def test_keys_change_messages_and_not_the_sum() -> None:
    given = vectors(names(4))
    rooms = {secret: Room(spec(), 4, secret=secret) for secret in (b"a", b"b", None)}
    sent = {secret: room.masked("1", given) for secret, room in rooms.items()}
    again = Room(spec(), 4, secret=b"a").masked("1", given)
    words = {secret: masked["s00"]["words"].tolist() for secret, masked in sent.items()}
    assert words[b"a"] == again["s00"]["words"].tolist()
    assert len({tuple(found) for found in words.values()}) == 3
    sums = [room.hub.open("1", sent[secret]) for secret, room in rooms.items()]
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


def test_all_messages_can_travel() -> None:
    def framed(op: str, site: str, reply: Tree) -> Tree:
        return wire.decode(wire.encode(reply))

    room = Room(spec(), 4, drops={"vectors": ["s01"]}, change=framed)
    given = vectors(room.names)
    found = room.total("1", given)
    assert torch.allclose(found, plain(given, ["s00", "s02", "s03"]), atol=1e-4)
    assert wire.frame_size(room.masked("2", given)["s00"]) < 4 * 50 + 300


def octets(words: Tensor) -> Tensor:
    return words.view(torch.uint8).reshape(-1, 4)


def messages(value: float, tag: str = "1", **given: Any) -> Mapping[str, Tree]:
    room = Room(spec(**given), 5)
    return room.masked(tag, {site: torch.full((SIZE,), value) for site in room.names})


@pytest.mark.parametrize("value", [0.0, 8.0, -8.0, 1e-5])
@pytest.mark.parametrize("neighbours", [None, 2])
def test_any_single_message_looks_uniform(value: float, neighbours: int | None) -> None:
    dropouts = 0 if neighbours else 1
    sent = messages(value, neighbours=neighbours, dropouts=dropouts)
    for site, masked in sent.items():
        for place in range(4):
            assert uniform(octets(masked["words"])[:, place]), (site, place)
        # Neighbouring words go together no more than by chance either.
        pairs = octets(masked["words"])[:, 3].long().reshape(-1, 2) // 16
        assert uniform(pairs[:, 0] * 16 + pairs[:, 1])


def homogeneity(one: Tensor, other: Tensor) -> float:
    """Chi-square of two histograms of as many draws each."""
    return float(((one - other) ** 2 / (one + other)).sum())


def test_a_message_does_not_depend_on_what_is_in_it() -> None:
    low, high, other = (
        messages(value, tag)["s02"]["words"] for value, tag in ((0.0, "1"), (8.0, "1"), (8.0, "2"))
    )
    for place in range(4):
        counts = [
            torch.bincount(octets(sent)[:, place].long(), minlength=256).double()
            for sent in (low, high, other)
        ]
        # A byte comes as often with one input as with another, up to chance. With the same keys
        # both counts share their chances, and are closer than that.
        assert homogeneity(counts[0], counts[1]) < 255 + 5 * math.sqrt(510)
        assert abs(homogeneity(counts[0], counts[2]) - 255) < 5 * math.sqrt(510)
    # Both halves of the range are in the input, and no trace of them in the message.
    mixed = torch.cat([torch.full((SIZE // 2,), -8.0), torch.full((SIZE // 2,), 8.0)])
    room = Room(spec(), 5)
    sent = room.masked("1", dict.fromkeys(room.names, mixed))["s02"]["words"].double()
    halves = sent.reshape(2, -1)
    deviation = 2**32 / math.sqrt(12) * math.sqrt(2 / (SIZE // 2))
    assert abs(float(halves[0].mean() - halves[1].mean())) < 5 * deviation


def test_no_two_messages_have_a_mask_in_common() -> None:
    first, other = messages(1.0, "1"), messages(1.0, "2")
    for left, right in [
        (first["s00"], other["s00"]),
        (first["s00"], first["s01"]),
        (first["s01"], other["s03"]),
    ]:
        assert uniform(octets(left["words"] - right["words"]))
        assert uniform(octets(left["words"] + right["words"]))


def test_without_its_own_mask_a_message_is_hidden_until_all_are_added() -> None:
    room = Room(spec(), 5)
    sent = room.masked("1", {site: torch.zeros(SIZE) for site in room.names})
    total = torch.zeros(SIZE, dtype=torch.int32)
    for number, site in enumerate(room.names, start=1):
        total += sent[site]["words"]
        seed = room.sites[site]._sums["1"].seed
        add_mask(total.numpy().view("uint32"), self_mask(seed, "1", site), minus=True)
        if number < 5:
            assert uniform(octets(total))
    assert not total.any()


def test_the_recipe_has_defaults_and_a_threshold() -> None:
    chosen = SecureSumSpec()
    assert chosen.kinds == (Kind.WEIGHTS,)
    assert (chosen.clip, chosen.bits, chosen.neighbours) == (8.0, 22, None)
    assert chosen.step == 8 / (2**21 - 1)
    assert [chosen.threshold(count) for count in (3, 10, 20)] == [3, 7, 14]
    assert SecureSumSpec(dropouts=0.29).threshold(100) == 71
    assert SecureSumSpec(dropouts=2).threshold(9) == 7
    assert SecureSumSpec(neighbours=4).holders(9) == 5
    assert SecureSumSpec(neighbours=4).holders(3) == 3
    assert SecureSumSpec().holders(9) == 9


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kinds": ["votes"]}, "kinds.*votes cannot be added up"),
        ({"kinds": ["raw"]}, "raw cannot be added up"),
        ({"kinds": []}, "kinds"),
        ({"clip": 0}, "clip"),
        ({"bits": 31}, "bits"),
        ({"bits": 7}, "bits"),
        ({"rounding": "down"}, "rounding"),
        ({"dropouts": 0.5}, "below 0.5"),
        ({"dropouts": -1}, "dropouts"),
        ({"dropouts": True}, "dropouts"),
        ({"dropouts": math.nan}, "dropouts"),
        ({"neighbours": 3}, "even number"),
        ({"neighbours": 0}, "neighbours"),
        ({"threshold": 3}, "threshold"),
    ],
)
def test_a_wrong_recipe_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){message}"):
        SecureSumSpec.model_validate(given)


@pytest.mark.parametrize(
    ("given", "sites", "message"),
    [
        ({}, 1025, "bits=22 for 1025 sites .* at most 21"),
        ({"bits": 30, "dropouts": 0}, 5, "bits=30 for 5 sites .* at most 29"),
        ({"dropouts": 2}, 4, "dropouts=2 leaves 2 of 4 sites"),
        ({"dropouts": 5}, 4, "leaves -1 of 4 sites"),
        ({"dropouts": 0}, 1, "leaves 1 of 1 sites"),
        ({"dropouts": 2, "neighbours": 2}, 9, "leaves 1 of 3 holders"),
    ],
)
def test_sums_that_cannot_be_safe_are_refused(
    given: dict[str, Any], sites: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_secure_sum(SecureSumSpec(**given), sites)


@pytest.mark.parametrize(
    ("given", "sites"),
    [({}, 1024), ({"bits": 30, "dropouts": 0}, 4), ({"dropouts": 2}, 5), ({"dropouts": 0}, 2)],
)
def test_the_largest_that_fit_are_taken(given: dict[str, Any], sites: int) -> None:
    check_secure_sum(SecureSumSpec(**given), sites)


@pytest.mark.parametrize(
    ("flag", "message"),
    [("robust", "protect.robust"), ("lossy", "protect.compress"), ("central", "central privacy")],
)
def test_what_needs_single_replies_is_refused(flag: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(hides|masked).*{message}"):
        check_secure_sum(SecureSumSpec(), 5, **{flag: True})


def test_a_sites_own_randomness_comes_from_the_system() -> None:
    site = SecureSite("ann", spec())
    first, second = site.keys("1"), site.keys("1")
    assert not torch.equal(first["pair"], second["pair"])
    assert not torch.equal(first["pair"], first["box"])
