"""The hub's half of the secure sum; ``motet.protect.secure_sum`` says what is protected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from motet.core.errors import SiteError, WireError
from motet.core.rng import generator
from motet.core.tree import Tree
from motet.protect.secure_site import BOX_BYTES, KEPT, read_keys
from motet.protect.secure_sum import SecureSumSpec, check_secure_sum
from motet.protect.secure_words import (
    DIGEST_BYTES,
    Words,
    add_mask,
    cryptography,
    digest,
    from_words,
    is_vector,
    neighbourhoods,
    pair_mask,
    public_key,
    self_mask,
    to_bytes,
    to_named,
    to_tensor,
)
from motet.protect.shamir import SHARE_BYTES, combine

# Operation, site -> payload; gives site -> reply, without those that did not answer.
Ask: TypeAlias = Callable[[str, Mapping[str, Tree]], Mapping[str, Tree]]


@dataclass
class _Sum:
    """One sum at the hub: who is in it, and what they sent."""

    asked: tuple[str, ...]
    failed: dict[str, str] = field(default_factory=dict)
    publics: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    near: dict[str, tuple[str, ...]] = field(default_factory=dict)
    digests: dict[str, dict[str, bytes]] = field(default_factory=dict)


class SecureHub:
    """Asks for keys and shares, sends shares on, and opens the sum of those who survive.

    ask: puts a question ("keys", "shares", "unmask": see ``SecureSite.answer``) to sites, and
    gives the replies of those that answered. seed: the ring of neighbours follows from it and the
    tag; None for one that nobody can foretell.
    failed: site -> what went wrong with it in the last sum.
    """

    def __init__(self, spec: SecureSumSpec, ask: Ask, seed: int | None = None) -> None:
        cryptography("hazmat.primitives.ciphers")
        self.spec = spec
        self.failed: dict[str, str] = {}
        self._ask = ask
        self._seed = seed
        self._sums: dict[str, _Sum] = {}

    def prepare(self, tag: str, sites: Sequence[str]) -> dict[str, Tree]:
        """Keys and shares; gives site -> {"boxes"}, what its ``mask`` needs.

        Sites that are not in it have dropped out, and are not to be asked for a vector. Raises
        SiteError that names who is missing when fewer than the threshold are left, and ConfigError
        for a number of sites that cannot be.
        """
        check_secure_sum(self.spec, len(sites))
        new = _Sum(tuple(sorted(sites)))
        replies = self._phase(new, "keys", {site: {"tag": tag} for site in new.asked})
        self._read(new, replies, lambda site, reply: self._take_keys(new, site, reply))
        self._enough(new, "keys", new.publics)
        rng = torch.Generator()
        if self._seed is None:
            rng.seed()
        else:
            rng = generator(self._seed, "secure sum", tag)
        new.near = neighbourhoods(sorted(new.publics), self.spec.neighbours, rng)
        boxes = self._shares(new, tag)
        self._sums.pop(tag, None)
        if len(self._sums) >= KEPT:
            del self._sums[next(iter(self._sums))]
        self._sums[tag] = new
        senders = boxes.keys()
        return {
            site: {"boxes": {peer: boxes[peer][site] for peer in new.near[site] if peer in senders}}
            for site in boxes
        }

    def _take_keys(self, new: _Sum, site: str, reply: Tree) -> None:
        new.publics[site] = read_keys(reply, "its keys")

    def _shares(self, new: _Sum, tag: str) -> dict[str, dict[str, Tensor]]:
        known = {
            site: {"box": to_tensor(box), "pair": to_tensor(pair)}
            for site, (box, pair) in new.publics.items()
        }
        each: dict[str, Tree] = {
            site: {"tag": tag, "of": len(new.asked), "keys": {peer: known[peer] for peer in near}}
            for site, near in new.near.items()
        }
        boxes: dict[str, dict[str, Tensor]] = {}

        def take(site: str, reply: Tree) -> None:
            parts = to_named(reply, ("boxes", "digests"), "its shares")
            sealed = to_named(parts["boxes"], new.near[site], "its boxes")
            for peer, box in sealed.items():
                to_bytes(box, BOX_BYTES, f"its box for {peer}")
            holders = (*new.near[site], site)
            digests = to_named(parts["digests"], holders, "its digests")
            new.digests[site] = {
                peer: to_bytes(value, 2 * DIGEST_BYTES, f"its digest for {peer}")
                for peer, value in digests.items()
            }
            boxes[site] = sealed

        self._read(new, self._phase(new, "shares", each), take)
        self._enough(new, "shares", boxes)
        return boxes

    def check(self, tag: str, site: str, masked: Any, size: int | None = None) -> None:
        """Raises WireError that names the site unless this is a masked vector of that size."""
        known = self._sums.get(tag)
        if known is None or site not in known.digests:
            raise WireError(f"site {site}: no vector of it is expected for {tag!r}")
        words = masked.get("words") if isinstance(masked, dict) and len(masked) == 1 else None
        if words is None or not is_vector(words, torch.int32):
            raise WireError(f"site {site}: its masked vector is not int32 [d] under 'words' alone")
        if size is not None and len(words) != size:
            raise WireError(f"site {site}: its masked vector has {len(words)} numbers, not {size}")

    def open(self, tag: str, masked: Mapping[str, Tree], size: int | None = None) -> Tensor:
        """The sum of these sites' vectors, each times its weight: float64 [d].

        masked: site -> what its ``mask`` gave. size: numbers of a vector; None for what most have.
        Raises WireError that names a site whose masked vector is none (leave it out, and it counts
        as dropped out), and SiteError that names who is missing when fewer than the threshold are
        left; then nothing is opened, and the sum is over.
        """
        for site, value in masked.items():
            self.check(tag, site, value)
        sizes = Counter(len(value["words"]) for value in masked.values())
        usual = sizes.most_common(1)[0][0] if size is None and sizes else size
        for site, value in masked.items():
            self.check(tag, site, value, usual)
        known = self._sums.pop(tag, None)
        if known is None:
            raise SiteError(f"no secure sum {tag!r} was prepared")
        alive = sorted(masked)
        dropped = sorted(known.digests.keys() - masked.keys())
        for site in dropped:
            known.failed.setdefault(site, "no masked vector")
        self._enough(known, "vectors", alive)
        seeds, pairs = self._secrets(known, tag, alive, dropped)
        words = np.zeros(usual or 0, dtype=np.uint32)
        for site in alive:
            words += _words(masked[site]["words"])
            add_mask(words, self_mask(seeds[site], tag, site), minus=True)
        for site in dropped:
            for peer in set(known.near[site]) & masked.keys():
                key = pair_mask(pairs[site], known.publics[peer][1], tag, site, peer)
                # What the survivor did is undone: it took off the mask of who comes before it.
                add_mask(words, key, minus=peer < site)
        return from_words(words, self.spec.clip, self.spec.bits)

    def _secrets(
        self, known: _Sum, tag: str, alive: Sequence[str], dropped: Sequence[str]
    ) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """What is behind the own masks of the alive, and behind the pair masks of the dropped."""

        def near(site: str, names: Iterable[str]) -> list[str]:
            return [name for name in names if name == site or name in known.near[site]]

        each: dict[str, Tree] = {
            site: {"tag": tag, "alive": near(site, alive), "dropped": near(site, dropped)}
            for site in alive
        }
        shares: dict[str, dict[str, bytes]] = {}

        def take(site: str, reply: Tree) -> None:
            found = to_named(reply, ("seeds", "pairs"), "its shares of masks")
            seeds = to_named(found["seeds"], each[site]["alive"], "its shares of seeds")
            pairs = to_named(found["pairs"], each[site]["dropped"], "its shares of pairs")
            shares[site] = {
                owner: self._share(known, tag, owner, site, value, owner in pairs)
                for owner, value in {**seeds, **pairs}.items()
            }

        self._read(known, self._phase(known, "unmask", each), take)
        self._enough(known, "unmask", shares)
        seeds = {site: self._restored(known, site, shares) for site in alive}
        # A key that is in the sum of no survivor need not be restored, and often cannot be.
        needed = [site for site in dropped if near(site, alive)]
        pairs = {site: self._restored(known, site, shares) for site in needed}
        for site, secret in pairs.items():
            if public_key(secret) != known.publics[site][1]:
                raise SiteError(f"site {site}: its shares do not restore the key that it announced")
        return seeds, pairs

    def _share(
        self, known: _Sum, tag: str, owner: str, holder: str, value: Any, pair: bool
    ) -> bytes:
        share = to_bytes(value, SHARE_BYTES, f"its share of {owner}")
        expected = known.digests[owner][holder]
        half = expected[:DIGEST_BYTES] if pair else expected[DIGEST_BYTES:]
        if digest(share, tag, owner, holder) != half:
            raise WireError(f"its share of {owner} is not the one that {owner} gave it")
        return share

    def _restored(
        self, known: _Sum, owner: str, shares: Mapping[str, Mapping[str, bytes]]
    ) -> bytes:
        holders = sorted([*known.near[owner], owner])
        points = {
            number: shares[holder][owner]
            for number, holder in enumerate(holders, start=1)
            if holder in shares
        }
        needed = self.spec.threshold(self.spec.holders(len(known.asked)))
        if len(points) < needed:
            gone = [holder for holder in holders if holder not in shares]
            raise self._too_few(known, f"shares of {owner}", len(points), needed, gone)
        try:
            return combine(dict(list(points.items())[:needed]))
        except WireError as error:
            raise SiteError(f"site {owner}: its secret cannot be restored: {error}") from None

    def _phase(self, known: _Sum, op: str, each: Mapping[str, Tree]) -> dict[str, Tree]:
        replies = self._ask(op, each)
        for site in each.keys() - replies.keys():
            known.failed[site] = f"no answer to {op}"
        return {site: replies[site] for site in sorted(each.keys() & replies.keys())}

    def _read(
        self, known: _Sum, replies: Mapping[str, Tree], take: Callable[[str, Tree], None]
    ) -> None:
        """Whoever sends garbage has dropped out, as if it had sent nothing."""
        for site, reply in replies.items():
            try:
                take(site, reply)
            except WireError as error:
                known.failed[site] = str(error)

    def _enough(self, known: _Sum, phase: str, left: Iterable[str]) -> None:
        self.failed = dict(known.failed)
        names = set(left)
        needed = self.spec.threshold(len(known.asked))
        if len(names) < needed:
            gone = [site for site in known.asked if site not in names]
            raise self._too_few(known, phase, len(names), needed, gone)

    def _too_few(
        self, known: _Sum, phase: str, left: int, needed: int, gone: Sequence[str]
    ) -> SiteError:
        reasons = ", ".join(f"{site} ({known.failed.get(site, 'gone before')})" for site in gone)
        return SiteError(
            f"secure sum, {phase}: {left} of {left + len(gone)} sites are left, {needed} are "
            f"needed, and nothing was opened; missing: {reasons}"
        )


def _words(sent: Tensor) -> Words:
    words: Words = sent.cpu().contiguous().numpy().view(np.uint32)
    return words
