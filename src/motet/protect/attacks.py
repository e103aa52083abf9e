"""Dishonest sites: an engine whose attackers change their replies before these reach the hub."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from motet.core import wire
from motet.core.errors import ConfigError, WireError
from motet.core.events import Events
from motet.core.kinds import Kind
from motet.core.messages import Engine, Reply, Request, Traits
from motet.core.method import Method
from motet.core.middleware import Middleware, pack_all, unpack_all
from motet.core.rng import generator, numpy_generator
from motet.core.tree import Tree
from motet.nn.bits import pack_order, unpack_order
from motet.nn.robust import elected, flat, ranks_of, trimmed_mean, unflat

AttackName: TypeAlias = Literal[
    "reversed-ranks", "rotated-ranks", "scaled", "tailored", "noise", "sign-flip"
]
UPDATES = frozenset({Kind.WEIGHTS, Kind.GRADIENTS})
RANKS = ("reversed-ranks", "rotated-ranks")


class AttackSpec(BaseModel):
    """Which sites are dishonest, and what they send in place of their honest replies.

    reversed-ranks: the reverse of the sum of the attackers' own ranks. rotated-ranks (ours): its
    middle at the ends and its ends in the middle, against those who keep both ends. scaled:
    -factor times the attackers' mean update. sign-flip: -factor times the own update. noise: a
    normal draw in place of the update. tailored: as far off the mean update as moves a trimmed
    mean furthest. Updates are differences to the weights that the hub sent under the same key, or
    what is sent where it sent none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: AttackName = Field(description="what attackers send")
    share: float | None = Field(None, gt=0, lt=1, description="share of the sites that attack")
    sites: tuple[str, ...] = Field((), description="names of the attackers, in place of a share")
    factor: float = Field(10.0, gt=0, description="scaled, sign-flip: times the update, turned")
    std: float | None = Field(
        None, gt=0, description="noise: standard deviation; null for the honest update's size"
    )
    trim: int | None = Field(
        None, ge=1, description="tailored: how many the hub trims per end; null for the attackers"
    )
    knowledge: Literal["own", "all"] = Field(
        "own", description="tailored: whose honest updates attackers know"
    )
    minority: bool = Field(
        False, description="at most the largest minority of the sites asked attacks (FRL's code)"
    )

    @model_validator(mode="after")
    def _names_attackers(self) -> AttackSpec:
        if (self.share is None) == (not self.sites):
            raise ValueError("an attack names either a share of the sites, or sites")
        return self

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of keys that this attack changes."""
        return frozenset({Kind.VOTES}) if self.name in RANKS else UPDATES

    def attackers(self, sites: Sequence[str], seed: int) -> frozenset[str]:
        """The dishonest ones of these sites, by seed alone; ConfigError for strangers or none."""
        names = sorted(sites)
        if self.share is None:
            strangers = sorted(set(self.sites) - set(names))
            if strangers:
                raise ConfigError(f"attack.sites names {strangers[0]!r}; there are {names}")
            return frozenset(self.sites)
        count = round(self.share * len(names))
        if not count:
            raise ConfigError(f"attack.share={self.share} of {len(names)} sites is none")
        chosen = numpy_generator(seed, "attackers").choice(len(names), count, replace=False)
        return frozenset(names[i] for i in chosen)


@dataclass
class _Ask:
    """One question whose replies are held back until all that the attackers await are there."""

    requests: dict[str, Request]
    attackers: tuple[str, ...]
    awaited: set[str]
    replies: dict[str, Reply] = field(default_factory=dict)


class Hostile:
    """An engine of which a share of the sites attacks.

    Attackers first answer honestly, see each other's answers to the same question, and then put
    theirs together. Requests and replies are looked at as the method sees them, without the
    codecs of ``middleware``. Raises ConfigError when the method sends nothing to attack.
    """

    def __init__(
        self,
        engine: Engine,
        attack: AttackSpec,
        method: Method,
        *,
        seed: int,
        middleware: Sequence[Middleware] = (),
        events: Events | None = None,
    ) -> None:
        self.engine = engine
        self.attack = attack
        self.attackers = attack.attackers(list(engine.sites()), seed)
        self._seed = seed
        self._middleware = middleware
        self._events = events
        self._sends = {name: found.sends for name, found in method.operations().items()}
        self._asks: dict[str, _Ask] = {}
        self._ready: deque[Reply] = deque()
        if not any(self._hit(op) for op in self._sends):
            kinds = " or ".join(sorted(attack.kinds))
            raise ConfigError(
                f"the attack {attack.name!r} changes {kinds}, and {type(method).__name__} sends "
                "none; choose another attack"
            )

    def _hit(self, op: str) -> list[str]:
        """The keys of this operation's replies that the attack changes."""
        sends = self._sends.get(op, {})
        return [key for key, kind in sends.items() if kind in self.attack.kinds]

    def sites(self) -> Mapping[str, Traits]:
        """All sites by name."""
        return self.engine.sites()

    def send(self, requests: Sequence[Request]) -> None:
        """Passes the requests on, and notes whose replies are to be changed."""
        asked: dict[str, dict[str, Request]] = {}
        for request in requests:
            if self._hit(request.op):
                asked.setdefault(request.tag, {})[request.site] = request
        for tag, found in asked.items():
            attackers = self._attacking(sorted(found))
            if attackers:
                known = attackers if self.attack.knowledge == "own" else tuple(found)
                self._asks[tag] = _Ask(found, attackers, set(known))
        self.engine.send(requests)

    def _attacking(self, asked: Sequence[str]) -> tuple[str, ...]:
        found = tuple(name for name in asked if name in self.attackers)
        return found[: (len(asked) - 1) // 2] if self.attack.minority else found

    def recv(self, timeout: float | None = None) -> Reply | None:
        """The next reply; an attacker's when those have come that it waits for."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._ready:
            left = None if end is None else max(end - time.monotonic(), 0.0)
            reply = self.engine.recv(left)
            if reply is None:
                # Nobody else will answer in time: attackers make do with what they know.
                for tag in list(self._asks):
                    self._release(tag)
                break
            ask = self._asks.get(reply.tag)
            if ask is None or reply.site not in ask.awaited:
                return reply
            ask.replies[reply.site] = reply
            ask.awaited.discard(reply.site)
            if not ask.awaited:
                self._release(reply.tag)
        return self._ready.popleft() if self._ready else None

    def close(self) -> None:
        """Drops what is held back, and closes the engine."""
        self._asks.clear()
        self._ready.clear()
        self.engine.close()

    def _release(self, tag: str) -> None:
        """Lets the replies to one question go, those of attackers changed."""
        ask = self._asks.pop(tag)
        honest = {
            site: unpack_all(self._middleware, reply.value)
            for site, reply in sorted(ask.replies.items())
            if reply.value is not None
        }
        liars = [site for site in ask.attackers if site in honest]
        forged: dict[str, Tree] = {site: {} for site in liars}
        op = next(iter(ask.requests.values())).op
        for key in self._hit(op) if liars else ():
            sent = {site: value[key] for site, value in honest.items() if key in value}
            for site, value in self._forge(key, ask, sent, liars).items():
                forged[site][key] = value
        for site, reply in ask.replies.items():
            if forged.get(site):
                value = {**honest[site], **forged[site]}
                packed = pack_all(self._middleware, value, self._sends[op])
                reply = replace(reply, value=packed, up=wire.frame_size(packed))
            self._ready.append(reply)
        if liars and self._events is not None:
            note = {"round": ask.requests[liars[0]].round, "op": op, "tag": tag, "sites": liars}
            self._events.add("attacked", attack=self.attack.name, **note)

    def _forge(
        self, key: str, ask: _Ask, sent: Mapping[str, Any], liars: Sequence[str]
    ) -> dict[str, Any]:
        """What each attacker sends under this key, given the honest values that are known."""
        own = [site for site in liars if site in sent]
        if not own:
            return {}
        if Kind.VOTES in self.attack.kinds:
            back = self.attack.name == "reversed-ranks"
            return dict.fromkeys(own, turned_orders([sent[site] for site in own], back))
        bases = {site: self._reference(ask.requests[site], key, sent[site]) for site in sent}
        updates = {site: flat(value) - bases[site] for site, value in sent.items()}
        if len({len(update) for update in updates.values()}) > 1:
            raise ConfigError(f"attackers cannot put {key!r} together: sites' sizes of it differ")
        others = [update for site, update in updates.items() if site not in own]
        mine = torch.stack([updates[site] for site in own])
        known = torch.stack(others) if others else mine
        rngs = [generator(self._seed, site, ask.requests[site].tag, key) for site in own]
        made = forge(self.attack, mine, known, rngs)
        return {
            site: unflat(bases[site] + update, sent[site])
            for site, update in zip(own, made, strict=True)
        }

    def _reference(self, request: Request, key: str, value: Any) -> Tensor:
        """What an update under this key is the difference to: [d], or 0 where nothing was sent."""
        payload = unpack_all(self._middleware, {**request.shared, **request.own})
        found = _part(payload.get(key), value)
        return torch.zeros(()) if found is None else flat(found)


def _part(sent: Any, like: Any) -> Any:
    """The part of a payload that has the names and shapes of another; None without any."""
    if isinstance(like, dict) and isinstance(sent, dict):
        parts = {name: _part(sent.get(name), value) for name, value in like.items()}
        return None if any(part is None for part in parts.values()) else parts
    same = isinstance(like, Tensor) and isinstance(sent, Tensor) and like.shape == sent.shape
    return sent if same else None


def forge(
    attack: AttackSpec, own: Tensor, known: Tensor, rngs: Sequence[torch.Generator]
) -> Tensor:
    """What attackers send in place of their honest updates ``own``: [attackers, d].

    known: honest updates [k, d] that they take for those of the others. rngs: one per attacker.
    """
    if attack.name == "scaled":
        return (-attack.factor * own.mean(dim=0)).expand_as(own)
    if attack.name == "sign-flip":
        return -attack.factor * own
    if attack.name == "tailored":
        return tailored(known, len(own), attack.trim).expand_as(own)
    drawn = torch.stack([torch.randn(own.shape[1:], generator=rng) for rng in rngs])
    size = own.norm(dim=1, keepdim=True) / math.sqrt(max(own.shape[1], 1))
    return drawn * (size if attack.std is None else attack.std)


def tailored(honest: Tensor, attackers: int, trim: int | None = None) -> Tensor:
    """The update [d] by which so many attackers move a trimmed mean of ``honest`` [n, d] furthest.

    mean - lambda * standard deviation; lambda is searched from 5 in steps that halve down to
    1e-5, and grows while the trimmed mean moves further. trim: None for ``attackers``.
    Shejwalkar and Houmansadr, "Manipulating the Byzantine", NDSS 2021.
    """
    mean = honest.mean(dim=0)
    deviation = honest.std(dim=0, correction=min(1, len(honest) - 1))
    most = (attackers + len(honest) - 1) // 2
    cut = min(attackers if trim is None else trim, most)

    def moved(strength: float) -> float:
        forged = (mean - strength * deviation).expand(attackers, -1)
        return float((trimmed_mean(torch.cat([forged, honest]), cut) - mean).norm())

    return mean - furthest(moved) * deviation


def furthest(moved: Callable[[float], float], start: float = 5.0, least: float = 1e-5) -> float:
    """The last strength at which ``moved`` was larger than ever before; 0 for none."""
    best, largest, strength, step = 0.0, 0.0, start, start / 2
    while step > least:
        distance = moved(strength)
        if distance > largest:
            best, largest = strength, distance
            strength += step
        else:
            strength -= step
        step /= 2
    return best


def turned_orders(ballots: Sequence[Any], back: bool = True) -> Any:
    """What these ballots elect together, the other way round, in every packed order of their tree.

    back: reversed; else rotated by half. A ballot that names some things alone gets one that names
    as many.
    """
    first = ballots[0]
    if not isinstance(first, dict):
        raise WireError("votes that are to be turned must be packed orders")
    if "bits" not in first:
        return {name: turned_orders([ballot[name] for ballot in ballots], back) for name in first}
    orders = [unpack_order(ballot) for ballot in ballots]
    size = int(first["of"])
    order = elected([ranks_of(order, size) for order in orders])
    turned = order.flip(0) if back else order.roll(size // 2)
    return pack_order(turned[size - len(orders[0]) :], size)
