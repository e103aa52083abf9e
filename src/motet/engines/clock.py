"""A simulated clock: answers come in the order of the time that slow and fast sites would take."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from motet.core.errors import ConfigError
from motet.core.messages import Engine, Reply, Request, Traits
from motet.core.rng import derive, numpy_generator
from motet.core.roster import Names, Roster, sorted_names
from motet.core.tree import Tree

# (operation, rows of the site) -> rows that the call goes through.
Work: TypeAlias = Callable[[str, int], float]
# Saving is no part of what is simulated, nor is what a researcher looks at on the way.
FREE = frozenset({"@save", "@restore", "evaluate"})
# Days in which a site must come by: at the smallest chance it stays away so long once in 10^43.
PATIENCE = 10_000


class ClientProfile(BaseModel):
    """How fast one site works and sends, and when it is there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    speed: float | None = Field(
        100.0, gt=0, description="rows per second that it trains on; null for no time at all"
    )
    bandwidth: float | None = Field(
        None, gt=0, description="MB per second, each way; null for no time at all"
    )
    latency: float = Field(0.0, ge=0, description="seconds that a message takes beside its bytes")
    jitter: float = Field(
        0.0, ge=0, description="standard deviation of the logarithm of its time, answer by answer"
    )
    day: float = Field(86_400.0, gt=0, description="seconds after which its windows come again")
    windows: tuple[tuple[float, float], ...] = Field(
        (), description="[from, to] in seconds of the day in which it begins work; none for always"
    )
    chance: float = Field(
        1.0, ge=0.01, le=1, description="probability that it is there on a given day"
    )

    @model_validator(mode="after")
    def _windows_are_in_the_day(self) -> ClientProfile:
        for start, end in self.windows:
            if not 0 <= start < end <= self.day:
                raise ValueError(
                    f"windows: [{start:g}, {end:g}] is no part of a day of {self.day:g} seconds"
                )
        return self

    def seconds(self, rows: float, size: int) -> float:
        """Time for so many rows and bytes, with one message's latency where there are bytes."""
        work = 0.0 if self.speed is None else rows / self.speed
        wire = 0.0 if self.bandwidth is None else size / (self.bandwidth * 1e6)
        return work + wire + (self.latency if size else 0.0)

    def opens(self, time: float, there: Callable[[int], bool] = lambda day: True) -> float:
        """The first time from ``time`` on at which it begins work; ``there`` on which days."""
        today = math.floor(time / self.day)
        for day in range(today, today + PATIENCE):
            if not there(day):
                continue
            for start, end in sorted(self.windows) or [(0.0, self.day)]:
                if time < day * self.day + end:
                    return max(time, day * self.day + start)
        raise ConfigError(f"a site did not come by in {PATIENCE} days; raise clients.chance")


class Stragglers(BaseModel):
    """Sites, drawn once for the run, that are slower than their profile says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(0.3, ge=0, le=1, description="their share of all sites")
    factor: float = Field(10.0, ge=1, description="how many times slower they work")


class ClientProfiles(ClientProfile):
    """The sites' profiles: one for all, and others for single sites or populations."""

    spread: float = Field(
        0.0, ge=0, description="standard deviation of the logarithm of the sites' speeds"
    )
    stragglers: Stragglers | None = Field(None, description="sites that are slower; null for none")
    only: dict[str, ClientProfile] = Field(
        default_factory=dict, description="site or population -> a profile of its own"
    )

    def of(self, sites: Sequence[str], seed: int) -> Mapping[str, ClientProfile]:
        """Site -> its profile, with what is drawn; raises ConfigError for strangers in ``only``."""
        populations = sites.counts if isinstance(sites, Names) else set(map(_population, sites))
        strangers = sorted(
            name for name in self.only if name not in sites and name not in populations
        )
        if strangers:
            raise ConfigError(
                f"clients.only names {strangers[0]!r}, which is neither a site nor a population"
            )
        common = ClientProfile(**{name: getattr(self, name) for name in ClientProfile.model_fields})
        slow = self._slow(sites if isinstance(sites, Names) else sorted(sites), seed)

        def profile_of(site: str) -> ClientProfile:
            population = _population(site)
            profile = self.only.get(site, self.only.get(population, common))
            rng = numpy_generator(seed, "clients", site)
            factor = math.exp(self.spread * float(rng.standard_normal()))
            if site in slow and self.stragglers is not None:
                factor /= self.stragglers.factor
            speed = None if profile.speed is None else profile.speed * factor
            return profile.model_copy(update={"speed": speed})

        if isinstance(sites, Names):
            return Roster(sites, profile_of)
        return {site: profile_of(site) for site in sites}

    def _slow(self, sites: Sequence[str], seed: int) -> frozenset[str]:
        if self.stragglers is None:
            return frozenset()
        rng = numpy_generator(seed, "clients", "stragglers")
        count = round(self.stragglers.share * len(sites))
        return frozenset(sites[i] for i in rng.permutation(len(sites))[:count])


