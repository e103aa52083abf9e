"""Replies that no honest site would send: none is used, each is named, and the hub goes on.

What every method's sites really send is recorded once, and then spoilt in every way that there is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from tests.conformance.test_methods import CASES
from tests.conformance.tiny import Case, experiment, parties, try_out
from torch import Tensor

from motet.core import Kind, MotetError, exchange
from motet.core.folding import Folding
from motet.core.messages import Reply
from motet.core.method import Operation
from motet.core.tree import Tree, leaves, map_tensors
from motet.core.validate import refused
from motet.engines.serial import Serial
from motet.experiment.runner import run

# Over all methods together, more than 10,000.
SPOILT = 240
Path = tuple[str, ...]


class AllAtOnce(Folding):
    """Holds all answers until they are judged together."""

    def go_on(self, values: Mapping[str, Tree], failed: Mapping[str, str]) -> None:
        return


@dataclass(frozen=True)
class Asked:
    """One question and its honest replies."""

    values: Mapping[str, Tree]
    rest: tuple[Any, ...]

    @property
    def operation(self) -> Operation:
        found: Operation = self.rest[0]
        return found


@cache
def asked(case: Case) -> tuple[Asked, ...]:
    """All questions of a small run, with what came back."""
    found: list[Asked] = []

    def record(values: Mapping[str, Tree], *rest: Any) -> dict[str, str]:
        # Without who was found beyond doubt before: that set grows later on.
        found.append(Asked(dict(values), rest[:5]))
        return refused(values, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "refused", record)
        patch.setattr(exchange, "Folding", AllAtOnce)
        try_out(case, *(["method.cohort=6"] if "cohort" in fields(case) else []))
    return tuple(one for one in found if any(spoils(one, site) for site in one.values))


def fields(case: Case) -> set[str]:
    return set(type(experiment(case).method).model_fields)


def put(tree: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    """The tree with one leaf changed."""
    if not path:
        return change(tree)
    if isinstance(tree, dict):
        return {**tree, path[0]: put(tree[path[0]], path[1:], change)}
    return [put(v, path[1:], change) if str(i) == path[0] else v for i, v in enumerate(tree)]


def without(tree: Any, path: Path) -> Any:
    if len(path) == 1:
        return {key: value for key, value in tree.items() if key != path[0]}
    return {**tree, path[0]: without(tree[path[0]], path[1:])}


def holed(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        made = tensor.clone()
        made.view(-1)[made.numel() // 2] = value
        return made

    return change


def spoils(one: Asked, site: str) -> list[tuple[str, Callable[[], Tree]]]:
    """Everything that can be wrong with this reply, by name."""
    value, operation = one.values[site], one.operation
    found: list[tuple[str, Callable[[], Tree]]] = []

    def add(name: str, made: Callable[[], Tree]) -> None:
        found.append((name, made))

    # Somebody else must have sent the key, or nothing says what is right; and not in a tie.
    for key in operation.sends:
        if key not in value:
            continue
        if key not in operation.optional:
            add("missing key", lambda key=key: without(value, (key,)))
        told = sum(key in other for other in one.values.values()) > 2
        agreed = key not in operation.varies and told
        kind = operation.sends[key]
        for rest, leaf in leaves(value[key]):
            path = (key, *rest)
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel():
                for bad in (torch.nan, torch.inf, -torch.inf):
                    add(f"{bad}", lambda p=path, b=bad: put(value, p, holed(b)))
            if isinstance(leaf, Tensor) and agreed:
                add("shape", lambda p=path: put(value, p, lambda t: t.unsqueeze(0)))
                add("longer", lambda p=path: put(value, p, lambda t: torch.cat([t.view(-1)] * 2)))
                add(
                    "oversize", lambda p=path: put(value, p, lambda t: t.new_zeros(()).expand(9**6))
                )
                add(
                    "type", lambda p=path: put(value, p, lambda t: t.to(torch.complex64).real.int())
                )
                add("number", lambda p=path: put(value, p, lambda t: 1.0))
                add("text", lambda p=path: put(value, p, lambda t: "abc"))
                add("nothing", lambda p=path: put(value, p, lambda t: None))
            named = len(path) > 1 and not any(part.isdigit() for part in path)
            if agreed and named and kind is not Kind.METRIC:
                add("missing part", lambda p=path: without(value, p))
        if agreed and isinstance(value[key], dict) and kind is not Kind.METRIC:
            extra = {**value[key], "stranger": torch.ones(3)}
            add("extra part", lambda key=key, extra=extra: {**value, key: extra})
        if kind is Kind.METRIC:
            add("metric", lambda key=key: {**value, key: {"accuracy": [torch.nan, 3]}})
            add("metric", lambda key=key: {**value, key: {"accuracy": "100"}})
            add("metric", lambda key=key: {**value, key: []})
    add("extra key", lambda: {**value, "stranger": torch.ones(3)})
    add("extra text", lambda: {**value, "note": "hello"})
    if "samples" in value:
        for claimed in (1e12, 10**12, -1, torch.nan, torch.inf, "many", True, None, [3]):
            add("samples", lambda c=claimed: {**value, "samples": c})
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_is_spoilt_is_refused_and_nothing_else(name: str) -> None:
    case = CASES[name]
    pool = [
        (one, site, what, made)
        for one in asked(case)
        for site in one.values
        for what, made in spoils(one, site)
    ]
    if not pool:
        assert not any(op.sends for n, op in operations(case).items() if n != "evaluate")
        return
    draw = random.Random(name)
    for _ in range(SPOILT):
        one, site, what, made = draw.choice(pool)
        spoilt = made()
        found = refused({**one.values, site: spoilt}, *one.rest)
        assert set(found) == {site}, (what, site, found)
        assert len(found[site]) > 10


def operations(case: Case) -> dict[str, Operation]:
    return experiment(case).method.operations()


class Spoiling(Serial):
    """One site's replies are spoilt, each in another way."""

    count = 0
    spoilt: list[tuple[str, str]]

    def recv(self, timeout: float | None = None) -> Reply | None:
        reply = super().recv(timeout)
        liar = reply is not None and reply.site in ("pair-1", "site-1")
        if reply is None or not liar or not reply.value or reply.tag.startswith("@"):
            return reply
        self.count += 1
        self.spoilt.append((reply.site, reply.tag))
        ways = (self._hole, self._extra, self._grown, lambda value: {})
        changed = ways[self.count % len(ways)](reply.value)
        return Reply(reply.site, reply.tag, changed, None, reply.down, reply.up)

    def _hole(self, value: Tree) -> Tree:
        made = map_tensors(lambda t: t * torch.nan if t.is_floating_point() else t, value)
        return {**made, "loss": float("nan")}

    def _extra(self, value: Tree) -> Tree:
        return {**value, "stranger": torch.ones(2)}

    def _grown(self, value: Tree) -> Tree:
        return {**value, "samples": 1e12}


@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_on_and_names_who_sent_what(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first question to the last: the others' replies are enough."""
    case = CASES[name]
    engine = type("SpoilingHere", (Spoiling,), {"spoilt": []})
    monkeypatch.setattr("motet.experiment.runner.Serial", engine)
    known = fields(case)
    settings = ["method.quorum=0.5"] if "quorum" in known else []
    settings += ["method.cohort=6"] if "cohort" in known else []
    wanted = experiment(case, *settings)
    try:
        result = run(wanted, parties=parties(wanted))
    except MotetError as error:
        pytest.fail(f"{name} stopped: {error}")
    told = {(e["site"], e["tag"]) for e in result.events if e["event"] == "failed"}
    sent = set(engine.spoilt)
    assert sent - told <= empty_is_fine(case, result.events)


def empty_is_fine(case: Case, events: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Replies in which nothing is due, so that an empty one is right."""
    due = {name for name, op in operations(case).items() if set(op.sends) - op.optional}
    return {(e["site"], e["tag"]) for e in events if e["event"] == "replied" and e["op"] not in due}
