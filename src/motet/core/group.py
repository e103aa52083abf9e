"""Groups of sites: who belongs to one, who is drawn, and what they answer when asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from motet.core.errors import ConfigError, MotetError, SiteError
from motet.core.messages import Request, Traits, bytes_by_kind
from motet.core.middleware import pack_all, unpack_all
from motet.core.replies import Replies
from motet.core.tree import Tree

if TYPE_CHECKING:
    from motet.core.federation import Federation


class Group:
    """Some sites, sorted by name."""

    def __init__(self, fed: Federation, names: Sequence[str]) -> None:
        self._fed = fed
        self.names = tuple(names)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    @property
    def traits(self) -> dict[str, Traits]:
        """Site -> what the hub knows of it."""
        known = self._fed.engine.sites()
        return {name: known[name] for name in self.names}

    def where(self, *, modality: str) -> Group:
        """Those of the group that hold this modality."""
        traits = self.traits
        return Group(self._fed, [name for name in self if modality in traits[name].modalities])

    def sample(self, count: int) -> Group:
        """``count`` of the group, uniformly without replacement; all when there are fewer."""
        if count < 1:
            raise ConfigError(f"a sample has at least 1 site, not {count}")
        if count >= len(self):
            return self
        self._fed._drawn += 1
        rng = self._fed.numpy_rng("sample", self._fed._drawn)
        chosen = rng.choice(len(self), count, replace=False)
        return Group(self._fed, sorted(self.names[i] for i in chosen))

    def ask(
        self,
        op: Callable[..., Any],
        *,
        each: Mapping[str, Tree] | None = None,
        quorum: int | float | None = None,
        timeout: float | None = None,
        **payload: Any,
    ) -> Replies:
        """Asks every site of the group to run ``op``, an ``@at_site`` function of the method.

        payload: the same arguments for all. each: site -> further arguments of its own.
        quorum: how many answers suffice: a whole number, or a share of the group from 0.0 to 1.0;
        None wants all. timeout: seconds after which the rest is given up. Raises SiteError with
        the first failure when too few answered.
        """
        return _ask(self, op.__name__, each or {}, quorum, timeout, payload)


def _ask(
    group: Group,
    op: str,
    each: Mapping[str, Tree],
    quorum: int | float | None,
    timeout: float | None,
    payload: Tree,
) -> Replies:
    fed = group._fed
    if op not in fed._operations:
        raise ConfigError(f"{op} is not an @at_site function of {type(fed.method).__name__}")
    strangers = sorted(set(each) - set(group))
    if strangers:
        raise ConfigError(f"each= names {strangers[0]!r}, which is not asked: {list(group)} are")
    needed = _needed(quorum, len(group))
    fed._asked += 1
    tag = f"{fed._loop}.{fed.round}.{fed._asked}"
    takes = fed._operations[op].takes
    shared = pack_all(fed._middleware, payload, takes)
    own = {name: pack_all(fed._middleware, dict(each.get(name, {})), takes) for name in group}
    requests = [Request(name, op, tag, fed.round, shared, own[name]) for name in group]
    fed.engine.send(requests)
    fed._touched.update(group)
    values, failed = _gather(fed, op, tag, requests, timeout)
    if len(values) < needed:
        reason = next(iter(failed.values()), "the group is empty")
        raise SiteError(
            f"{len(values)} of {len(group)} sites answered, {needed} were wanted: {reason}"
        )
    return Replies(values, failed)


def _needed(quorum: int | float | None, size: int) -> int:
    if quorum is None:
        return size
    if quorum < 0 or (isinstance(quorum, float) and quorum > 1):
        raise ConfigError(f"quorum is a whole number, or a share from 0.0 to 1.0, not {quorum}")
    # 0.07 of 100 sites are 7, and not the 8 to which 7.000000000000001 would be rounded up.
    return math.ceil(round(quorum * size, 9)) if isinstance(quorum, float) else quorum


def _gather(
    fed: Federation,
    op: str,
    tag: str,
    requests: Sequence[Request],
    timeout: float | None,
) -> tuple[dict[str, Tree], dict[str, str]]:
    """Receives until every request is answered or the time is over; tells the events."""
    operation = fed._operations[op]
    down = bytes_by_kind(requests[0].shared, operation.takes) if requests else {}
    waiting = {request.site: request for request in requests}
    values: dict[str, Tree] = {}
    failed: dict[str, str] = {}
    end = None if timeout is None else time.monotonic() + timeout
    while waiting:
        reply = fed.engine.recv(None if end is None else max(end - time.monotonic(), 0.0))
        if reply is None:
            late = "no answer" if timeout is None else f"no answer within {timeout} s"
            failed.update(dict.fromkeys(waiting, late))
            break
        if reply.tag != tag or reply.site not in waiting:
            continue
        request = waiting.pop(reply.site)
        note: Tree = {"round": fed.round, "site": reply.site, "op": op, "tag": tag}
        own = bytes_by_kind(request.own, operation.takes)
        kinds = {kind: down.get(kind, 0) + own.get(kind, 0) for kind in {**down, **own}}
        note["down"] = {"frame": reply.down, **kinds}
        try:
            if reply.value is None:
                raise SiteError(reply.error or f"site {reply.site} gives no reason")
            values[reply.site] = unpack_all(fed._middleware, reply.value)
        except MotetError as error:
            failed[reply.site] = str(error)
            fed._note("failed", **note, error=failed[reply.site])
            continue
        note["up"] = {"frame": reply.up, **bytes_by_kind(reply.value, operation.sends)}
        fed._note("replied", **note)
    for site in waiting:
        fed._note("failed", round=fed.round, site=site, op=op, tag=tag, error=failed[site])
    return values, failed
