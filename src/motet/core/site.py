"""A site: what an ``@at_site`` function sees, and the door through which requests come."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from motet.core.batch import Batch, Dataset
from motet.core.errors import MotetError, SiteError
from motet.core.guard import OWN, Passage, Protection
from motet.core.learner import Fitter, Learner
from motet.core.messages import Request, Traits
from motet.core.method import Method, Operation
from motet.core.middleware import pack_all, unpack_all
from motet.core.rng import generator, seeded
from motet.core.secret import Secret
from motet.core.store import Shelf
from motet.core.tree import Tree, leaves
from motet.core.validate import check_declared

Evaluate: TypeAlias = Callable[[nn.Module, Dataset], dict[str, tuple[float, int]]]


@dataclass(frozen=True)
class SiteSpec:
    """What is needed to set a site up beside its data."""

    name: str
    data: Dataset
    test: Dataset | None = None
    build: Callable[[], nn.Module] | None = None
    model: str = ""

    @property
    def traits(self) -> Traits:
        """What the hub may know of it."""
        return Traits(self.data.modalities, len(self.data), self.model)


class Site(Learner):
    """One site with its private data, model and state.

    round: number of the round in which it is asked, within its loop.
    state: named trees that stay at the site from one call to the next, whatever happens in
        between. Assign to it; do not change what it holds in place, since an operation that fails
        leaves the state as it was.
    secret: of a site that has a machine of its own.
    """

    def __init__(
        self,
        spec: SiteSpec,
        *,
        seed: int,
        public: Dataset | None,
        evaluate: Evaluate | None,
        secret: Secret | None = None,
    ) -> None:
        super().__init__(spec.name, seed, spec.build)
        self.secret = secret
        self.traits = spec.traits
        self.data = spec.data
        self.test = spec.test
        self._public = public
        self._evaluate = evaluate
        self.state: Tree = {}
        self.round = 0

    @property
    def public(self) -> Dataset:
        """The public set, the same rows in the same order at every site."""
        if self._public is None:
            raise SiteError(f"site {self.name} has no public set; give the recipe data.public")
        return self._public

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that this site holds, sorted."""
        return self.traits.modalities

    def private(self, size: int, *, epochs: int = 1, key: str | int = "private") -> Iterator[Batch]:
        """Shuffled batches of this site's own rows."""
        return self.batches(self.data, size, epochs=epochs, key=key)

    def evaluate(self, model: nn.Module | None = None) -> Tree:
        """This site's model on its own test rows: metric -> [value, n]; empty without any.

        model: evaluated in place of the site's own, such as the same one with another head.
        """
        if self.test is None or self._evaluate is None:
            return {}
        found = self._evaluate(self.model if model is None else model, self.test)
        return {name: list(pair) for name, pair in found.items()}


