"""Dishonest sites: an engine whose attackers change their replies before these reach the hub."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from motet.core import wire
from motet.core.errors import ConfigError
from motet.core.events import Events
from motet.core.guard import Passage, Protection
from motet.core.kinds import Kind
from motet.core.messages import Engine, Reply, Request, Traits
from motet.core.method import Method
from motet.core.middleware import pack_all, unpack_all
from motet.core.rng import generator
from motet.core.roster import sorted_names
from motet.core.store import write_atomic
from motet.core.tree import Tree, map_tensors, part_like
from motet.nn.robust import flat, unflat
from motet.protect import forgeries
from motet.protect.attack_spec import JOINT, ROW_ATTACKS, AttackSpec
from motet.protect.packing import Packer

__all__ = ["AttackSpec", "Hostile", "forge"]


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
    theirs together. Requests and replies are looked at as the method sees them, without codecs and
    packed updates; what attackers send is packed as the recipe says, but gets no noise. folder:
    where attackers keep what they were sent, so that a resumed run is attacked alike. Raises
    ConfigError when the method sends nothing to attack.
    """

    def __init__(
        self,
        engine: Engine,
        attack: AttackSpec,
        method: Method,
        *,
        seed: int,
        protection: Protection | None = None,
        events: Events | None = None,
        folder: Path | None = None,
    ) -> None:
        self.engine = engine
        self.attack = attack
        self.attackers = attack.attackers(sorted_names(engine.sites()), seed)
        self._seed = seed
        self._middleware = () if protection is None else protection.middleware
        guards = () if protection is None else protection.guards
        self._packers = [guard for guard in guards if isinstance(guard, Packer)]
        self._events = events
        self._sends = {name: found.sends for name, found in method.operations().items()}
        self._asks: dict[str, _Ask] = {}
        self._ready: deque[Reply] = deque()
        self._past = _Past(None if folder is None else folder / "attackers")
        if attack.kinds and not any(self._hit(op) for op in self._sends):
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
            site: self._arrived(reply.value, ask.requests[site])
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
                packed = self._leaving({**honest[site], **forged[site]}, ask.requests[site])
                reply = replace(reply, value=packed, up=wire.frame_size(packed))
            self._ready.append(reply)
        if liars and self._events is not None:
            note = {"round": ask.requests[liars[0]].round, "op": op, "tag": tag, "sites": liars}
            self._events.add("attacked", attack=self.attack.name, **note)

    def _arrived(self, value: Tree, request: Request) -> Tree:
        """A reply as the method would read it."""
        value = unpack_all(self._middleware, value)
        for packer in reversed(self._packers):
            value = packer.arrive(value, self._passage(request))
        return value

    def _leaving(self, value: Tree, request: Request) -> Tree:
        """A forged reply as it travels."""
        for packer in self._packers:
            value = packer.leave(value, self._passage(request))
        return pack_all(self._middleware, value, self._sends[request.op])

    def _passage(self, request: Request) -> Passage:
        site, op, tag = request.site, request.op, request.tag

        def rng(*key: str | int) -> torch.Generator:
            return generator(self._seed, site, "forged", op, tag, *key)

        sends = self._sends[op]
        return Passage(site, op, tag, request.round, sends, self._payload(request), {}, rng, {})

    def _payload(self, request: Request) -> Tree:
        """What a site was asked with, as it reads it."""
        return unpack_all(self._middleware, {**request.shared, **request.own})

    def _forge(
        self, key: str, ask: _Ask, sent: Mapping[str, Any], liars: Sequence[str]
    ) -> dict[str, Any]:
        """What each attacker sends under this key, given the honest values that are known."""
        own = [site for site in liars if site in sent]
        if not own:
            return {}
        if Kind.VOTES in self.attack.kinds:
            back = self.attack.name == "reversed-ranks"
            turned = forgeries.turned_orders([sent[site] for site in own], back)
            return dict.fromkeys(own, turned)
        tag = ask.requests[own[0]].tag
        if self.attack.name in ROW_ATTACKS:
            return {site: self._poisoned_rows(sent[site], site, tag, key) for site in own}
        bases = {site: self._reference(ask.requests[site], key, sent[site]) for site in sent}
        updates = {site: flat(value) - bases[site] for site, value in sent.items()}
        made = self._forged_updates(key, ask, own, bases, updates)
        return {site: unflat(bases[site] + made[site], sent[site]) for site in own}

    def _forged_updates(
        self,
        key: str,
        ask: _Ask,
        own: Sequence[str],
        bases: Mapping[str, Tensor],
        updates: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        requests, attack = ask.requests, self.attack
        rngs = {site: generator(self._seed, site, requests[site].tag, key) for site in own}
        if attack.name == "free-rider" and attack.update == "last":
            # A base of no size stands for nothing that was sent.
            return {
                site: self._past.step(f"{site} {requests[site].op} {key}", requests[site], base)
                + torch.zeros_like(updates[site])
                for site, base in bases.items()
                if site in own
            }
        if attack.name not in JOINT:
            rows = {site: updates[site].unsqueeze(0) for site in own}
            return {site: forge(attack, row, row, [rngs[site]])[0] for site, row in rows.items()}
        if len({len(update) for update in updates.values()}) > 1:
            raise ConfigError(f"attackers cannot put {key!r} together: sites' sizes of it differ")
        others = [update for site, update in updates.items() if site not in own]
        mine = torch.stack([updates[site] for site in own])
        known = torch.stack(others) if others else mine
        made = forge(attack, mine, known, list(rngs.values()), asked=len(requests))
        return dict(zip(own, made, strict=True))

    def _poisoned_rows(self, value: Any, site: str, tag: str, key: str) -> Any:
        """The value with every matrix of rows changed; permutations are all attackers' alike."""
        own = generator(self._seed, site, tag, key)

        def change(rows: Tensor) -> Tensor:
            if not rows.is_floating_point() or rows.dim() < 2:
                return rows
            if self.attack.name == "permuted-rows":
                return forgeries.permuted_rows(rows, generator(self._seed, tag, "rows"))
            if self.attack.name == "random-representations":
                return forgeries.random_rows(rows, own)
            return forgeries.swapped_rows(rows)

        return map_tensors(change, value)

    def _reference(self, request: Request, key: str, value: Any) -> Tensor:
        """What an update under this key is the difference to: [d], or 0 where nothing was sent."""
        found = part_like(self._payload(request).get(key), value)
        return torch.zeros(()) if found is None else flat(found)


def forge(
    attack: AttackSpec,
    own: Tensor,
    known: Tensor,
    rngs: Sequence[torch.Generator],
    *,
    asked: int | None = None,
) -> Tensor:
    """What attackers send in place of their honest updates ``own``: [attackers, d].

    known: honest updates [k, d] that they take for those of the others. rngs: one per attacker.
    asked: how many sites were; None for the attackers and those that they know of.
    """
    count = len(own)
    total = count + len(known) if asked is None else asked
    match attack.name:
        case "sign-flip":
            return -attack.factor * own
        case "random-signs":
            return forgeries.random_signs(own, rngs)
        case "label-flip" | "backdoor":
            return attack.boost * own
        case "noise":
            return forgeries.normal_noise(own, attack.std, rngs)
        case "free-rider" if attack.update == "noise":
            return forgeries.uniform_noise(own, attack.std or 1e-3, rngs)
        case "free-rider":
            return torch.zeros_like(own)
        case "fang" if attack.against == "trimmed-mean":
            return forgeries.directed_extremes(known, rngs, known=attack.knowledge == "all")
    return _one_for_all(attack, own, known, total).expand_as(own)


def _one_for_all(attack: AttackSpec, own: Tensor, known: Tensor, total: int) -> Tensor:
    """The one update [d] that all attackers send."""
    count = len(own)
    match attack.name:
        case "scaled":
            return -attack.factor * own.mean(dim=0)
        case "alie":
            # Attackers alone with each other have nobody to hide from.
            strength = forgeries.alie_strength(total, count) if total > count else 0.0
            return forgeries.alie(known, strength)
        case "ipm":
            return forgeries.inner_product(known, attack.eps)
        case "min-max":
            return forgeries.min_max(known, attack.perturbation)
        case "min-sum":
            return forgeries.min_sum(known, attack.perturbation)
        case "fang":
            return forgeries.directed_krum(known, count)
        case "tailored" if attack.against == "krum":
            return forgeries.tailored_krum(known, count)
        case "tailored":
            return forgeries.tailored(known, count, attack.trim)
    raise ConfigError(f"the attack {attack.name!r} forges no updates")


class _Past:
    """What attackers were sent in the last rounds, by name: in memory, and in a file if wanted."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._kept: dict[str, dict[str, Tensor]] = {}
        if path is not None and path.exists():
            self._kept = wire.decode(path.read_bytes())

    def step(self, name: str, request: Request, now: Tensor) -> Tensor:
        """The change per round since an earlier round; 0 for the first."""
        kept = {int(number): value for number, value in self._kept.get(name, {}).items()}
        earlier = [number for number in kept if number < request.round]
        kept[request.round] = now
        # The round before, too: a resumed run may ask again for the last one.
        newest = sorted(kept)[-3:]
        self._kept[name] = {str(number): kept[number].clone() for number in newest}
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, wire.encode(self._kept))
        if not earlier or kept[max(earlier)].shape != now.shape:
            return torch.zeros_like(now)
        return (now - kept[max(earlier)]) / (request.round - max(earlier))