def _population(site: str) -> str:
    return site.rpartition("-")[0]


@dataclass(frozen=True)
class _Sent:
    """A request on its way: when it was sent, and as which of all."""

    op: str
    time: float
    number: int


class Clocked:
    """An engine whose answers arrive at simulated times, on whatever engine the work is done.

    A site gets a question, works on it when it is there and has done all earlier ones, and sends
    the answer; time passes with nothing but the hub's waiting. Evaluation and saving take no time.
    A question that a site has answered already takes no work again. work: see ``Method.work``.
    """

    def __init__(
        self,
        engine: Engine,
        profiles: ClientProfiles,
        *,
        seed: int,
        work: Work = lambda op, rows: rows,
    ) -> None:
        self.engine = engine
        self.profiles = profiles.of(sorted_names(engine.sites()), seed)
        self._seed = seed
        self._work = work
        self._time = 0.0
        self._count = 0
        self._sent: dict[tuple[str, str], deque[_Sent]] = {}
        self._coming: list[tuple[float, int, Reply]] = []
        # Site -> when it has done all that it was asked; its last question, and when that answer
        # arrived.
        self._free: dict[str, float] = {}
        self._last: dict[str, tuple[str, float]] = {}
        self._known: dict[str, tuple[str, float]] = {}

    def sites(self) -> Mapping[str, Traits]:
        """All sites by name."""
        return self.engine.sites()

    def send(self, requests: Sequence[Request]) -> None:
        """Puts the requests on their way at the present time."""
        for request in requests:
            self._count += 1
            sent = _Sent(request.op, self._time, self._count)
            self._sent.setdefault((request.site, request.tag), deque()).append(sent)
        self.engine.send(requests)

    def recv(self, timeout: float | None = None) -> Reply | None:
        """The reply that arrives next, at its time; None, and the time is over, when none does.

        timeout: in simulated seconds. All work that was asked for is done first.
        """
        self._do()
        limit = math.inf if timeout is None else self._time + timeout
        if self._coming and self._coming[0][0] <= limit:
            arrival, _, reply = heapq.heappop(self._coming)
            self._time = max(self._time, arrival)
            return reply
        if timeout is not None:
            self._time = limit
        return None

    def close(self) -> None:
        """Forgets what is on its way, and closes the engine."""
        self._coming.clear()
        self._sent.clear()
        self.engine.close()

    def now(self) -> float:
        """Simulated seconds since the run began."""
        return self._time

    def kept(self) -> Tree:
        """The time, and when each site is free and sent its last answer."""
        self._do()
        last = {site: list(answer) for site, answer in self._last.items()}
        return {"time": self._time, "free": dict(self._free), "last": last}

    def put_back(self, tree: Tree) -> None:
        """Goes on from there; answers that a repeated question brings arrive when they did."""
        self._do()
        self._coming.clear()
        self._time = float(tree["time"])
        self._free = dict(tree["free"])
        self._last = {site: (tag, time) for site, (tag, time) in tree["last"].items()}
        self._known = dict(self._last)

    def _do(self) -> None:
        """Has all work done that was asked for, and works out when the answers arrive."""
        while self._sent:
            reply = self.engine.recv()
            if reply is None:
                # What is missing never arrives.
                self._sent.clear()
                return
            key = (reply.site, reply.tag)
            if key not in self._sent:
                continue
            sent = self._sent[key].popleft()
            if not self._sent[key]:
                del self._sent[key]
            heapq.heappush(self._coming, (self._arrival(reply, sent), sent.number, reply))

    def _arrival(self, reply: Reply, sent: _Sent) -> float:
        if sent.op in FREE:
            return sent.time
        site, profile = reply.site, self.profiles[reply.site]
        known = self._known.pop(site, None)
        if known is not None and known[0] == reply.tag:
            return known[1]
        again = self._last.get(site, ("", 0.0))[0] == reply.tag
        rows = 0.0
        if not again and not sent.op.startswith("@"):
            rows = self._work(sent.op, self.sites()[site].rows) * self._luck(profile, reply)
        asked = sent.time + profile.seconds(0, reply.down)
        start = profile.opens(max(asked, self._free.get(site, 0.0)), self._days(site, profile))
        done = start + profile.seconds(rows, 0)
        self._free[site] = done
        arrival = done + profile.seconds(0, reply.up)
        if not sent.op.startswith("@"):
            self._last[site] = (reply.tag, arrival)
        return arrival

    def _luck(self, profile: ClientProfile, reply: Reply) -> float:
        if not profile.jitter:
            return 1.0
        rng = numpy_generator(self._seed, "clients", reply.site, reply.tag)
        return math.exp(profile.jitter * float(rng.standard_normal()))

    def _days(self, site: str, profile: ClientProfile) -> Any:
        def there(day: int) -> bool:
            drawn = derive(self._seed, "clients", site, "day", day) / 2**63
            return profile.chance == 1 or drawn < profile.chance

        return there