class Door:
    """Takes requests to one site: allow-list, reply cache, declared kinds, all-or-nothing effect.

    A method's function that fails leaves model, optimisers and state as they were before it.
    candid: whether the text of an unexpected error goes to the hub. Such a text may quote private
    values, so that a site which does not share its process with the hub keeps it to itself.
    repeats: whether a request may come again, so that the last reply must be kept.
    """

    def __init__(
        self,
        site: Site,
        method: Method,
        *,
        shelf: Shelf | None = None,
        protection: Protection | None = None,
        candid: bool = True,
        repeats: bool = True,
    ) -> None:
        self.site = site
        self.method = method
        self.operations = method.operations()
        self.shelf = shelf
        self.protection = protection or Protection()
        self.candid = candid
        self.repeats = repeats
        for guard in self.protection.guards:
            if isinstance(guard, Fitter):
                site.fitter = guard
                site.data = guard.seal(site.data)
        self._kept: Tree = {"state": {}, "learner": {}, "guards": {}}
        self._live = False
        self._changed = False
        self._cache: tuple[str, Tree] | None = None

    def handle(self, request: Request) -> Tree:
        """Answers a request; raises SiteError naming site, round and operation."""
        if request.op.startswith("@"):
            return self._built_in(request)
        if self._cache is not None and self._cache[0] == request.tag:
            return self._cache[1]
        operation = self.operations.get(request.op)
        if operation is None:
            raise SiteError(
                f"site {self.site.name} refuses {request.op!r}: it is not an @at_site function of "
                f"{type(self.method).__name__} (those are {sorted(self.operations)})"
            )
        try:
            reply = self._run(request, operation)
        finally:
            if not self._live:
                self.site.release()
        if self.repeats:
            self._cache = (request.tag, reply)
        return reply

    def _run(self, request: Request, operation: Operation) -> Tree:
        site = self.site
        site.key = (request.op, request.tag)
        site.round = request.round
        site.state = dict(self._kept["state"])
        if not (self._live and operation.keeps == "model"):
            site.load_tree(self._kept["learner"] if operation.keeps == "model" else {})
        self._live = False
        payload = {**request.shared, **request.own}
        memories = {name: dict(kept) for name, kept in self._kept["guards"].items()}
        try:
            payload = unpack_all(self.protection.middleware, payload)
            own = {key: payload.pop(key) for key in list(payload) if key.startswith(OWN)}
            with seeded(site.seed, site.name, request.op, request.tag):
                value = getattr(self.method, request.op)(site, **payload)
            check_declared(value, operation, request.op, site.name)
            for guard in self.protection.guards:
                memory = memories.setdefault(guard.name, {})
                passage = self._passage(request, operation, payload, own, guard.name, memory)
                value = guard.leave(value, passage)
            reply = pack_all(self.protection.middleware, value, operation.sends)
        except Exception as error:
            raise SiteError(
                _explain(error, request, payload, type(self.method), self.candid)
            ) from error
        # Not before the reply is ready to leave: a call that fails has no effect.
        self._keep(operation, memories)
        return reply

    def _passage(
        self,
        request: Request,
        operation: Operation,
        received: Tree,
        own: Tree,
        guard: str,
        memory: Tree,
    ) -> Passage:
        seed, site, op, tag = self.site.seed, self.site.name, request.op, request.tag
        make = generator if self.site.secret is None else self.site.secret.generator

        def rng(*key: str | int) -> torch.Generator:
            return make(seed, site, "guard", guard, op, tag, *key)

        sends = operation.sends
        return Passage(site, op, tag, request.round, sends, received, own, rng, memory)

    def _keep(self, operation: Operation, memories: Tree) -> None:
        kept = self._kept
        learner = self.site.tree() if operation.keeps == "model" else kept["learner"]
        touched = operation.keeps == "model" or bool(self.site.state) or bool(kept["state"])
        self._changed = self._changed or touched or any(memories.values())
        self._kept = {"state": dict(self.site.state), "learner": learner, "guards": memories}
        # Only now do the live objects equal what is kept, so only now may the next call go on
        # with them.
        self._live = operation.keeps == "model"

    def kept(self) -> Tree:
        """What the site holds from one request to the next, to be put back later on."""
        return {"kept": self._kept, "changed": self._changed}

    def put_back(self, tree: Tree) -> None:
        """Makes the site what it was when ``kept`` gave this tree."""
        self._kept = {"state": {}, "learner": {}, "guards": {}, **tree["kept"]}
        self._changed = bool(tree["changed"])
        self._live = False
        self._cache = None

    def put_away(self) -> Tree | None:
        """All that the site must know to go on in another process; None for a site as it began."""
        kept = any(self._kept.values())
        if not (kept or self._changed or self._cache):
            return None
        cache = {} if self._cache is None else dict(zip(("tag", "reply"), self._cache, strict=True))
        return {**self.kept(), "cache": cache}

    def take_up(self, tree: Tree) -> None:
        """Goes on from what ``put_away`` gave."""
        self.put_back(tree)
        if tree["cache"]:
            self._cache = (tree["cache"]["tag"], tree["cache"]["reply"])

    def _built_in(self, request: Request) -> Tree:
        for guard in self.protection.guards:
            if request.op in getattr(guard, "operations", ()):
                answer: Tree = guard.answer(self.site.name, request.op, request.own)  # type: ignore[attr-defined]
                return answer
        if request.op not in ("@save", "@restore"):
            raise SiteError(f"site {self.site.name} knows no built-in operation {request.op!r}")
        version = int(request.own["version"])
        if request.op == "@save":
            if self.shelf is not None and self._changed:
                self.shelf.save(version, self._kept, request.own["pinned"])
            self._changed = False
        else:
            found = None if self.shelf is None else self.shelf.load(version)
            if self.shelf is not None:
                self.shelf.forget_after(int(request.own["newest"]))
            self._kept = {"state": {}, "learner": {}, "guards": {}, **(found or {})}
            self._live = self._changed = False
            self._cache = None
        return {}


def _explain(
    error: Exception,
    request: Request,
    payload: Mapping[str, Any],
    method: type[Method],
    candid: bool,
) -> str:
    """One sentence: who, when, what went wrong and, for a bug, where and with which shapes."""
    head = f"site {request.site}, round {request.round}, operation {request.op}: "
    if isinstance(error, MotetError):
        return head + str(error)
    shapes = ", ".join(
        f"{'.'.join(path)} {tuple(leaf.shape)}"
        for path, leaf in list(leaves(dict(payload)))[:8]
        if isinstance(leaf, Tensor)
    )
    told = f"{type(error).__name__}: {error}" if candid else type(error).__name__
    return f"{head}{told} ({_line(error, method)}; payload: {shapes or 'none'})"


def _line(error: Exception, method: type[Method]) -> str:
    """The innermost line of the method's own files, since the last one is often deep in torch."""
    frames = traceback.extract_tb(error.__traceback__)
    modules = [sys.modules.get(cls.__module__) for cls in method.__mro__ if issubclass(cls, Method)]
    files = {getattr(module, "__file__", None) for module in modules}
    frame = next((found for found in reversed(frames) if found.filename in files), frames[-1])
    return f"line {frame.lineno} of {frame.filename.rsplit('/', 1)[-1]}"
