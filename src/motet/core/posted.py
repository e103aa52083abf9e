"""Questions that are posted, and whose answers are collected later on: asynchronous rounds."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from motet.core.errors import ConfigError
from motet.core.exchange import Exchange, now
from motet.core.group import Group, begin
from motet.core.messages import Reply
from motet.core.replies import Origin, Replies
from motet.core.tree import Tree

if TYPE_CHECKING:
    from motet.core.federation import Federation


class Pending:
    """One question that was posted: its round, and the sites whose answers are not collected yet.

    timeout: seconds after which an answer counts as lost; None for the recipe's.
    """

    def __init__(self, exchange: Exchange, timeout: float | None) -> None:
        self.exchange = exchange
        self.timeout = exchange.fed.patience.timeout if timeout is None else timeout
        self.sites = set(exchange.question.sites)
        # Until when the answers must be there that still are to come.
        self.due: dict[str, float] = {}

    @property
    def tag(self) -> str:
        """The question's tag."""
        return self.exchange.question.tag

    @property
    def round(self) -> int:
        """The round in which it was posted."""
        return self.exchange.question.round

    def renew(self, sites: Iterable[str]) -> None:
        """From now on these have the whole timeout."""
        end = math.inf if self.timeout is None else now(self.exchange.fed) + self.timeout
        self.due.update(dict.fromkeys(sites, end))


_Came: TypeAlias = tuple[Pending, str, Reply | str]


