"""One question to a group of sites: its requests, and what came back."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from motet.core.combining import Combining
from motet.core.errors import MotetError, SiteError, WireError
from motet.core.folding import By, Folding
from motet.core.guard import OWN, SPENT, Passage, Question
from motet.core.kinds import Kind
from motet.core.messages import Reply, Request, bytes_by_kind, form_of, tensors_by_kind, timed
from motet.core.middleware import unpack_all
from motet.core.replies import Replies
from motet.core.tree import Tree
from motet.core.validate import Known, alone, beyond_doubt, refused, unfit_reply

if TYPE_CHECKING:
    from motet.core.federation import Federation
    from motet.core.group import Group


@dataclass(frozen=True)
class Patience:
    """How long the hub waits for answers, and how often it asks again.

    timeout: seconds, where a question names none; None waits for as long as an answer may come.
    retries: how often a site is asked again, under the same tag, that did not answer in time or
    whose answer broke on its way. Each time it has the whole timeout.
    """

    timeout: float | None = None
    retries: int = 0


def now(fed: Federation) -> float:
    """Seconds on the clock by which the hub waits: the engine's own, or this machine's."""
    clock = timed(fed.engine)
    return time.monotonic() if clock is None else clock.now()


class Exchange:
    """Sends one question, receives the answers, checks them and puts them together.

    shared, own: the payload as it travels, that of all and that of single sites. round: that of the
    question; None for the one that the hub is in. averaged: keys of which the method wants the mean
    alone, and what weighs it; where no rule needs all answers at once, none of them is held.
    """

    def __init__(
        self,
        fed: Federation,
        group: Group,
        op: str,
        tag: str,
        shared: Tree,
        own: Mapping[str, Tree],
        round: int | None = None,
        averaged: Mapping[str, By] | None = None,
    ) -> None:
        self.fed = fed
        self.operation = fed._operations[op]
        self.values: dict[str, Tree] = {}
        self.failed: dict[str, str] = {}
        self.waiting: dict[str, Request] = {}
        self.asked_again: dict[str, int] = {}
        at = fed.round if round is None else round
        summed = fed.protection.summed
        kinds: Collection[Kind] = () if summed is None else summed.kinds
        self._secret = {key for key, kind in self.operation.sends.items() if kind in kinds}
        self._opened: dict[str, Any] = {}
        self.averaged = dict(averaged or {})
        self._folding: Folding | None = None
        self._known = Known()
        middleware, takes = fed.protection.middleware, self.operation.takes
        self.requests = [Request(name, op, tag, at, shared, own[name]) for name in group]
        self._down_shared = bytes_by_kind(shared, takes)
        # What sites see: after a codec not quite what was sent.
        seen = unpack_all(middleware, shared)
        self.question = Question(
            op,
            tag,
            at,
            self.operation.sends,
            tuple(group),
            seen,
            {name: {**seen, **unpack_all(middleware, own[name])} for name in group},
            group._chance,
            group._of,
        )
        self.combining = Combining(fed, self.question, self._secret)
        if self.averaged and not self.combining.rules and not self._secret:
            self._folding = Folding(self.question.sites, self.averaged)

    def prepare(self, timeout: float | None) -> None:
        """Sorts out whom not to ask: sites with other public rows, and those that are not in a sum.

        A secure sum asks questions of its own first. Raises SiteError when too few are left for it.
        """
        for site, reason in self.strangers().items():
            self._fail(site, reason)
        busy = self.fed._posted.busy
        for site in self.question.sites:
            if site in busy and site not in self.failed:
                self._fail(site, f"site {site} is still at work on a question that was posted")
        self.keep(set(self.question.sites) - self.failed.keys())
        if not self._secret:
            return

        def ask(op: str, each: Mapping[str, Tree]) -> dict[str, Tree]:
            return self._aside(op, each, timeout)

        summed = self.fed.protection.summed
        assert summed is not None
        asked = replace(self.question, sites=tuple(request.site for request in self.requests))
        told = summed.prepare(asked, self.fed.engine.sites(), ask)
        for site in self.question.sites:
            if site not in told and site not in self.failed:
                self._fail(site, f"site {site} dropped out of the secure sum's first steps")
        self.keep(set(told))
        self.requests = [
            replace(request, own={**request.own, **told[request.site]}) for request in self.requests
        ]

    def strangers(self) -> dict[str, str]:
        """Site -> why it must not be asked: its public rows, or its state, are not the run's."""
        behind = self.fed._behind.intersection(self.question.sites)
        found = {site: f"site {site} did not go back to the checkpoint" for site in behind}
        if self.fed.has_public:
            known, own = self.fed.engine.sites(), self.fed.row_order
            for site in self.question.sites:
                if known[site].public != own:
                    found[site] = (
                        f"site {site} has other public rows than the hub, or another order"
                    )
        return found

    def keep(self, sites: Collection[str]) -> None:
        """Asks only these."""
        self.requests = [request for request in self.requests if request.site in sites]

    def _aside(self, op: str, each: Mapping[str, Tree], timeout: float | None) -> dict[str, Tree]:
        """Asks sites a guard's question; site -> answer of those that gave one."""
        asked, tag = self.question, f"{self.question.tag}{op}"
        self.fed.engine.send(
            [Request(site, op, tag, asked.round, {}, dict(own)) for site, own in each.items()]
        )
        waiting, found = set(each), {}
        end = self._end(timeout)
        while waiting:
            reply = self.fed._receive(end)
            if reply is None:
                break
            if reply.tag != tag or reply.site not in waiting:
                self.fed._ignore(reply)
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
        for number, rule in self.combining.rules:
            spent = rule.spend(self.question, self.fed._memory(number))
            if spent is not None:
                self.fed._note("privacy", round=self.fed.round, party=self.fed.name, **spent)

    def send(self) -> None:
        """Puts the question on its way to all who are to be asked."""
        self.waiting = {request.site: request for request in self.requests}
        self.fed.engine.send(self.requests)

    def gather(self, timeout: float | None) -> None:
        """Receives until every request is answered or the time is over; tells the events."""
        timeout = self.fed.patience.timeout if timeout is None else timeout
        end = self._end(timeout)
        while self.waiting:
            reply = self.fed._receive(end)
            if reply is None:
                for site, reason in self.late(list(self.waiting), timeout).items():
                    self.give_up(site, reason)
                end = self._end(timeout)
            elif self.ends(reply):
                self.take(reply)
        self.settle()

    def _end(self, timeout: float | None) -> float | None:
        return None if timeout is None else now(self.fed) + timeout

    def late(self, sites: Collection[str], timeout: float | None) -> dict[str, str]:
        """Asks sites again that did not answer in time; those that are to be given up, and why."""
        reason = "no answer" if timeout is None else f"no answer within {timeout:g} s"
        again = [site for site in sites if self._again(site, reason)]
        if again:
            self.fed.engine.send([self.waiting[site] for site in again])
        return {site: reason for site in sites if site not in again}

    def give_up(self, site: str, reason: str) -> None:
        """The site's answer is not waited for any more."""
        self.waiting.pop(site, None)
        self._fail(site, reason)

    def ends(self, reply: Reply) -> bool:
        """Whether this is what its site owes; where it broke on its way, the site is asked again.

        ``take`` is what follows where it is.
        """
        request = self.waiting.get(reply.site)
        if reply.tag != self.question.tag or request is None:
            self.fed._ignore(reply)
            return False
        if reply.damaged and self._again(reply.site, str(reply.error)):
            self.fed.engine.send([request])
            return False
        return True

    def _again(self, site: str, reason: str) -> bool:
        """Whether the site may be asked once more, which is then noted."""
        count = self.asked_again.get(site, 0) + 1
        if count > self.fed.patience.retries:
            return False
        self.asked_again[site] = count
        self.fed._note("asked again", **self._about(site), times=count, reason=reason)
        return True

    def settle(self) -> None:
        """Checks the answers that were taken, and gives up those that are not fit for use."""
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
        sure = () if self._folding is None else self._folding.done
        odd = refused(plain, operation, asked.op, asked.received, known, checks, sure)
        if self._secret and summed is not None:
            odd |= summed.unfit(asked, self.values)
        for site, reason in odd.items():
            del self.values[site]
            self._fail(site, unfit_reply(site, reason))
        if self._folding is not None:
            self._folding.finish(self.values)
        if self._secret and summed is not None and self.values:
            self._opened = summed.open(asked, self.values)

    def take(self, reply: Reply) -> None:
        """Takes the answer that ends its site's question, whether it is of use or not."""
        request = self.waiting.pop(reply.site)
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
            self._fail(reply.site, unfit_reply(reply.site, str(error)), down=down)
        else:
            self.values[reply.site] = value
            parts = tensors_by_kind(reply.value, self.operation.sends)
            sizes = {kind: sum(t.nbytes for t in tensors) for kind, tensors in parts.items()}
            up = {"frame": reply.up, **sizes}
            shapes = {kind: form_of(tensors) for kind, tensors in parts.items()}
            self.fed._note("replied", **self._about(reply.site), down=down, up=up, shapes=shapes)
            if spent is not None:
                self.fed._note("privacy", round=self.fed.round, party=reply.site, **spent)
            if self._folding is not None:
                self._folding.fit |= self._judged(reply.site, value)
                self._folding.go_on(self.values, self.failed)
                self._folding.freed.add(reply.up)

    def _judged(self, site: str, value: Tree) -> dict[str, bool]:
        """Whether an answer is beyond doubt; empty for one that must not be used."""
        received, traits = self.question.received[site], self.fed.engine.sites()
        operation, known, checks = self.operation, self._known, self.fed.protection.checks
        op = self.question.op
        wrong, parts = alone(site, value, operation, op, received, known, traits, checks)
        if wrong:
            return {}
        weighed = all(by in value for by in self.averaged.values() if isinstance(by, str))
        return {site: weighed and beyond_doubt(value, parts, operation, received, known)}

    def _fail(self, site: str, error: str, **note: Any) -> None:
        self.failed[site] = error
        if self._folding is not None:
            self._folding.go_on(self.values, self.failed)
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
        means = {} if self._folding is None else self._folding.means
        return self.combining.replies(self.values, self.failed, self._opened, self.averaged, means)
