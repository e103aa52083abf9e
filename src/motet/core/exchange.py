"""One question to a group of sites: its requests, what came back, and what may be made of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from motet.core.errors import MotetError, SiteError, WireError
from motet.core.guard import OWN, SPENT, Call, Passage, Question
from motet.core.messages import Reply, Request, bytes_by_kind, form_by_kind
from motet.core.middleware import pack_all, unpack_all
from motet.core.replies import Replies, plain_mean
from motet.core.tree import Tree
from motet.core.validate import refused

if TYPE_CHECKING:
    from motet.core.federation import Federation
    from motet.core.group import Group


class Exchange:
    """Sends one question, receives the answers, checks them and puts them together."""

    def __init__(
        self,
        fed: Federation,
        group: Group,
        op: str,
        tag: str,
        payload: Tree,
        each: Mapping[str, Tree],
    ) -> None:
        self.fed = fed
        self.operation = fed._operations[op]
        self.values: dict[str, Tree] = {}
        self.failed: dict[str, str] = {}
        summed = fed.protection.summed
        kinds = frozenset() if summed is None else summed.kinds
        self._secret = {key for key, kind in self.operation.sends.items() if kind in kinds}
        self._opened: dict[str, Any] = {}
        middleware, takes = fed.protection.middleware, self.operation.takes
        shared = pack_all(middleware, payload, takes)
        own = {name: pack_all(middleware, dict(each.get(name, {})), takes) for name in group}
        self.requests = [Request(name, op, tag, fed.round, shared, own[name]) for name in group]
        self._down_shared = bytes_by_kind(shared, takes)
        # What sites see: after a codec not quite what was sent.
        seen = unpack_all(middleware, shared) if middleware else payload
        self.question = Question(
            op,
            tag,
            fed.round,
            self.operation.sends,
            tuple(group),
            seen,
            {name: {**seen, **unpack_all(middleware, own[name])} for name in group},
            group._chance,
            group._of,
        )

    def prepare(self, timeout: float | None) -> None:
        """Sorts out whom not to ask: sites with other public rows, and those that are not in a sum.

        A secure sum asks questions of its own first. Raises SiteError when too few are left for it.
        """
        known, own = self.fed.engine.sites(), self.fed.row_order
        for site in self.question.sites:
            if known[site].public != own and self.fed.has_public:
                self._fail(
                    site, f"site {site} has other public rows than the hub, or another order"
                )
        self._keep(set(self.question.sites) - self.failed.keys())
        if not self._secret:
            return

        def ask(op: str, each: Mapping[str, Tree]) -> dict[str, Tree]:
            return self._aside(op, each, timeout)

        summed = self.fed.protection.summed
        assert summed is not None
        asked = replace(self.question, sites=tuple(request.site for request in self.requests))
        told = summed.prepare(asked, known, ask)
        for site in self.question.sites:
            if site not in told and site not in self.failed:
                self._fail(site, f"site {site} dropped out of the secure sum's first steps")
        self._keep(set(told))
        self.requests = [
            replace(request, own={**request.own, **told[request.site]}) for request in self.requests
        ]

    def _keep(self, sites: set[str]) -> None:
        self.requests = [request for request in self.requests if request.site in sites]

    def _aside(self, op: str, each: Mapping[str, Tree], timeout: float | None) -> dict[str, Tree]:
        """Asks sites a guard's question; site -> answer of those that gave one."""
        asked, tag = self.question, f"{self.question.tag}{op}"
        self.fed.engine.send(
            [Request(site, op, tag, asked.round, {}, dict(own)) for site, own in each.items()]
        )
        waiting, found = set(each), {}
        end = None if timeout is None else time.monotonic() + timeout
        while waiting:
            reply = self.fed.engine.recv(None if end is None else max(end - time.monotonic(), 0.0))
            if reply is None:
                break
            if reply.tag != tag or reply.site not in waiting:
                continue
            waiting.discard(reply.site)
            about = {"round": asked.round, "site": reply.site, "op": op, "tag": asked.tag}
            down = {"frame": reply.down, **bytes_by_kind(dict(each[reply.site]), {})}
            if reply.value is None:
                self.fed._note("failed", **about, down=down, error=str(reply.error))
            else:
                found[reply.site] = reply.value
                up = {"frame": reply.up, **bytes_by_kind(reply.value, {})}
                self.fed._note("replied", **about, down=down, up=up)
        return found

    def spend(self) -> None:
        """Counts what the question costs in privacy; raises BudgetError before it is sent."""
        for number, rule in enumerate(self.fed.protection.combiners):
            if rule.kinds & set(self.operation.sends.values()):
                spent = rule.spend(self.question, self.fed._memory(number))
                if spent is not None:
                    self.fed._note("privacy", round=self.fed.round, party=self.fed.name, **spent)

    def gather(self, timeout: float | None) -> None:
        """Receives until every request is answered or the time is over; tells the events."""
        waiting = {request.site: request for request in self.requests}
        end = None if timeout is None else time.monotonic() + timeout
        while waiting:
            reply = self.fed.engine.recv(None if end is None else max(end - time.monotonic(), 0.0))
            if reply is None:
                late = "no answer" if timeout is None else f"no answer within {timeout} s"
                for site in waiting:
                    self._fail(site, late)
                break
            if reply.tag == self.question.tag and reply.site in waiting:
                self._take(reply, waiting.pop(reply.site))
        asked, known = self.question, self.fed.engine.sites()
        checks, kinds = self.fed.protection.checks, self.operation.sends
        summed = self.fed.protection.summed
        operation = self.operation
        if self._secret and summed is not None:
            open_keys = {key: kind for key, kind in kinds.items() if key not in self._secret}
            operation = replace(operation, sends=open_keys)
        plain = {
            site: {key: item for key, item in value.items() if key not in self._secret}
            for site, value in self.values.items()
        }
        odd = refused(plain, operation, asked.op, asked.received, known, checks)
        if self._secret and summed is not None:
            odd |= summed.unfit(asked, self.values)
        for site, reason in odd.items():
            del self.values[site]
            self._fail(site, _unfit(site, reason))
        if self._secret and summed is not None and self.values:
            self._opened = summed.open(asked, self.values)

    def _take(self, reply: Reply, request: Request) -> None:
        down = {"frame": reply.down, **self._down(request)}
        limit = self.fed.protection.reply_bytes
        try:
            if reply.value is None:
                raise SiteError(reply.error or f"site {reply.site} gives no reason")
            if reply.up > limit:
                raise WireError(f"{reply.up:,} bytes are more than the {limit:,} allowed")
            value, spent = self._arrive(reply.site, reply.value)
        except SiteError as error:
            self._fail(reply.site, str(error), down=down)
        except MotetError as error:
            self._fail(reply.site, _unfit(reply.site, str(error)), down=down)
        else:
            self.values[reply.site] = value
            up = {"frame": reply.up, **bytes_by_kind(reply.value, self.operation.sends)}
            shapes = form_by_kind(reply.value, self.operation.sends)
            self.fed._note("replied", **self._about(reply.site), down=down, up=up, shapes=shapes)
            if spent is not None:
                note = {"round": self.fed.round, "party": reply.site, **spent}
                self.fed._note("privacy", **note)

    def _fail(self, site: str, error: str, **note: Any) -> None:
        self.failed[site] = error
        self.fed._note("failed", **self._about(site), **note, error=error)

    def _about(self, site: str) -> Tree:
        asked = self.question
        return {"round": asked.round, "site": site, "op": asked.op, "tag": asked.tag}

    def _down(self, request: Request) -> dict[str, int]:
        shared, own = self._down_shared, bytes_by_kind(request.own, self.operation.takes)
        return {kind: shared.get(kind, 0) + own.get(kind, 0) for kind in {**shared, **own}}

    def _arrive(self, site: str, value: Tree) -> tuple[Tree, Tree | None]:
        """The reply without codecs and guards, and what a guard tells of the site's privacy."""
        asked = self.question
        value = unpack_all(self.fed.protection.middleware, value)
        received = asked.received[site]
        passage = Passage(site, asked.op, asked.tag, asked.round, asked.sends, received)
        for guard in reversed(self.fed.protection.guards):
            value = guard.arrive(value, passage)
        spent = value.get(SPENT)
        kept = {key: item for key, item in value.items() if not key.startswith(OWN)}
        return kept, spent if isinstance(spent, dict) else None

    def replies(self) -> Replies:
        """The answers that count, to be put together by the recipe's rules."""
        hidden: dict[str, str] = {}
        values: Mapping[str, Tree] = self.values
        for number, rule in enumerate(self.fed.protection.combiners):
            keys = [key for key, kind in self.operation.sends.items() if kind in rule.kinds]
            if keys:
                values = rule.admit(values, self.question, self.fed._memory(number))
            if rule.hides:
                hidden |= dict.fromkeys(keys, "")
        hidden |= dict.fromkeys(self._secret, "")
        method = type(self.fed.method).__name__
        for key in hidden:
            hidden[key] = (
                f"{method} reads single sites' {key!r}, and protect lets the hub see no more than "
                "their mean; choose a method that averages them, or leave this protection out"
            )
        return Replies(values, self.failed, combine=self._combine, hidden=hidden)

    def _combine(self, key: str, values: Mapping[str, Any], weights: Mapping[str, float]) -> Any:
        kind = self.operation.sends.get(key)
        if key in self._opened:
            assert self.fed.protection.summed is not None
            self.fed.protection.summed.fits(weights, self.values, key)
            self.fed._combined.add(str(kind))
            return self._opened[key]
        rule = None if kind is None else self.fed.protection.combiner(kind)
        asked = self.question
        if rule is None:
            return plain_mean(key, values, weights)
        number = list(self.fed.protection.combiners).index(rule)
        call = Call(
            asked.op,
            asked.tag,
            asked.round,
            key,
            values,
            weights,
            self._sent(key),
            len(asked.sites),
            self.fed.rng("combine", asked.op, asked.tag, key),
            self.fed._memory(number),
        )
        self.fed._combined.add(str(kind))
        return rule.mean(call)

    def _sent(self, key: str) -> Any | None:
        """What all sites got under this key; None where they got different things, or nothing."""
        sent = [received.get(key) for received in self.question.received.values()]
        alike = bool(sent) and all(other is sent[0] for other in sent)
        return sent[0] if alike else None


def _unfit(site: str, reason: str) -> str:
    return f"site {site}: its reply is refused: {reason}"
