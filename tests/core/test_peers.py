from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from motet.core import ConfigError
from motet.core.peers import Pattern, deliver, due, neighbours, posted
from motet.core.rng import generator

NAMES = ["d", "b", "a", "c", "e"]


def spread(pattern: str, rounds: int, names: list[str]) -> dict[str, set[str]]:
    """What everyone has heard of, directly or through others, after so many iterations."""
    known = {name: {name} for name in names}
    for number in range(rounds):
        edges = neighbours(names, pattern, number)
        known = {
            name: known[name].union(*(known[sender] for sender in edges[name])) for name in names
        }
    return known


def test_all_hear_everyone_but_themselves() -> None:
    edges = neighbours(NAMES, "all", 3)
    assert sorted(edges) == sorted(NAMES)
    assert edges["b"] == ["a", "c", "d", "e"]


def test_a_ring_hops_1_2_4_and_begins_again() -> None:
    heard = [neighbours(NAMES, "ring", number)["a"] for number in range(4)]
    assert heard == [["e"], ["d"], ["b"], ["e"]]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9])
def test_on_a_ring_news_is_everywhere_after_log_n_iterations(count: int) -> None:
    names = [f"peer-{number}" for number in range(count)]
    rounds = (count - 1).bit_length()
    assert all(known == set(names) for known in spread("ring", rounds, names).values())
    assert not all(known == set(names) for known in spread("ring", rounds - 1, names).values())


def test_round_robin_meets_everyone_once_in_turn() -> None:
    heard = [neighbours(NAMES, "round-robin", number)["c"][0] for number in range(8)]
    assert sorted(heard[:4]) == ["a", "b", "d", "e"]
    assert heard[4:] == heard[:4]


@pytest.mark.parametrize("count", [1, 3])
def test_at_random_every_sender_has_its_number_of_others(count: int) -> None:
    edges = neighbours(NAMES, f"random-{count}", 0, generator(1, "edges"))
    senders = [sender for found in edges.values() for sender in found]
    assert all(senders.count(name) == count for name in NAMES)
    assert all(name not in found and found == sorted(set(found)) for name, found in edges.items())
    assert edges == neighbours(NAMES[::-1], f"random-{count}", 9, generator(1, "edges"))


def test_at_random_everyone_is_drawn_alike() -> None:
    rng = generator(2)
    heard = torch.zeros(len(NAMES))
    for number in range(2000):
        edges = neighbours(NAMES, "random-1", number, rng)
        heard += torch.tensor([len(edges[name]) for name in sorted(NAMES)])
    assert float((heard / 2000 - 1).abs().max()) < 0.1


def test_more_than_there_are_is_all() -> None:
    assert neighbours(NAMES, "random-9", 0, generator(0)) == neighbours(NAMES, "all", 0)


@pytest.mark.parametrize("pattern", ["all", "ring", "round-robin", "random-1"])
def test_alone_nobody_is_heard(pattern: str) -> None:
    assert neighbours(["a"], pattern, 0, generator(0)) == {"a": []}
    two = neighbours(["a", "b"], pattern, 1, generator(0))
    assert two == {"a": ["b"], "b": ["a"]}


def test_strange_patterns_are_refused() -> None:
    for pattern in ("star", "random", "random-0", "random-x"):
        with pytest.raises(ConfigError, match=r"write all, ring, round-robin or random-K"):
            neighbours(NAMES, pattern, 0, generator(0))
        with pytest.raises(ValidationError):
            TypeAdapter(Pattern).validate_python(pattern)
    with pytest.raises(ConfigError, match="generator"):
        neighbours(NAMES, "random-1", 0)
    assert TypeAdapter(Pattern).validate_python("random-12") == "random-12"


def test_letters_hold_what_was_posted_and_nothing_else() -> None:
    replies = {"a": {"w": 1.0, "n": 3}, "b": {"n": 4}, "c": {"w": 2.0}}
    edges = {"a": ["b", "c", "d"], "c": ["a"], "b": []}
    assert deliver(replies, "w", edges) == {
        "a": {"w": {"c": 2.0}},
        "c": {"w": {"a": 1.0}},
        "b": {"w": {}},
    }


def test_a_letter_arrives_after_its_latency() -> None:
    for latency in (0, 1, 3):
        outbox: list[int] = []
        arrived = []
        for number in range(6):
            outbox = posted(outbox, number, latency)
            arrived.append(due(outbox, latency))
        assert arrived == [None] * latency + list(range(6 - latency))
        assert len(outbox) == latency + 1
    assert due([], 0) is None