class Posted:
    """All questions of a run that are posted and not collected.

    A checkpoint holds them: after a resume they are asked again under the same tags. What sites
    held before they were asked is saved first, so that the work is done once, as seen from there.
    """

    def __init__(self, fed: Federation) -> None:
        self._fed = fed
        self._pending: dict[str, Pending] = {}
        # What came, in that order, and is not collected; a reason where a site was given up.
        self._came: list[_Came] = []

    @property
    def busy(self) -> frozenset[str]:
        """Sites that have such a question."""
        return frozenset(site for pending in self._pending.values() for site in pending.sites)

    def post(
        self,
        group: Group,
        op: str,
        each: Mapping[str, Tree],
        timeout: float | None,
        payload: Tree,
    ) -> Pending:
        """Sends a question; see ``Group.post``."""
        taken = sorted(self.busy.intersection(group))
        if taken:
            raise ConfigError(
                f"site {taken[0]} is still at work on a question that was posted; collect its "
                "answer first, or post to fed.free"
            )
        exchange = begin(group, op, payload, each)
        _check_single(exchange)
        exchange.spend()
        self._fed._catch_up(group)
        self._fed._save_first(group)
        self._fed._introduce(group)
        pending = self._add(exchange, timeout, exchange.strangers())
        asked, sites = exchange.question, [request.site for request in exchange.requests]
        self._fed._note("posted", round=asked.round, op=op, tag=asked.tag, sites=sites)
        return pending

    def _add(self, exchange: Exchange, timeout: float | None, lost: Mapping[str, str]) -> Pending:
        """Sends the question to all sites but the lost ones, which will be given up."""
        pending = Pending(exchange, timeout)
        if pending.sites:
            self._pending[pending.tag] = pending
        self._came += [(pending, site, reason) for site, reason in lost.items()]
        exchange.keep(pending.sites - lost.keys())
        exchange.send()
        pending.renew(exchange.waiting)
        return pending

    def keeps(self, reply: Reply) -> bool:
        """Whether a reply answers a posted question; it is then put by."""
        pending = self._pending.get(reply.tag)
        if pending is None or reply.site not in pending.due:
            return False
        if pending.exchange.ends(reply):
            del pending.due[reply.site]
            self._came.append((pending, reply.site, reply))
        else:
            pending.renew([reply.site])
        return True

    def collect(
        self,
        wanted: Collection[Pending] | None,
        count: int,
        most: int | None,
        timeout: float | None,
    ) -> Replies:
        """Waits for answers; see ``Federation.collect``."""
        chosen = list(self._pending.values()) if wanted is None else list(wanted)
        end = math.inf if timeout is None else now(self._fed) + timeout
        most = count if most is None else most
        while len(self._ended(chosen)) < count and any(pending.due for pending in chosen):
            if not self._wait(end):
                break
        while len(self._ended(chosen)) < most and self._wait(now(self._fed), poll=True):
            pass
        return self._take(self._ended(chosen)[:most])

    def _ended(self, chosen: Collection[Pending]) -> list[_Came]:
        return [came for came in self._came if came[0] in chosen]

    def _wait(self, end: float, *, poll: bool = False) -> bool:
        """Waits for one more reply, or for a question to be lost; whether either came to pass."""
        fed = self._fed
        dues = [due for pending in self._pending.values() for due in pending.due.values()]
        first = min(dues, default=math.inf)
        until = min(end, first)
        reply = fed.engine.recv(None if until == math.inf else max(until - now(fed), 0.0))
        if reply is None:
            # No reply came until then, or none is on its way at all.
            if poll or not dues or end < first:
                return False
            self._lose(first)
        elif not self.keeps(reply):
            fed._ignore(reply)
        return True

    def _lose(self, until: float) -> None:
        """Asks those again whose time is over, or gives them up."""
        for pending in list(self._pending.values()):
            late = sorted(site for site, due in pending.due.items() if due <= until)
            lost = pending.exchange.late(late, pending.timeout)
            pending.renew(late)
            for site, reason in lost.items():
                del pending.due[site]
                self._came.append((pending, site, reason))

    def _take(self, taken: list[_Came]) -> Replies:
        values: dict[str, Tree] = {}
        failed: dict[str, str] = {}
        origins: dict[str, Origin] = {}
        exchanges: list[Exchange] = []
        for pending, site, came in taken:
            exchange = pending.exchange
            if exchange not in exchanges:
                exchanges.append(exchange)
            if isinstance(came, Reply):
                exchange.take(came)
            else:
                exchange.give_up(site, came)
            pending.sites.discard(site)
            self._came.remove((pending, site, came))
            if not pending.sites:
                del self._pending[pending.tag]
        for exchange in exchanges:
            exchange.settle()
            values |= exchange.values
            failed |= exchange.failed
            origins |= {site: exchange.combining.origin(site) for site in exchange.values}
            exchange.values, exchange.failed = {}, {}
        # Only from here on do these count in the run, with whatever they left at their sites.
        self._fed._touched.update(site for _, site, _ in taken)
        return Replies(values, failed, combine=_rule(exchanges), origins=origins)

    def tree(self) -> Tree:
        """The open questions as plain values; payloads that several share are there once."""
        payloads: list[Tree] = []
        questions = [self._plain(pending, payloads) for pending in self._pending.values()]
        return {"payloads": payloads, "questions": questions} if questions else {}

    def _plain(self, pending: Pending, payloads: list[Tree]) -> Tree:
        requests = {request.site: request for request in pending.exchange.requests}
        shared = next((request.shared for request in requests.values()), {})
        number = next((i for i, held in enumerate(payloads) if held is shared), len(payloads))
        if number == len(payloads):
            payloads.append(shared)
        asked, moment = pending.exchange.question, now(self._fed)
        lost = {
            site: came for at, site, came in self._came if at is pending and isinstance(came, str)
        }
        return {
            "op": asked.op,
            "tag": asked.tag,
            "round": asked.round,
            "payload": number,
            "own": {site: requests[site].own for site in sorted(pending.sites & set(requests))},
            "sites": sorted(pending.sites),
            "lost": lost,
            "timeout": pending.timeout,
            "left": {site: due - moment for site, due in pending.due.items() if due < math.inf},
            "again": dict(pending.exchange.asked_again),
            "chance": asked.chance,
            "of": asked.population,
        }

    def put_back(self, tree: Tree) -> None:
        """Asks the questions of a checkpoint again, in place of those that are open now."""
        self._pending.clear()
        self._came.clear()
        for asked in tree.get("questions", []):
            exchange = Exchange(
                self._fed,
                Group(self._fed, asked["sites"], chance=asked["chance"], of=asked["of"]),
                asked["op"],
                asked["tag"],
                tree["payloads"][asked["payload"]],
                {site: asked["own"].get(site, {}) for site in asked["sites"]},
                asked["round"],
            )
            exchange.asked_again = dict(asked["again"])
            lost = {**exchange.strangers(), **asked["lost"]}
            pending = self._add(exchange, asked["timeout"], lost)
            moment = now(self._fed)
            pending.due |= {site: moment + left for site, left in asked["left"].items()}


def _check_single(exchange: Exchange) -> None:
    """Refuses protection that puts the answers to one question together as a whole."""
    fed, sends = exchange.fed, set(exchange.operation.sends.values())
    summed = fed.protection.summed
    whole = [rule for rule in fed.protection.combiners if rule.hides and rule.kinds & sends]
    if whole or (summed is not None and summed.kinds & sends):
        raise ConfigError(
            f"{type(fed.method).__name__} collects answers one by one, and protect lets the hub "
            "see no more than the mean of a whole round; choose another method, or leave "
            "protect.secure_sum and central privacy out"
        )


def _rule(exchanges: list[Exchange]) -> Any:
    """The recipe's rule for a mean over the answers to several questions."""

    def combine(
        key: str, values: Mapping[str, Any], weights: Mapping[str, float], onto: Any
    ) -> Any:
        asked = next((one for one in exchanges if key in one.operation.sends), exchanges[-1])
        sent = onto
        if sent is None and len(exchanges) == 1:
            sent = asked.question.sent(key)
        return asked.combining.combine(key, values, weights, sent, len(values))

    return combine
