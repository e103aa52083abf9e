"""All sites in this process, one after the other: the reference that other engines must equal."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from motet.core import wire
from motet.core.batch import Dataset
from motet.core.errors import MotetError
from motet.core.guard import Protection
from motet.core.messages import Reply, Request, Traits
from motet.core.method import Method
from motet.core.site import Door, Evaluate, Site, SiteSpec
from motet.core.store import Shelf
from motet.core.tree import Tree, clone
from motet.core.validate import row_order


class Serial:
    """Runs each request when its reply is fetched.

    strict: pass every message through the wire format, both ways, as a network would. Otherwise
        payloads are copied and the size of their frames is worked out; results and bytes are
        the same.
    folder: where the sites keep their state; None keeps it in memory alone.
    """

    def __init__(
        self,
        specs: Sequence[SiteSpec],
        method: Method,
        *,
        seed: int,
        public: Dataset | None = None,
        evaluate: Evaluate | None = None,
        strict: bool = False,
        folder: Path | None = None,
        protection: Protection | None = None,
    ) -> None:
        self.strict = strict
        rows = row_order(public)
        self._traits = {spec.name: replace(spec.traits, public=rows) for spec in specs}
        self._doors = {
            spec.name: Door(
                Site(spec, seed=seed, public=public, evaluate=evaluate),
                method,
                shelf=None if folder is None else Shelf(folder / spec.name),
                protection=protection,
            )
            for spec in specs
        }
        self._queue: deque[Request] = deque()

    def sites(self) -> Mapping[str, Traits]:
        """All sites by name."""
        return self._traits

    def send(self, requests: Sequence[Request]) -> None:
        """Queues the requests."""
        self._queue.extend(requests)

    def recv(self, timeout: float | None = None) -> Reply | None:
        """Runs the oldest request and returns its reply; None when there is none left."""
        if not self._queue:
            return None
        return self._answer(self._queue.popleft())

    def _answer(self, request: Request) -> Reply:
        message = _message(request)
        if self.strict:
            frame = wire.encode(message)
            down = len(frame)
            request = _request(request.site, wire.decode(frame))
        else:
            down = wire.frame_size(message)
            # As on a network, neither side may see what the other does to its tensors later on.
            request = _request(request.site, clone(message))
        try:
            value = self._doors[request.site].handle(request)
            if not self.strict:
                up = wire.frame_size(value)
                return Reply(request.site, request.tag, clone(value), None, down, up)
            reply = wire.encode(value)
        except MotetError as error:
            return Reply(request.site, request.tag, None, str(error), down)
        return Reply(request.site, request.tag, wire.decode(reply), None, down, len(reply))

    def close(self) -> None:
        """Drops what is still queued."""
        self._queue.clear()


def _message(request: Request) -> Tree:
    return {
        "op": request.op,
        "tag": request.tag,
        "round": request.round,
        "shared": request.shared,
        "own": request.own,
    }


def _request(site: str, message: Tree) -> Request:
    return Request(
        site, message["op"], message["tag"], message["round"], message["shared"], message["own"]
    )
