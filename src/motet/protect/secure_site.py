"""A site's half of the secure sum; ``motet.protect.secure_sum`` says what is protected."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from motet.core.errors import ConfigError, SiteError, WireError
from motet.core.tree import Tree
from motet.protect.secure_sum import SecureSumSpec, check_secure_sum
from motet.protect.secure_words import (
    KEY_BYTES,
    add_mask,
    agreed,
    cryptography,
    digest,
    pair_mask,
    public_key,
    seal,
    self_mask,
    to_bytes,
    to_named,
    to_tensor,
    to_words,
    unseal,
)
from motet.protect.shamir import SHARE_BYTES, split

BOX_BYTES = 2 * SHARE_BYTES + 16
# Sums under way; the oldest is forgotten, and then nobody can open it.
KEPT = 16


@dataclass
class _Sum:
    """One sum at a site; what is None has not come yet."""

    draw: Callable[[int], bytes]
    box: bytes
    pair: bytes
    seed: bytes
    threshold: int = 0
    publics: dict[str, tuple[bytes, bytes]] | None = None
    held: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    masked: bool = False
    unmasked: tuple[tuple[str, ...], tuple[str, ...]] | None = None


class SecureSite:
    """A site's half: keys, shares for other sites, a masked vector, and shares of others' masks.

    secret: None takes keys from the operating system, as every real use must. In a simulation some
    bytes make all keys follow from them, the tag, and how often the tag was begun. What a sum
    comes to does not depend on keys, since masks cancel exactly.
    tag: names the question; every sum has one of its own. All errors name this site: WireError for
    what does not fit, SiteError for what a site must not do.
    """

    def __init__(self, name: str, spec: SecureSumSpec, secret: bytes | None = None) -> None:
        cryptography("hazmat.primitives.ciphers")
        self.name = name
        self.spec = spec
        self._secret = secret
        self._sums: dict[str, _Sum] = {}
        self._begun: dict[str, int] = {}

    def answer(self, op: str, payload: Any) -> Tree:
        """What ``SecureHub`` asks for: ``keys``, ``shares`` or ``unmask``, with its payload."""
        tag = payload.get("tag") if isinstance(payload, dict) else None
        if not isinstance(tag, str):
            raise self._unfit("a question without a tag")
        if op == "keys":
            return self.keys(tag)
        if op == "shares":
            return self.shares(tag, payload.get("keys"), payload.get("of"))
        if op == "unmask":
            return self.unmask(tag, payload.get("alive"), payload.get("dropped"))
        raise self._refuse(f"{op!r} is no question of a secure sum")

    def keys(self, tag: str) -> Tree:
        """Begins a sum, with new keys: {"box", "pair"}, public keys uint8 [32]."""
        self._sums.pop(tag, None)
        if len(self._sums) >= KEPT:
            del self._sums[next(iter(self._sums))]
        draw = self._draws(tag)
        begun = _Sum(draw, draw(KEY_BYTES), draw(KEY_BYTES), draw(KEY_BYTES))
        self._sums[tag] = begun
        public = {"box": public_key(begun.box), "pair": public_key(begun.pair)}
        return {name: to_tensor(key) for name, key in public.items()}

    def _draws(self, tag: str) -> Callable[[int], bytes]:
        if self._secret is None:
            return os.urandom
        # Never the same keys twice, or sums of one tag could be opened against each other.
        self._begun[tag] = self._begun.get(tag, 0) + 1
        about = json.dumps([self.name, tag, self._begun[tag]]).encode()
        stream = hashlib.shake_256(len(self._secret).to_bytes(8, "big") + self._secret + about)
        drawn = 0

        def draw(count: int) -> bytes:
            nonlocal drawn
            drawn += 1
            one = stream.copy()
            one.update(drawn.to_bytes(8, "big"))
            return one.digest(count)

        return draw

    def shares(self, tag: str, keys: Any, of: Any) -> Tree:
        """Shares of both secrets, one box for each neighbour.

        keys: neighbour -> what ``keys`` gave there. of: how many sites were asked for keys. Gives
        "boxes", neighbour -> uint8 [82], and "digests", holder -> uint8 [64].
        """
        own = self._sum(tag)
        if own.publics is not None:
            raise self._refuse(f"its shares for {tag!r} have left already")
        publics = self._publics(keys)
        if not isinstance(of, int) or isinstance(of, bool) or not len(publics) < of < 2**32:
            raise self._unfit(f"{len(publics)} neighbours' keys out of {of!r} sites")
        try:
            check_secure_sum(self.spec, of)
        except ConfigError as error:
            raise self._unfit(str(error)) from None
        own.threshold = self.spec.threshold(self.spec.holders(of))
        holders = sorted([*publics, self.name])
        if len(holders) < own.threshold:
            raise self._refuse(f"{len(holders)} sites for its shares, {own.threshold} are needed")
        points = range(1, len(holders) + 1)
        pair = split(own.pair, points, own.threshold, own.draw)
        seed = split(own.seed, points, own.threshold, own.draw)
        shares = dict(zip(holders, zip(pair, seed, strict=True), strict=True))
        boxes = {
            peer: self._seal(own, publics[peer][0], tag, peer, *shares[peer]) for peer in publics
        }
        own.publics = publics
        own.held[self.name] = shares[self.name]
        digests = {
            holder: to_tensor(b"".join(digest(part, tag, self.name, holder) for part in parts))
            for holder, parts in shares.items()
        }
        return {"boxes": boxes, "digests": digests}

    def _seal(self, own: _Sum, public: bytes, tag: str, peer: str, *parts: bytes) -> Tensor:
        try:
            secret = agreed(own.box, public)
        except WireError as error:
            raise self._unfit(f"the keys of {peer}: {error}") from None
        return to_tensor(seal(secret, b"".join(parts), tag, self.name, peer))

    def _publics(self, keys: Any) -> dict[str, tuple[bytes, bytes]]:
        if not isinstance(keys, dict) or not all(isinstance(name, str) for name in keys):
            raise self._unfit("keys without names")
        if self.name in keys:
            raise self._unfit("its own keys among its neighbours'")
        return {name: self._read(read_keys, keys[name], f"the keys of {name}") for name in keys}

    def mask(
        self,
        vector: Tensor,
        weight: float,
        tag: str,
        boxes: Any,
        rng: torch.Generator | None = None,
    ) -> Tree:
        """Weight * vector under masks: {"words"}, int32 [d]; open to no one on its own.

        vector: [d], cut to [-clip, clip]. weight: 0 to 1, this site's share of a total that was
        announced to all. boxes: neighbour -> box; those without one have dropped out. rng: for
        stochastic rounding. Raises WireError that names a site whose box is not what it sealed.
        """
        own = self._sum(tag)
        if own.publics is None or own.masked:
            state = "already has a masked vector" if own.masked else "has no shares"
            raise self._refuse(f"its sum {tag!r} {state}")
        rounding = self._rounding(rng)
        opened = self._opened(own, tag, boxes)
        if len(opened) + 1 < own.threshold:
            gone = ", ".join(sorted(own.publics.keys() - opened.keys()))
            raise self._refuse(
                f"{len(opened) + 1} sites are left for {tag!r}, {own.threshold} are needed; "
                f"missing: {gone}"
            )
        try:
            words = to_words(vector, weight, self.spec.clip, self.spec.bits, rounding)
            add_mask(words, self_mask(own.seed, tag, self.name))
            for peer in opened:
                key = pair_mask(own.pair, own.publics[peer][1], tag, self.name, peer)
                add_mask(words, key, minus=peer < self.name)
        except WireError as error:
            raise self._unfit(str(error)) from None
        own.held.update(opened)
        own.masked = True
        return {"words": torch.from_numpy(words).view(torch.int32)}

    def _rounding(self, rng: torch.Generator | None) -> torch.Generator | None:
        if self.spec.rounding == "nearest":
            return None
        if rng is None:
            raise ConfigError("protect.secure_sum.rounding: stochastic needs a generator")
        return rng

    def _opened(self, own: _Sum, tag: str, boxes: Any) -> dict[str, tuple[bytes, bytes]]:
        publics = own.publics or {}
        if not isinstance(boxes, dict) or not boxes.keys() <= publics.keys():
            raise self._unfit("shares from strangers")
        opened = {}
        for peer, value in boxes.items():
            what = f"the shares that {peer} sent"
            box = self._read(to_bytes, value, BOX_BYTES, what)
            try:
                plain = unseal(agreed(own.box, publics[peer][0]), box, tag, peer, self.name)
            except WireError as error:
                raise self._unfit(f"{what}: {error}") from None
            opened[peer] = (plain[:SHARE_BYTES], plain[SHARE_BYTES:])
        return opened

    def unmask(self, tag: str, alive: Any, dropped: Any) -> Tree:
        """Shares by which masks can be taken off the sum.

        alive: those whose masked vectors are in the sum, this site among them. dropped: those who
        gave shares and no masked vector. Gives "seeds", alive site -> share uint8 [33] of its own
        mask, and "pairs", dropped site -> share of its key to masks with others. Never both for
        one site: whoever has both can read its vector.
        """
        own = self._sum(tag)
        if not own.masked:
            raise self._refuse(f"it has no vector in {tag!r}")
        lists = self._lists(own, alive, dropped)
        if own.unmasked not in (None, lists):
            raise self._refuse(f"{tag!r} was opened with other survivors")
        if len(lists[0]) < own.threshold:
            raise self._refuse(
                f"{len(lists[0])} sites are left in {tag!r}, {own.threshold} are needed"
            )
        own.unmasked = lists
        return {
            "seeds": {peer: to_tensor(own.held[peer][1]) for peer in lists[0]},
            "pairs": {peer: to_tensor(own.held[peer][0]) for peer in lists[1]},
        }

    def _lists(
        self, own: _Sum, alive: Any, dropped: Any
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        for names in (alive, dropped):
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise self._unfit("survivors and dropouts without names")
        both = sorted(set(alive) & set(dropped))
        if both:
            raise self._refuse(f"{both[0]} is alive and dropped out at once: nobody gets both")
        if self.name not in alive:
            raise self._refuse("its vector was sent, and it is not among the survivors")
        strangers = sorted((set(alive) | set(dropped)) - own.held.keys())
        if strangers:
            raise self._unfit(f"it holds no share of {strangers[0]}")
        return tuple(sorted(set(alive))), tuple(sorted(set(dropped)))

    def _sum(self, tag: str) -> _Sum:
        if tag not in self._sums:
            raise self._refuse(f"no sum {tag!r} has begun here")
        return self._sums[tag]

    def _read(self, reader: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return reader(*arguments)
        except WireError as error:
            raise self._unfit(str(error)) from None

    def _unfit(self, reason: str) -> WireError:
        return WireError(f"site {self.name}, secure sum: {reason}")

    def _refuse(self, reason: str) -> SiteError:
        return SiteError(f"site {self.name} refuses a secure sum's step: {reason}")


def read_keys(value: Any, what: str) -> tuple[bytes, bytes]:
    """Both public keys that a site sent; WireError for anything else."""
    found = to_named(value, ("box", "pair"), what)
    return to_bytes(found["box"], KEY_BYTES, what), to_bytes(found["pair"], KEY_BYTES, what)
