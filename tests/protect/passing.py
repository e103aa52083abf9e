"""A reply's way through one guard, and through the wire, without a federation around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tests.core.toys import Averaging, rows, score, specs, toy

from motet.core import Events, Federation, Kind, Tree, WireError, wire
from motet.core.guard import Guard, Passage, Protection
from motet.core.rng import generator
from motet.engines.serial import Serial


def passage(
    received: Tree, memory: Tree | None = None, *, seed: int = 0, op: str = "train", **sends: Kind
) -> Passage:
    """That of a reply of these keys and kinds, at its site."""
    rng: Callable[..., torch.Generator] = partial(generator, seed, op)
    kept: Tree = {} if memory is None else memory
    return Passage("ada", op, "0.0.1", 0, sends, received, rng=rng, memory=kept)


def arriving(guard: Guard, packed: Tree, at: Passage) -> Tree:
    """The reply as the hub reads it off its frame; the hub has no randomness, and no memory."""
    hub = Passage(at.site, at.op, at.tag, at.round, at.sends, at.received)
    return guard.arrive(wire.decode(wire.encode(packed)), hub)


def there_and_back(guard: Guard, value: Tree, at: Passage) -> Tree:
    """The reply as it arrives."""
    return arriving(guard, guard.leave(value, at), at)


def read_or_reason(guard: Guard, packed: Tree, at: Passage) -> Tree | str:
    """The reply as it arrives, or why it is refused; any other error goes through."""
    try:
        return guard.arrive(packed, at)
    except WireError as error:
        return str(error)


def averaging(guards: list[Guard], rounds: int = 3, strict: bool = True) -> Federation:
    """A finished run of the tiny federation behind these guards."""
    method = Averaging(rounds=rounds)
    protection = Protection(guards=guards)
    engine = Serial(
        specs(),
        method,
        seed=0,
        public=rows("public", 5),
        evaluate=score,
        strict=strict,
        folder=None,
        protection=protection,
    )
    fed = Federation(
        engine,
        method,
        seed=0,
        build=partial(toy, "hub"),
        public=rows("public", 5),
        test=rows("hub test", 8),
        evaluate=score,
        events=Events(None),
        protection=protection,
    )
    fed.start()
    return fed


def normal(*shape: int, seed: int = 0) -> Any:
    """Normal numbers of this shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
