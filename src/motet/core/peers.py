"""Peer-to-peer federations: who sends to whom, while the hub does nothing but pass letters on.

The hub keeps no letter and reads none. Order-free by construction: all peers post first, and what
is delivered was posted before anyone trained in this iteration.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import torch
from pydantic import Field

from motet.core.errors import ConfigError
from motet.core.tree import Tree

Pattern: TypeAlias = Annotated[
    str,
    Field(
        pattern=r"^(all|ring|round-robin|random-[1-9]\d*)$",
        description="whom a peer sends to: all, ring (hops of 1, 2, 4 ...), round-robin, or "
        "random-K for K others at random",
    ),
]
Edges: TypeAlias = dict[str, list[str]]


def neighbours(
    names: Collection[str], pattern: str, number: int, rng: torch.Generator | None = None
) -> Edges:
    """Receiver -> the peers that send to it in iteration ``number``, sorted; never itself.

    all: everyone. ring: the peer 2^(number mod ceil(log2 n)) places before, so that news from
    everyone is everywhere after ceil(log2 n) iterations. round-robin: another one in every
    iteration, all others in n - 1 of them. random-K: each sender draws K others (all where there
    are fewer) from ``rng``. Raises ConfigError for another pattern.
    """
    order = sorted(names)
    if pattern == "all" or len(order) < 2:
        return {name: [other for other in order if other != name] for name in order}
    if pattern == "ring":
        return _shifted(order, 2 ** (number % max((len(order) - 1).bit_length(), 1)))
    if pattern == "round-robin":
        return _shifted(order, 1 + number % (len(order) - 1))
    kind, _, count = pattern.partition("-")
    if kind != "random" or not count.isdigit() or int(count) < 1:
        raise ConfigError(
            f"there is no pattern {pattern!r}; write all, ring, round-robin or random-K"
        )
    if rng is None:
        raise ConfigError("a random pattern needs a generator")
    return _drawn(order, int(count), rng)


def _shifted(order: Sequence[str], hop: int) -> Edges:
    """Every peer hears the one that is so many places before it."""
    return {name: [order[(place - hop) % len(order)]] for place, name in enumerate(order)}


def _drawn(order: Sequence[str], count: int, rng: torch.Generator) -> Edges:
    edges: Edges = {name: [] for name in order}
    for place, sender in enumerate(order):
        others = torch.randperm(len(order) - 1, generator=rng)[:count].tolist()
        for other in others:
            edges[order[other + (other >= place)]].append(sender)
    return edges


def deliver(
    replies: Mapping[str, Tree], key: str, edges: Mapping[str, Iterable[str]]
) -> dict[str, Tree]:
    """What the hub passes on, for ``Group.ask(each=...)``: receiver -> {key: {sender: value}}.

    replies: sender -> what it posted. A sender that did not answer, or posted nothing under this
    key, is not in the letter; every receiver gets one, if an empty one.
    """
    return {
        receiver: {
            key: {
                sender: replies[sender][key]
                for sender in senders
                if sender in replies and key in replies[sender]
            }
        }
        for receiver, senders in edges.items()
    }


def posted(outbox: Sequence[Any], value: Any, latency: int = 0) -> list[Any]:
    """The outbox with a further value, as long as letters are under way for ``latency`` rounds."""
    return [*outbox, value][-(latency + 1) :]


def due(outbox: Sequence[Any], latency: int = 0) -> Any | None:
    """What arrives now: the value posted ``latency`` iterations before the last; None if none."""
    return outbox[-1 - latency] if len(outbox) > latency else None
