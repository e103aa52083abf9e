"""A network that fails on purpose: messages get lost, late, twice or broken, and sites go away.

What becomes of each fault is the hub's: it asks again (``Patience``), goes on without the site
where the method's quorum allows it, or refuses the answer; its events say which, and why.
"""

from __future__ import annotations

import heapq
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from motet.core import wire
from motet.core.errors import WireError
from motet.core.events import Events
from motet.core.messages import Engine, Reply, Request, Traits, timed
from motet.core.rng import derive
from motet.core.tree import Tree, leaves, map_tensors

FaultKind: TypeAlias = Literal[
    "drop",
    "delay",
    "duplicate",
    "reorder",
    "corrupt",
    "nan",
    "slow",
    "dead",
    "flapping",
    "older-version",
    "clock-skew",
]
# Those that strike each message anew, also one that is sent again; the others stay for a question
# (nan) or for a site's round.
PASSING: tuple[FaultKind, ...] = ("drop", "delay", "duplicate", "reorder", "corrupt", "slow")
# A site that cannot save stops the run, which is then resumed: nothing that faults could show.
SPARED = ("@save", "@restore")
# Questions of a site of which it is remembered how often they were sent.
MOST = 16


class Planned(BaseModel):
    """One fault at a place and time that the recipe names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: FaultKind = Field(description="what happens")
    sites: tuple[str, ...] = Field((), description="where; none for everywhere")
    rounds: tuple[int, ...] = Field((), description="when, from 0; none for always")
    ops: tuple[str, ...] = Field((), description="operations that it strikes; none for all")
    times: int | None = Field(
        None, ge=1, description="strikes the first so many sendings of a question; null for all"
    )

    def strikes(self, request: Request, attempt: int) -> bool:
        """Whether this sending of a question is meant."""
        return (
            (not self.sites or request.site in self.sites)
            and (not self.rounds or request.round in self.rounds)
            and (not self.ops or request.op in self.ops)
            and (self.times is None or attempt <= self.times)
        )


class FaultSpec(BaseModel):
    """What goes wrong, each with its probability; and what goes wrong by plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drop: float = Field(0.0, ge=0, le=1, description="a question or its answer gets lost")
    delay: float = Field(0.0, ge=0, le=1, description="an answer comes after it was given up")
    duplicate: float = Field(0.0, ge=0, le=1, description="a question or its answer comes twice")
    reorder: float = Field(0.0, ge=0, le=1, description="an answer is overtaken by the next")
    corrupt: float = Field(0.0, ge=0, le=1, description="bytes of a frame are changed on its way")
    nan: float = Field(0.0, ge=0, le=1, description="an answer has a number that is none")
    slow: float = Field(0.0, ge=0, le=1, description="an answer takes ``seconds`` longer")
    flapping: float = Field(0.0, ge=0, le=1, description="a site is away for a round")
    older_version: float = Field(
        0.0, ge=0, le=1, description="a site runs another version of Motet for a round"
    )
    clock_skew: float = Field(
        0.0, ge=0, le=1, description="a site's clock is off by ``skew`` for a round"
    )
    seconds: float = Field(1.0, gt=0, description="by how much slow answers are late")
    skew: float = Field(3600.0, description="seconds by which clocks are off")
    skew_allowed: float = Field(300.0, gt=0, description="seconds that sites put up with")
    version: str = Field("0.0.1", description="the version that sites with another one run")
    dead: dict[str, tuple[int, int | None]] = Field(
        default_factory=dict,
        description="site -> [a, b]: it is away in rounds a to b - 1; null as b for ever",
    )
    plan: tuple[Planned, ...] = Field((), description="faults by site, round and operation")

    @model_validator(mode="after")
    def _dead_sites_die_before_they_come_back(self) -> FaultSpec:
        for site, (start, end) in self.dead.items():
            if end is not None and end <= start:
                raise ValueError(f"dead: {site} is away from {start} until {end}, which is never")
        return self

    def chance(self, kind: FaultKind) -> float:
        """The probability of a kind of fault."""
        found: float = getattr(self, kind.replace("-", "_")) if kind != "dead" else 0.0
        return found


