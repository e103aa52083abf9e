"""Toy sites behind agents: a method with every kind of trouble, and a process to be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.core.toys import Averaging, Phases, score, specs
from tests.core.toys import rows as toy_rows

from motet.agent.client import Client
from motet.agent.host import Host
from motet.agent.memory import Memory
from motet.agent.messages import ask, call
from motet.agent.server import Server, listen
from motet.core import Federation, Kind, Method, Request, Site, Tree, at_site, wire
from motet.core.site import Door, SiteSpec
from motet.core.store import Shelf
from motet.core.validate import row_order
from motet.engines.processes import Share

RECIPE = "0123456789abcdef"
TARGET = "tests.agent.toyagents:hosts_of"
# Imported before agents are forked: what torch wants for an optimiser, which takes seconds.
PRELOAD = ("torch._dynamo",)


class Odd(Method):
    """Operations that count, wait, fail, or end their process."""

    def run(self, fed: Federation) -> None:
        """Is asked by hand."""

    @at_site(sends={"z": Kind.LOGITS})
    def visit(self, site: Site, add: float = 1.0) -> Tree:
        site.state = {"z": site.state.get("z", torch.zeros(2)) + add}
        return {"z": site.state["z"], "visits": int(site.state["z"][0])}

    @at_site(sends={"z": Kind.LOGITS})
    def nothing(self, site: Site, z: torch.Tensor | None = None) -> Tree:
        return {"z": torch.zeros(1) if z is None else z}

    @at_site(sends={"z": Kind.WEIGHTS})
    def big(self, site: Site, count: int) -> Tree:
        site.state = {"big": torch.ones(count)}
        return {"z": torch.zeros(count)}

    @at_site(sends={"z": Kind.LOGITS})
    def wait(self, site: Site, path: str) -> Tree:
        site.state = {"waited": 1}
        Path(path + ".begun").touch()
        while not Path(path).exists():
            time.sleep(0.002)
        return {"z": torch.zeros(1)}

    @at_site(sends={"z": Kind.LOGITS})
    def fail(self, site: Site) -> Tree:
        site.state = {"z": torch.ones(2)}
        raise ValueError("a private value: 4711")

    @at_site(sends={"z": Kind.LOGITS})
    def die(self, site: Site, path: str | None = None) -> Tree:
        """Ends its process: the first time alone with a path, always without one."""
        if path is None or not Path(path).exists():
            sys.stderr.write("last words\n")
            if path is not None:
                Path(path).touch()
            os._exit(3)
        site.state = {"died": site.state.get("died", 0) + 1}
        return {"z": torch.zeros(1), "died": site.state["died"]}


METHODS = {"odd": Odd, "averaging": Averaging, "phases": Phases}


def host(
    spec: SiteSpec,
    method: Method,
    *,
    shelf: Path | None = None,
    memory: Path | None = None,
    lasting: bool = False,
    candid: bool = True,
    **options: Any,
) -> Host:
    """One toy site's host."""
    public = toy_rows("public", 5)
    door = Door(
        Site(spec, seed=0, public=public, evaluate=score),
        method,
        shelf=None if shelf is None else Shelf(shelf),
        candid=candid,
    )
    traits = replace(spec.traits, public=row_order(public))
    kept = Memory(memory, lasting=lasting)
    return Host(door, traits, method="odd", recipe=RECIPE, memory=kept, **options)


def hosts_of(setup: Path) -> list[Host]:
    """What a nursery calls for the toy sites that a set-up file names."""
    torch.set_num_threads(1)
    tree = wire.decode(setup.read_bytes())
    if tree["method"] == "broken":
        raise RuntimeError("these sites cannot be set up")
    method = METHODS[tree["method"]]()
    return [
        host(
            spec,
            method,
            shelf=None if tree["folder"] is None else Path(tree["folder"]) / spec.name,
            memory=setup.parent / "memory" / spec.name,
            careful=False,
        )
        for spec in specs()
        if spec.name in tree["sites"]
    ]


def share(method: str, sites: Sequence[str], folder: Path | None = None) -> Share:
    """The set-up of one process with toy sites."""
    where = None if folder is None else str(folder)
    setup = {"method": method, "sites": list(sites), "folder": where}
    return Share(tuple(sites), wire.encode(setup))


class Resident:
    """An agent in a process of its own, which can be killed and started again."""

    def __init__(self, folder: Path, make: Callable[[], list[Host]], **options: Any) -> None:
        self.at = folder / "agent.sock"
        self._make = make
        self._options = options
        self.process: Any = None

    def start(self) -> None:
        listener = listen(self.at)

        def child() -> None:
            Server(self._make(), listener, **self._options).serve()

        self.process = multiprocessing.get_context("fork").Process(target=child)
        self.process.start()
        listener.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def end(self, number: int = signal.SIGTERM) -> int:
        os.kill(self.process.pid, number)
        self.process.join(20)
        assert self.process.exitcode is not None, "the agent did not stop"
        return int(self.process.exitcode)

    def call(self, tree: Tree, timeout: float | None = 20) -> Tree:
        with Client(self.at) as client:
            return call(client, tree, timeout)

    def frame(self, tree: Tree) -> bytes:
        """The bytes of a reply."""
        with Client(self.at) as client:
            return client.exchange(wire.encode(tree), 20)


@contextmanager
def resident(folder: Path, make: Callable[[], list[Host]], **options: Any) -> Iterator[Resident]:
    """A running agent, which is gone afterwards."""
    found = Resident(folder, make, **options)
    found.start()
    try:
        yield found
    finally:
        if found.process.is_alive():
            found.kill()
        found.process.close()


def question(op: str, tag: str = "0.0.1", site: str = "ada", number: int = 0, **own: Any) -> Tree:
    """A question as a hub asks it."""
    return ask(Request(site, op, tag, number, own=own), RECIPE)


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What the condition gives once that is true; fails when it never is."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
    return found
