"""What goes between hub and site, and the contract of whatever carries it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from motet.core.kinds import Kind
from motet.core.tree import Tree, tensors_in

OTHER = "other"


@dataclass(frozen=True)
class Request:
    """One question to one site.

    op: name of an ``@at_site`` function, or of a built-in one that begins with "@".
    tag: names the question; a site answers a repeated tag from its cache.
    payload: the function's arguments by name. Requests of one ``ask`` may share this object
        (``shared``), and what is a site's own is in ``own``.
    """

    site: str
    op: str
    tag: str
    round: int
    shared: Tree = field(default_factory=dict)
    own: Tree = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """A site's answer: ``value``, or ``error`` in one sentence. Bytes are those of the frames.

    damaged: whether question or answer broke on its way, so that it helps to ask again. lost:
    whether the site could not be reached for as long as the engine tries.
    """

    site: str
    tag: str
    value: Tree | None = None
    error: str | None = None
    down: int = 0
    up: int = 0
    damaged: bool = False
    lost: bool = False


class Engine(Protocol):
    """The whole network contract: who is there, send, receive."""

    def sites(self) -> Mapping[str, Traits]:
        """All sites by name, with what the hub may know of each."""

    def send(self, requests: Sequence[Request]) -> None:
        """Puts the requests on their way; returns at once."""

    def recv(self, timeout: float | None = None) -> Reply | None:
        """The next reply, or None when none came within ``timeout`` seconds."""

    def close(self) -> None:
        """Lets go of everything that the engine holds."""


class Timed(Protocol):
    """An engine with a time of its own, such as a simulated one, that goes into checkpoints."""

    def now(self) -> float:
        """Seconds since the run began."""

    def kept(self) -> Tree:
        """What it must know to go on from here."""

    def put_back(self, tree: Tree) -> None:
        """Goes on from where ``kept`` gave this tree; what was on its way is forgotten."""


def timed(engine: Any) -> Timed | None:
    """The engine, or the one that it wraps (``engine``), which has a time of its own."""
    while engine is not None and not hasattr(engine, "now"):
        engine = getattr(engine, "engine", None)
    found: Timed | None = engine
    return found


def holders(engine: Any) -> Sequence[str]:
    """Sites that may hold something from before: all, or those of ``engine.holding()``."""
    inner = engine
    while inner is not None and not hasattr(inner, "holding"):
        inner = getattr(inner, "engine", None)
    return sorted(engine.sites() if inner is None else inner.holding())


@dataclass(frozen=True)
class Traits:
    """What the hub may know of a site: modalities, number of rows, name of its model.

    public: a hash of its public rows' ids in their order, which must be the hub's; "" for none.
    """

    modalities: tuple[str, ...]
    rows: int
    model: str = ""
    public: str = ""


def told_of(known: Mapping[str, Traits], names: Iterable[str]) -> Tree:
    """What the events tell of these sites."""
    return {name: asdict(known[name]) for name in names}


def bytes_by_kind(tree: Tree, kinds: Mapping[str, Kind]) -> dict[str, int]:
    """Tensor bytes of a payload by the declared kind of its top-level key."""
    found = tensors_by_kind(tree, kinds)
    return {kind: sum(tensor.nbytes for tensor in tensors) for kind, tensors in found.items()}


def tensors_by_kind(tree: Tree, kinds: Mapping[str, Kind]) -> dict[str, list[Tensor]]:
    """The tensors of a payload by the declared kind of its top-level key."""
    found: dict[str, list[Tensor]] = {}
    for key, value in tree.items():
        tensors = tensors_in(value)
        if tensors:
            found.setdefault(str(kinds.get(key, OTHER)), []).extend(tensors)
    return found


def form_of(tensors: Sequence[Tensor]) -> str:
    """How many tensors of which shapes these are, the largest first, in few words."""
    return _form(tuple(tensor.shape for tensor in tensors))


@lru_cache(maxsize=4096)
def _form(shapes: tuple[torch.Size, ...]) -> str:
    largest = sorted(shapes, key=lambda shape: -shape.numel())[:3]
    told = [" x ".join(map(str, shape)) or "1" for shape in largest]
    more = f" and {len(shapes) - 3} more" if len(shapes) > 3 else ""
    return f"{', '.join(told)}{more}"
