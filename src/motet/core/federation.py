"""The hub's view of a run: groups of sites to ask, state that survives, rounds, reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from motet.core.batch import Dataset
from motet.core.errors import ConfigError, SiteError
from motet.core.events import Events
from motet.core.learner import Learner
from motet.core.messages import Engine, Reply, Request, Traits, bytes_by_kind
from motet.core.method import Method
from motet.core.middleware import Middleware, pack_all, unpack_all
from motet.core.replies import Replies
from motet.core.rng import seeded
from motet.core.site import Evaluate
from motet.core.store import HubStore
from motet.core.tree import Tree, load

HUB = "hub"


class Federation(Learner):
    """What a method's ``run`` sees.

    state: named trees of the hub, saved before every round.
    public: the set that hub and sites share (same rows, same order). data: rows that the hub
    itself owns. test: rows that it evaluates on.
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
        middleware: Sequence[Middleware] = (),
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
        self._middleware = middleware
        self._operations = method.operations()
        self._loop = -1
        self._asked = 0
        self._version = 0
        self._touched: set[str] = set()
        self._resume = store.position() if store is not None else None

    @property
    def public(self) -> Dataset:
        """The public set; raises ConfigError when the recipe has none."""
        if self._public is None:
            raise ConfigError("this method needs a public set; give the recipe data.public")
        return self._public

    @property
    def data(self) -> Dataset:
        """Rows that the hub owns; raises ConfigError when it has none."""
        if self._data is None:
            raise ConfigError("this method needs rows at the hub; give the recipe data.hub")
        return self._data

    @property
    def all(self) -> Group:
        """Every site."""
        return self.at(sorted(self.engine.sites()))

    def at(self, names: Iterable[str]) -> Group:
        """The sites of these names."""
        known = self.engine.sites()
        chosen = sorted(set(names))
        strangers = [name for name in chosen if name not in known]
        if strangers:
            raise ConfigError(f"there is no site {strangers[0]!r}; there are {sorted(known)}")
        return Group(self, chosen)

    def where(self, *, modality: str) -> Group:
        """The sites that hold this modality."""
        return self.all.where(modality=modality)

    def sample(self, count: int) -> Group:
        """``count`` sites drawn uniformly without replacement, by run, round and draw alone."""
        return self.all.sample(count)

    def start(self) -> None:
        """Runs the method from where it stands to its end."""
        if self._resume is not None:
            self.events.add("resumed", **self._resume)
        with seeded(self.seed, HUB, "start"):
            self.method.run(self)
        self.events.add("finished", round=self.round)

    def rounds(self, count: int) -> Iterator[int]:
        """Round numbers 0 to ``count`` - 1; saves hub and sites before each, and at the end.

        A resumed run skips to the round that it was in, with all state as it was then.
        """
        self._loop += 1
        first = self._enter_loop()
        for number in range(first, count):
            self._begin_round(number)
            self._save(number)
            self.events.add("round", round=number, loop=self._loop, of=count)
            # Whatever the hub draws from torch's default generator (dropout) is the round's own.
            with seeded(self.seed, HUB, self._loop, number):
                yield number
        if first <= count:
            self._begin_round(count)
            self._save(count)

    def _begin_round(self, number: int) -> None:
        self.round = number
        self.key = (self._loop, number)
        self._asked = 0

    def _enter_loop(self) -> int:
        """The first round to run in this loop, after taking up a checkpoint if there is one."""
        if self._resume is None:
            return 0
        position = self._resume
        if position["loop"] > self._loop:
            return 2**62
        self._resume = None
        self._version = position["version"]
        if self._store is None:
            raise ConfigError("a run without a folder cannot be resumed")
        tree = self._store.load(self._version)
        self.state.clear()
        self.state.update(tree["state"])
        self.load_tree(tree["learner"])
        self._exchange([self._built_in(name, "@restore") for name in self.engine.sites()])
        self._touched.clear()
        return int(position["round"])

    def _save(self, number: int) -> None:
        if self._store is None:
            return
        position = self._store.position()
        here = {"loop": self._loop, "round": number}
        if position is not None and {key: position[key] for key in here} == here:
            self._version = position["version"]
            return
        self._version += 1
        self._exchange([self._built_in(name, "@save") for name in sorted(self._touched)])
        self._touched.clear()
        tree = {"state": self.state, "learner": self.tree()}
        self._store.save(self._version, here, tree)
        self.events.add("checkpoint", round=number, version=self._version)

    def _built_in(self, site: str, op: str) -> Request:
        own = {"version": self._version}
        return Request(site, op, f"{op}{self._version}", self.round, own=own)

    def _exchange(self, requests: Sequence[Request]) -> dict[str, Reply]:
        """Sends, and waits until every request has its reply."""
        self.engine.send(requests)
        waiting = {request.site for request in requests}
        replies: dict[str, Reply] = {}
        while waiting:
            reply = self.engine.recv()
            if reply is None:
                break
            replies[reply.site] = reply
            waiting.discard(reply.site)
        return replies

    def log(self, **fields: Any) -> None:
        """Adds numbers or texts of the method's own to the event stream."""
        self._note("log", round=self.round, **fields)

    def _note(self, kind: str, /, **fields: Any) -> None:
        """Adds an event, but not while a resumed run repeats what came before its rounds."""
        if self._resume is None:
            self.events.add(kind, **fields)

    def report(
        self,
        weights: Tree | None = None,
        *,
        sites: Group | None = None,
        point: str = "after local training",
        **payload: Any,
    ) -> None:
        """Evaluates the hub's model, and the models of ``sites`` where given, on their test rows.

        weights: loaded into the hub's model first. point: the name of the test point at the sites.
        payload: goes to ``Method.evaluate`` at the sites.
        """
        if self._resume is not None:
            return
        if weights is not None:
            load(self.model, weights)
        if self._evaluate is not None and self.test is not None and self._build is not None:
            self._metrics(HUB, self._evaluate(self.model, self.test), "hub")
        if sites is not None and len(sites):
            for name, reply in sites.ask(self.method.evaluate, quorum=0, **payload).items():
                self._metrics(name, reply["metrics"], point)

    def _metrics(self, party: str, metrics: Mapping[str, Sequence[float]], point: str) -> None:
        if metrics:
            values = {name: list(pair) for name, pair in metrics.items()}
            self.events.add("metric", round=self.round, party=party, point=point, metrics=values)


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
        fed = self._fed
        chosen = fed.numpy_rng("sample", fed._asked).choice(len(self), count, replace=False)
        return Group(fed, sorted(self.names[i] for i in chosen))

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
        quorum: how many answers suffice (a number, or a share of the group below 1); None wants
        all. timeout: seconds after which the rest is given up. Raises SiteError with the first
        failure when too few answered.
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
    fed._asked += 1
    tag = f"{fed._loop}.{fed.round}.{fed._asked}"
    takes = fed._operations[op].takes
    shared = pack_all(fed._middleware, payload, takes)
    own = {name: pack_all(fed._middleware, dict(each.get(name, {})), takes) for name in group}
    requests = [Request(name, op, tag, fed.round, shared, own[name]) for name in group]
    fed.engine.send(requests)
    fed._touched.update(group)
    values, failed = _gather(fed, op, tag, requests, timeout)
    needed = len(group) if quorum is None else _needed(quorum, len(group))
    if len(values) < needed:
        reason = next(iter(failed.values()), "the group is empty")
        raise SiteError(
            f"{len(values)} of {len(group)} sites answered, {needed} were wanted: {reason}"
        )
    return Replies(values, failed)


def _needed(quorum: int | float, size: int) -> int:
    return math.ceil(quorum * size) if isinstance(quorum, float) else quorum


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
    while waiting:
        reply = fed.engine.recv(timeout)
        if reply is None:
            failed.update(dict.fromkeys(waiting, f"no answer within {timeout} s"))
            break
        if reply.tag != tag or reply.site not in waiting:
            continue
        request = waiting.pop(reply.site)
        note: Tree = {"round": fed.round, "site": reply.site, "op": op, "tag": tag}
        own = bytes_by_kind(request.own, operation.takes)
        kinds = {kind: down.get(kind, 0) + own.get(kind, 0) for kind in {**down, **own}}
        note["down"] = {"frame": reply.down, **kinds}
        if reply.value is None:
            failed[reply.site] = reply.error or "no reason given"
            fed._note("failed", **note, error=failed[reply.site])
            continue
        note["up"] = {"frame": reply.up, **bytes_by_kind(reply.value, operation.sends)}
        fed._note("replied", **note)
        values[reply.site] = unpack_all(fed._middleware, reply.value)
    for site in waiting:
        fed._note("failed", round=fed.round, site=site, op=op, tag=tag, error=failed[site])
    return values, failed