class Faults:
    """An engine between hub and sites on which messages and sites fail.

    What is struck depends on seed, site, tag and kind of fault alone (and on the how-manieth
    sending it is), so that it is the same on every engine and in a resumed run. events: where each
    fault is noted. Saving and restoring is spared.
    """

    def __init__(
        self, engine: Engine, spec: FaultSpec, seed: int, events: Events | None = None
    ) -> None:
        self.engine = engine
        self.spec = spec
        self._seed = seed
        self._events = events
        self._attempts: dict[str, OrderedDict[str, int]] = {}
        # (site, tag) -> what was sent and is not answered yet, in the order of sending.
        self._open: dict[tuple[str, str], deque[tuple[Request, int]]] = {}
        self._ready: deque[Reply] = deque()
        self._overtaken: list[Reply] = []
        self._late: list[Reply] = []
        self._slow: list[tuple[float, int, Reply]] = []
        self._count = 0

    def sites(self) -> Mapping[str, Traits]:
        """All sites by name."""
        return self.engine.sites()

    def send(self, requests: Sequence[Request]) -> None:
        """Passes on what gets through; late answers to what was sent before come now."""
        self._ready.extend(self._late)
        self._late.clear()
        through: list[Request] = []
        for request in requests:
            if request.op in SPARED:
                through.append(request)
                continue
            through += self._go(request, self._attempt(request))
        self.engine.send(through)

    def _attempt(self, request: Request) -> int:
        """The how-manieth sending of its question this is, from 1."""
        known = self._attempts.setdefault(request.site, OrderedDict())
        known[request.tag] = known.pop(request.tag, 0) + 1
        if len(known) > MOST:
            known.popitem(last=False)
        return known[request.tag]

    def recv(self, timeout: float | None = None) -> Reply | None:
        """The next reply that gets through, broken or whole; None when none does in time."""
        end = None if timeout is None else self._now() + timeout
        while not self._ready:
            due = self._slow[0][0] if self._slow else None
            until = end if due is None or (end is not None and end < due) else due
            reply = self._next(until)
            if reply is not None:
                self._come(reply)
            elif self._overtaken:
                self._ready.extend(self._overtaken)
                self._overtaken.clear()
            elif due is not None and until == due:
                self._wait(due)
                self._ready.append(heapq.heappop(self._slow)[2])
            else:
                return None
        return self._ready.popleft()

    def close(self) -> None:
        """Drops what is on its way, and closes the engine."""
        for held in (self._open, self._ready, self._overtaken, self._late, self._slow):
            held.clear()
        self.engine.close()

    def _now(self) -> float:
        clock = timed(self.engine)
        return time.monotonic() if clock is None else clock.now()

    def _wait(self, until: float) -> None:
        """Lets the time pass that is left; on a simulated clock it has passed."""
        if timed(self.engine) is None:
            time.sleep(max(until - self._now(), 0.0))

    def _next(self, until: float | None) -> Reply | None:
        return self.engine.recv(None if until is None else max(until - self._now(), 0.0))

    def _strikes(self, kind: FaultKind, request: Request, attempt: int) -> bool:
        chance = self.spec.chance(kind)
        drawn = chance > 0 and self._draw(kind, request, attempt) < chance
        planned = any(one.kind == kind and one.strikes(request, attempt) for one in self.spec.plan)
        if kind == "dead" and request.site in self.spec.dead:
            start, end = self.spec.dead[request.site]
            return start <= request.round and (end is None or request.round < end)
        return drawn or planned

    def _draw(self, kind: FaultKind, request: Request, attempt: int, *key: str) -> float:
        """A number from 0 to 1 of this fault's own."""
        tag = request.tag
        if kind in PASSING:
            tag = f"{tag} {attempt}"
        elif kind != "nan":
            # All questions of a round.
            tag = tag.rpartition(".")[0]
        return derive(self._seed, "fault", kind, request.site, tag, *key) / 2**63

    def _half(self, kind: FaultKind, request: Request, attempt: int) -> bool:
        return self._draw(kind, request, attempt, "which") < 0.5

    def _note(self, kind: FaultKind, request: Request, **more: Any) -> None:
        if self._events is not None:
            about = {"site": request.site, "op": request.op, "tag": request.tag}
            self._events.add("fault", kind=kind, round=request.round, **about, **more)

    def _go(self, request: Request, attempt: int) -> list[Request]:
        """What reaches the site of one sending: nothing, the question, or the question twice."""
        for kind in ("dead", "flapping", "older-version", "clock-skew", "drop", "corrupt"):
            if self._strikes(kind, request, attempt) and self._stops(kind, request, attempt):
                return []
        copies = 1
        if self._strikes("duplicate", request, attempt) and self._half(
            "duplicate", request, attempt
        ):
            self._note("duplicate", request, what="question")
            copies = 2
        queue = self._open.setdefault((request.site, request.tag), deque())
        queue.extend([(request, attempt)] * copies)
        return [request] * copies

    def _stops(self, kind: FaultKind, request: Request, attempt: int) -> bool:
        """Whether this fault keeps the question from its site; what comes back at once is ready."""
        site, spec = request.site, self.spec
        error, damaged = "", False
        if kind == "older-version":
            error = (
                f"site {site} runs Motet {spec.version} and the hub another version; install the "
                "same one at both ends"
            )
        elif kind == "clock-skew":
            if abs(spec.skew) <= spec.skew_allowed:
                return False
            error = (
                f"site {site}: the question was sent {abs(spec.skew):g} s "
                f"{'ago' if spec.skew > 0 else 'from now'} by the hub's clock, and "
                f"{spec.skew_allowed:g} s are allowed; set the clocks"
            )
        elif kind in ("drop", "corrupt"):
            if not self._half(kind, request, attempt):
                return False
            self._note(kind, request, what="question")
            error = f"site {site}: the question's frame is damaged" if kind == "corrupt" else ""
            damaged = True
        if kind not in ("drop", "corrupt"):
            self._note(kind, request)
        if error:
            self._ready.append(Reply(site, request.tag, error=error, damaged=damaged))
        return True

    def _come(self, reply: Reply) -> None:
        """Lets the faults at an answer that came from its site."""
        queue = self._open.get((reply.site, reply.tag))
        if queue is None:
            self._ready.append(reply)
            return
        request, attempt = queue.popleft()
        if not queue:
            del self._open[reply.site, reply.tag]

        def struck(kind: FaultKind, *, answers: bool = True) -> bool:
            """answers: of the faults that strike questions too, those that strike the answer."""
            found = self._strikes(kind, request, attempt)
            return found and not (answers and self._half(kind, request, attempt))

        if struck("drop"):
            self._note("drop", request, what="answer")
            return
        if struck("nan", answers=False):
            reply = self._spoilt(reply, request)
        if struck("corrupt"):
            self._note("corrupt", request, what="answer")
            reply = self._damaged(reply, request, attempt)
        if struck("duplicate"):
            self._note("duplicate", request, what="answer")
            self._late.append(reply)
        if struck("delay", answers=False):
            self._note("delay", request)
            self._late.append(reply)
        elif struck("slow", answers=False):
            self._note("slow", request, seconds=self.spec.seconds)
            self._count += 1
            entry = (self._now() + self.spec.seconds, self._count, reply)
            heapq.heappush(self._slow, entry)
        elif struck("reorder", answers=False):
            self._note("reorder", request)
            self._overtaken.append(reply)
        else:
            self._ready.append(reply)
            self._ready.extend(self._overtaken)
            self._overtaken.clear()

    def _spoilt(self, reply: Reply, request: Request) -> Reply:
        """The reply with one number that is none."""
        if reply.value is None:
            return reply
        floats = [
            leaf
            for _, leaf in leaves(reply.value)
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()
        ]
        if not floats:
            return reply
        self._note("nan", request)
        return replace(reply, value=_with_nan(reply.value, floats[0]))

    def _damaged(self, reply: Reply, request: Request, attempt: int) -> Reply:
        """What a courier makes of a reply some of whose bytes were changed on the way."""
        if reply.value is None:
            return reply
        frame = bytearray(wire.encode(reply.value))
        at = int(self._draw("corrupt", request, attempt, "where") * len(frame))
        for number in range(at, min(at + 8, len(frame))):
            frame[number] ^= 0xFF
        try:
            wire.decode(bytes(frame))
            reason = "its checksum is another than that of what was sent"
        except WireError as error:
            reason = str(error)
        told = f"site {reply.site}: its answer's frame is damaged: {reason}"
        return replace(reply, value=None, error=told, damaged=True)


def _with_nan(value: Tree, leaf: Tensor) -> Tree:
    def change(tensor: Tensor) -> Tensor:
        if tensor is not leaf:
            return tensor
        made = tensor.clone(memory_format=torch.contiguous_format)
        made.view(-1)[0] = torch.nan
        return made

    changed: Tree = map_tensors(change, value)
    return changed
