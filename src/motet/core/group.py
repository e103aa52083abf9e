"""Groups of sites: who belongs to one, who is drawn, and what they answer when asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from motet.core.errors import ConfigError, SiteError
from motet.core.exchange import Exchange
from motet.core.folding import By
from motet.core.messages import Traits
from motet.core.middleware import pack_all
from motet.core.replies import Replies
from motet.core.roster import Names, Roster, Without
from motet.core.tree import Tree, leaves

if TYPE_CHECKING:
    from motet.core.federation import Federation
    from motet.core.posted import Pending


class Group:
    """Some sites, sorted by name."""

    def __init__(
        self, fed: Federation, names: Sequence[str], *, chance: float = 1.0, of: int | None = None
    ) -> None:
        self._fed = fed
        # A large population is no list.
        self.names = names if isinstance(names, Names | Without) else tuple(names)
        # With which probability any one site is in the group, and of how many: privacy needs it.
        self._chance = chance
        self._of = len(self.names) if of is None else of

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    @property
    def traits(self) -> Mapping[str, Traits]:
        """Site -> what the hub knows of it."""
        known = self._fed.engine.sites()
        if isinstance(self.names, Names):
            return Roster(self.names, known.__getitem__)
        return {name: known[name] for name in self.names}

    def where(self, *, modality: str) -> Group:
        """Those of the group that hold this modality."""
        traits = self.traits
        if isinstance(self.names, Names):
            held = [
                prefix
                for prefix in self.names.counts
                if modality in traits[f"{prefix}-1"].modalities
            ]
            return Group(self._fed, self.names.only(held))
        return Group(self._fed, [name for name in self if modality in traits[name].modalities])

    def sample(self, count: int) -> Group:
        """``count`` of the group, uniformly without replacement; all when there are fewer.

        Where the recipe's privacy samples by Poisson, each site with an equal chance of its own,
        so that ``count`` is what comes on average, and none at all may come.
        """
        if count < 1:
            raise ConfigError(f"a sample has at least 1 site, not {count}")
        if count >= len(self):
            return self
        self._fed._drawn += 1
        rng = self._fed.numpy_rng("sample", self._fed._drawn)
        chance = count / len(self)
        if self._fed.protection.poisson:
            places = np.flatnonzero(rng.random(len(self)) < chance).tolist()
            names = [self.names[place] for place in places]
        else:
            chosen = rng.choice(len(self), count, replace=False)
            names = sorted(self.names[int(i)] for i in chosen)
        return Group(self._fed, names, chance=chance, of=len(self))

    def ask(
        self,
        op: Callable[..., Any],
        *,
        each: Mapping[str, Tree] | None = None,
        quorum: int | float | None = None,
        timeout: float | None = None,
        averaged: Mapping[str, By] | None = None,
        **payload: Any,
    ) -> Replies:
        """Asks every site of the group to run ``op``, an ``@at_site`` function of the method.

        payload: the same arguments for all. each: site -> further arguments of its own.
        quorum: how many answers suffice: a whole number, or a share of the group from 0.0 to 1.0;
        None wants all. timeout: seconds after which the rest is given up. averaged: key of the
        answers -> what weighs its mean (see ``Replies.mean``), where the method reads that mean
        alone: answers are then taken into it as they come, and none is held. Raises SiteError with
        the first failure when too few answered.
        """
        exchange = begin(self, op.__name__, payload, each or {}, averaged)
        return _ask(exchange, self, quorum, timeout)

    def post(
        self,
        op: Callable[..., Any],
        *,
        each: Mapping[str, Tree] | None = None,
        timeout: float | None = None,
        **payload: Any,
    ) -> Pending:
        """Asks like ``ask`` and does not wait: ``fed.collect`` gives the answers, once they come.

        What is posted must not be changed in place afterwards. timeout: seconds after which an
        answer counts as lost. A site has one such question at a time: raises ConfigError for one
        that is still at work (``fed.free`` are the others).
        """
        return self._fed._posted.post(self, op.__name__, each or {}, timeout, payload)


def _ask(
    exchange: Exchange, group: Group, quorum: int | float | None, timeout: float | None
) -> Replies:
    fed = group._fed
    exchange.spend()
    fed._catch_up(group)
    exchange.prepare(timeout)
    needed = _needed(quorum, len(group))
    fed._introduce(group)
    exchange.send()
    fed._touched.update(set(group) - fed._posted.busy)
    exchange.gather(timeout)
    if len(exchange.values) < needed:
        reason = next(iter(exchange.failed.values()), "the group is empty")
        raise SiteError(
            f"{len(exchange.values)} of {len(group)} sites answered, {needed} were wanted: {reason}"
        )
    return exchange.replies()


def begin(
    group: Group,
    op: str,
    payload: Tree,
    each: Mapping[str, Tree],
    averaged: Mapping[str, By] | None = None,
) -> Exchange:
    """A question to a group that is not sent yet; raises ConfigError for what cannot be asked."""
    fed = group._fed
    if op not in fed._operations:
        raise ConfigError(f"{op} is not an @at_site function of {type(fed.method).__name__}")
    strangers = sorted(set(each) - set(group))
    if strangers:
        raise ConfigError(f"each= names {strangers[0]!r}, which is not asked: {list(group)} are")
    fed._asked += 1
    tag = f"{fed._loop}.{fed.round}.{fed._asked}"
    middleware, takes = fed.protection.middleware, fed._operations[op].takes
    given = {name: dict(each.get(name, {})) for name in group}
    # What cannot travel is named before anything is sent.
    for sent in (payload, *given.values()):
        leaves(sent)
    shared = pack_all(middleware, payload, takes)
    own = {name: pack_all(middleware, sent, takes) for name, sent in given.items()}
    return Exchange(fed, group, op, tag, shared, own, averaged=averaged)


def _needed(quorum: int | float | None, size: int) -> int:
    if quorum is None:
        return size
    if quorum < 0 or (isinstance(quorum, float) and quorum > 1):
        raise ConfigError(f"quorum is a whole number, or a share from 0.0 to 1.0, not {quorum}")
    # 0.07 of 100 sites are 7, and not the 8 to which 7.000000000000001 would be rounded up.
    return math.ceil(round(quorum * size, 9)) if isinstance(quorum, float) else quorum
