"""The hub's view of a run: groups of sites to ask, state that survives, rounds, reports."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import nn

from motet.core.batch import Dataset
from motet.core.errors import BudgetError, ConfigError, StoreError
from motet.core.events import Events
from motet.core.exchange import Patience, now
from motet.core.group import Group
from motet.core.guard import Protection
from motet.core.learner import Learner
from motet.core.messages import Engine, Reply, Request, holders, timed, told_of
from motet.core.method import Method
from motet.core.posted import Pending, Posted
from motet.core.replies import Replies
from motet.core.rng import reseed, seeded
from motet.core.roster import Names, Without, few, sorted_names
from motet.core.site import Evaluate
from motet.core.store import HubStore, Position
from motet.core.tree import Tree, load, weights_of
from motet.core.validate import row_order
from motet.core.wire import digest

HUB = "hub"
# The events list all sites of a population up to this size, and those of a larger one when asked.
LISTED = 1000


class Federation(Learner):
    """What a method's ``run`` sees.

    state: named trees of the hub, saved before every round.
    public: the set that hub and sites share (same rows, same order). data: rows that the hub
    itself owns. test: rows that it evaluates on. patience: how long it waits for sites.
    """

    def __init__(
        self,
        engine: Engine,
        method: Method,
        *,
        seed: int,
        build: Callable[[], nn.Module] | None = None,
        public: Dataset | None = None,
        data: Dataset | None = None,
        test: Dataset | None = None,
        evaluate: Evaluate | None = None,
        store: HubStore | None = None,
        events: Events | None = None,
        protection: Protection | None = None,
        patience: Patience | None = None,
    ) -> None:
        super().__init__(HUB, seed, build)
        self.engine = engine
        self.method = method
        self.state: Tree = {}
        self.test = test
        self.round = -1
        self.events = events or Events()
        self._public = public
        self._data = data
        self._evaluate = evaluate
        self._store = store
        self.protection = protection or Protection()
        self.patience = patience or Patience()
        self._memories: Tree = {}
        self._combined: set[str] = set()
        self._operations = method.operations()
        self._loop = -1
        self._asked = 0
        self._drawn = 0
        self._posted = Posted(self)
        self._touched: set[str] = set()
        # Sites that did not hear of the checkpoint which the run goes on from, and that one.
        self._behind: set[str] = set()
        self._restored: Tree = {}
        self._introduced: set[str] = set()
        self._position: Position | None = None
        self._resume = store.position() if store is not None else None

    @property
    def public(self) -> Dataset:
        """The public set; raises ConfigError when the recipe has none."""
        if self._public is None:
            raise ConfigError("this method needs a public set; give the recipe data.public")
        return self._public

    @property
    def has_public(self) -> bool:
        """Whether there is a public set."""
        return self._public is not None

    @cached_property
    def row_order(self) -> str:
        """A hash of the public rows' ids in their order, which every site must share."""
        return row_order(self._public)

    @property
    def data(self) -> Dataset:
        """Rows that the hub owns; raises ConfigError when it has none."""
        if self._data is None:
            raise ConfigError("this method needs rows at the hub; give the recipe data.hub")
        return self._data

    @property
    def all(self) -> Group:
        """Every site."""
        return Group(self, sorted_names(self.engine.sites()))

    def at(self, names: Iterable[str]) -> Group:
        """The sites of these names."""
        known = self.engine.sites()
        chosen = sorted(set(names))
        strangers = [name for name in chosen if name not in known]
        if strangers:
            there = few(sorted_names(known))
            raise ConfigError(f"there is no site {strangers[0]!r}; there are {there}")
        return Group(self, chosen)

    def where(self, *, modality: str) -> Group:
        """The sites that hold this modality."""
        return self.all.where(modality=modality)

    def sample(self, count: int) -> Group:
        """``count`` sites drawn uniformly without replacement, by run, round and draw alone."""
        return self.all.sample(count)

    @property
    def busy(self) -> Group:
        """The sites with a question that was posted and is not collected."""
        return self.at(self._posted.busy)

    @property
    def free(self) -> Group:
        """All other sites."""
        names, busy = sorted_names(self.engine.sites()), self._posted.busy
        if isinstance(names, Names):
            return Group(self, Without(names, busy))
        return Group(self, [name for name in names if name not in busy])

    def collect(
        self,
        pending: Pending | Collection[Pending] | None = None,
        *,
        count: int = 1,
        most: int | None = None,
        timeout: float | None = None,
    ) -> Replies:
        """What sites answered to posted questions: to these, or to any; first come, first taken.

        count: for how many sites to wait, be it for an answer or for the news that there is none
        (``failed``); fewer come when no more are at work. most: takes what else is there by then,
        so many in all; None for ``count``. timeout: seconds after which it takes what there is,
        and leaves the rest open.
        """
        wanted = [pending] if isinstance(pending, Pending) else pending
        return self._posted.collect(wanted, count, most, timeout)

    def start(self) -> None:
        """Runs the method from where it stands to its end."""
        at = self._resume
        if at is None:
            self.events.add("started")
            known = self.engine.sites()
            told = told_of(known, known if len(known) <= LISTED else ())
            self.events.add("sites", sites=told, count=len(known))
            if self._store is not None:
                # A run that was killed before its first checkpoint may have left something.
                self._restore(holders(self.engine), version=0, newest=0)
        else:
            self.events.add("resumed", version=at.version, loop=at.loop, round=at.round)
        spent = {}
        try:
            with seeded(self.seed, HUB, "start"):
                self.method.run(self)
        except BudgetError as error:
            # What was learnt so far is the run's result.
            spent = {"ended": str(error)}
        # Equal recipes and seeds give equal weights: the hash lets anyone check it.
        weights = digest(weights_of(self.model)) if self._build is not None else ""
        self.events.add("finished", round=self.round, hash=weights, **spent)

    def _introduce(self, asked: Iterable[str]) -> None:
        """Tells the events of sites that are asked for the first time, where not all are listed."""
        known = self.engine.sites()
        many = len(known) > LISTED
        if many and (new := [name for name in asked if name not in self._introduced]):
            self._introduced.update(new)
            self._note("sites", sites=told_of(known, new), count=len(known))

    def rounds(self, count: int) -> Iterator[int]:
        """Round numbers 0 to ``count`` - 1; saves hub and sites before each, and at the end.

        A resumed run skips to the round that it was in, with all state as it was then. Of a loop
        that lies behind it repeats nothing but what followed the loop's last checkpoint, so that
        what comes between two loops finds the state in which the first one ended.
        """
        self._loop += 1
        loop = self._loop
        for number in range(self._enter_loop(), count):
            self._begin_round(number)
            self._save(number)
            self._note("round", round=number, loop=loop, of=count)
            yield number
            if self._loop != loop:
                raise ConfigError("a rounds loop within another cannot be resumed; write one loop")
            self._check_use()
        self._begin_round(count)
        self._save(count)

    def _check_use(self) -> None:
        """Refuses, after the first round, a rule that this method never asks for."""
        summed = self.protection.summed
        for rule in (*self.protection.combiners, *((summed,) if summed else ())):
            if self._resume is None and not self._combined.intersection(map(str, rule.kinds)):
                kinds = " or ".join(sorted(rule.kinds))
                raise ConfigError(
                    f"{type(self.method).__name__} takes no mean of {kinds}, so that "
                    f"{type(rule).__name__} would protect nothing; leave it out, or choose a "
                    "method that averages them"
                )

    def _begin_round(self, number: int) -> None:
        self.round = number
        self.key = (self._loop, number)
        self._asked = 0
        self._drawn = 0
        # Whatever the hub draws from torch's default generator (dropout) is the round's own.
        reseed(self.seed, HUB, self._loop, number)

    def _enter_loop(self) -> int:
        """The first round to run in this loop, after taking up a checkpoint if there is one."""
        at = self._resume
        if at is None:
            return 0
        if self._loop < at.loop:
            version, number = at.ends[self._loop]
        else:
            version, number = at.version, at.round
            self._resume = None
            self._position = at
        assert self._store is not None
        tree = self._store.load(version)
        self.state.clear()
        self.state.update(tree["state"])
        self.load_tree(tree["learner"])
        self._memories = dict(tree.get("protection", {}))
        self._restore(holders(self.engine), version=version, newest=at.version)
        clock = timed(self.engine)
        if clock is not None and "clock" in tree:
            clock.put_back(tree["clock"])
        self._posted.put_back(tree.get("posted", {}))
        self._touched.clear()
        return number

    def _save(self, number: int) -> None:
        if self._store is None or self._resume is not None:
            return
        last = self._position
        if last is not None and (last.loop, last.round) == (self._loop, number):
            return
        version, ends = self._next()
        position = Position(version, self._loop, number, ends)
        self._save_sites(self._touched)
        tree = {"state": self.state, "learner": self.tree()}
        posted, clock = self._posted.tree(), timed(self.engine)
        if posted:
            tree["posted"] = posted
        if clock is not None:
            tree["clock"] = clock.kept()
        if self._memories:
            tree["protection"] = self._memories
        self._store.save(position, tree)
        self._position = position
        self.events.add("checkpoint", round=number, version=version)

    def _next(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        """The next checkpoint's version, and the last ones of the loops that lie behind it."""
        last = self._position
        if last is None:
            return 1, ()
        behind = ((last.version, last.round),) if last.loop < self._loop else ()
        return last.version + 1, (*last.ends, *behind)

    def _save_sites(self, sites: Iterable[str]) -> None:
        version, ends = self._next()
        told = sorted(sites)
        # Who is away is saved at the next checkpoint, and until then has its last one.
        away = self._tell("@save", told, version=version, pinned=[end for end, _ in ends])
        if told and len(away) == len(told):
            raise StoreError(f"no answer to @save from {', '.join(told)}")
        self._touched.difference_update(set(told) - away)

    def _save_first(self, group: Group) -> None:
        """Saves sites as they are before a question that may outlast the next checkpoint."""
        changed = self._touched.intersection(group)
        if changed and self._store is not None and self._resume is None:
            self._save_sites(changed)

    def _receive(self, end: float | None) -> Reply | None:
        """The next reply to what was asked; those to posted questions are put by."""
        while True:
            left = None if end is None else max(end - now(self), 0.0)
            reply = self.engine.recv(left)
            if reply is None or not self._posted.keeps(reply):
                return reply

    def _ignore(self, reply: Reply) -> None:
        """Notes a reply that nobody waits for: it came too late, or twice."""
        self._note("ignored", round=self.round, site=reply.site, tag=reply.tag)

    def _restore(self, sites: Sequence[str], **own: Any) -> None:
        """Has sites go back to a checkpoint; who is away does so before it is asked again."""
        self._restored = own
        self._behind = self._tell("@restore", sites, **own)

    def _catch_up(self, sites: Iterable[str]) -> None:
        """Has those of these sites go back that were away when the others did."""
        behind = sorted(self._behind.intersection(sites))
        if behind:
            self._behind -= set(behind) - self._tell("@restore", behind, **self._restored)

    def _tell(self, op: str, sites: Sequence[str], **own: Any) -> set[str]:
        """Has every site do a built-in operation; those that are away, of which the events tell.

        Raises StoreError where one cannot do it.
        """
        tag = f"{op}{own['version']}"
        self.engine.send([Request(name, op, tag, self.round, own=own) for name in sites])
        waiting, away = set(sites), dict[str, str]()
        seconds = self.patience.timeout
        end = None if seconds is None else now(self) + seconds
        while waiting:
            reply = self._receive(end)
            if reply is None:
                away |= dict.fromkeys(waiting, f"no answer to {op}")
                break
            if reply.tag != tag or reply.site not in waiting:
                self._ignore(reply)
                continue
            if reply.lost:
                away[reply.site] = str(reply.error)
            elif reply.error is not None:
                raise StoreError(f"site {reply.site}: {reply.error}")
            waiting.discard(reply.site)
        for site, reason in sorted(away.items()):
            self._note("failed", round=self.round, site=site, op=op, tag=tag, error=reason)
        return set(away)

    def _memory(self, number: int) -> Tree:
        """What the combiner of this number keeps over the run."""
        found: Tree = self._memories.setdefault(str(number), {})
        return found

    def log(self, **fields: Any) -> None:
        """Adds numbers or texts of the method's own to the event stream."""
        self._note("log", round=self.round, **fields)

    def _note(self, kind: str, /, **fields: Any) -> None:
        """Adds an event, but not while a resumed run repeats what came before its rounds."""
        clock = timed(self.engine)
        if clock is not None:
            fields["seconds"] = round(clock.now(), 6)
        if self._resume is None:
            self.events.add(kind, **fields)

    def report(
        self,
        weights: Tree | None = None,
        *,
        sites: Group | None = None,
        point: str = "after local training",
        hub: bool = True,
        **payload: Any,
    ) -> None:
        """Evaluates the hub's model, and the models of ``sites`` where given, on their test rows.

        weights: loaded into the hub's model first. point: the name of the test point at the sites.
        hub: false where the hub's model was reported already, or is not meant to be used.
        payload: goes to ``Method.evaluate`` at the sites.
        """
        if weights is not None:
            load(self.model, weights)
        modelled = hub and self._build is not None
        if modelled and self._evaluate is not None and self.test is not None:
            self._metrics(HUB, self._evaluate(self.model, self.test), "hub")
        if sites is not None and len(sites):
            for name, reply in sites.ask(self.method.evaluate, quorum=0, **payload).items():
                self._metrics(name, reply["metrics"], point)

    def _metrics(self, party: str, metrics: Mapping[str, Sequence[float]], point: str) -> None:
        if metrics:
            values = {name: list(pair) for name, pair in metrics.items()}
            self._note("metric", round=self.round, party=party, point=point, metrics=values)
