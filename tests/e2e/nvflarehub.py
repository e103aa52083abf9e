"""What NVFlare's server runs in the tests, and agents of real processes for it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from nvflare.collab import collab
from tests.agent.toyagents import RECIPE, Odd, host, share
from tests.conformance.tiny import parties, recipe
from tests.core.toys import specs

from motet.agent.host import Host
from motet.agent.protocol import recipe_digest
from motet.core import Request, wire
from motet.engines.nursery import nursery
from motet.engines.nvflare.engine import NvflareEngine, connect
from motet.engines.processes import Share
from motet.experiment import worker
from motet.experiment.build import Parties
from motet.experiment.runner import run
from motet.experiment.spec import Experiment, parse_experiment, with_settings

PROBES = ("fedavg", "creamfl", "scaffold", "split-tuning")
POPULATIONS = ("image", "pair", "text")
DEAD = ("method.quorum=0.5",)
SITES = tuple(f"{name}-1" for name in POPULATIONS)


# Toy sites of these names, with an operation that answers what it was sent.
TOYS = "tests.e2e.nvflarehub:toys_of"


def toys_of(setup: Path) -> list[Host]:
    """What a nursery calls for the toy site that a set-up file names."""
    torch.set_num_threads(1)
    names = wire.decode(setup.read_bytes())["sites"]
    memory = setup.parent / "memory"
    return [host(spec, Odd(), memory=memory, careful=False) for spec in specs(names)]


def wanted(method: str, *settings: str) -> Experiment:
    """A method's tiny recipe with three sites, of the same names for all methods."""
    from tests.conformance.tiny import NEEDS

    values = with_settings(recipe(method), NEEDS.get(method, []))
    if len(values["populations"]) == 1:
        (one,) = values["populations"]
        values["populations"] = [{**one, "name": name} for name in POPULATIONS]
    for population in values["populations"]:
        population["count"] = 1
    if "cohort" in values["method"]:
        values["method"]["cohort"] = len(SITES)
    return parse_experiment(with_settings(values, settings))


@contextmanager
def agents(target: str, shares: Sequence[Share], folder: Path) -> Iterator[dict[str, int]]:
    """Processes of these sites; pids by site."""
    found: dict[str, int] = {}
    for one in shares:
        (site,) = one.sites
        own = folder / f"{site}.agent"
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        (own / "setup").write_bytes(one.setup)
        at = folder / f"{site}.sock"
        found[site] = nursery(target).start(own, own / "setup", at, own / "log")
    try:
        yield found
    finally:
        for pid in found.values():
            nursery(target).end(pid, now=True)
        for site in found:
            (folder / f"{site}.sock").unlink(missing_ok=True)


def shares_of(experiment: Experiment, made: Parties, folder: Path | None) -> list[Share]:
    """One process for each site."""
    each = experiment.model_copy(
        update={"engine": experiment.engine.model_copy(update={"processes": len(SITES)})}
    )
    return list(worker._shares(experiment.plain(), each, made, folder))


def meet(experiment: Experiment, patience: float = 60.0) -> NvflareEngine:
    recipe = recipe_digest(experiment.plain())
    return connect(SITES, recipe=recipe, wait=60.0, patience=patience)


class Probes:
    """Runs the tiny recipes one after the other in one job; what came of it goes into a file."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @collab.main
    def run(self) -> None:
        torch.set_num_threads(1)
        found: dict[str, Any] = {}
        try:
            for method in PROBES:
                found[method] = self.probe(method)
            found["dead site"] = self.dead_site()
            found["odd"] = self.odd()
        finally:
            (Path(self.folder) / "found.json").write_text(json.dumps(found, indent=1))

    def probe(self, method: str) -> dict[str, Any]:
        experiment = wanted(method)
        made = parties(experiment)
        folder = Path(self.folder)
        with agents(worker.TARGET, shares_of(experiment, made, None), folder):
            engine = meet(experiment)
            began = time.monotonic()
            result = run(experiment, parties=made, wrap=lambda _: engine)
            seconds = time.monotonic() - began
        down, up = engine.traffic
        replied = [event for event in result.events if event["event"] == "replied"]
        return {
            "hash": result.hash,
            "failed": [event["error"] for event in result.events if event["event"] == "failed"],
            "seconds": seconds,
            "asked": len(replied),
            "letters": [down, up],
            "frames": [sum(event[way]["frame"] for event in replied) for way in ("down", "up")],
        }

    def dead_site(self) -> dict[str, Any]:
        """The agent of one site is killed after the first round, and stays away."""
        experiment = wanted("fedavg", *DEAD)
        made = parties(experiment)
        folder = Path(self.folder)
        with agents(worker.TARGET, shares_of(experiment, made, None), folder) as pids:
            engine = meet(experiment, patience=1.0)

            def listener(event: dict[str, Any]) -> None:
                if event["event"] == "round" and event["round"] == 1:
                    nursery(worker.TARGET).end(pids["text-1"], now=True)

            result = run(experiment, parties=made, wrap=lambda _: engine, listeners=[listener])
        failed = [event for event in result.events if event["event"] == "failed"]
        return {
            "hash": result.hash,
            "failed": [(event["round"], event["site"], event["error"]) for event in failed],
        }

    def odd(self) -> dict[str, Any]:
        """Toy sites: what is refused, how long an exchange takes, and what goes over the wire."""
        folder = Path(self.folder)
        toys = [share("odd", [site]) for site in SITES]
        with agents(TOYS, toys, folder):
            engine = connect(SITES, recipe=RECIPE, wait=60.0, patience=10.0)
            try:
                return {
                    "stranger": self.ask(engine, Request("pair-1", "steal", "1", 0)).error,
                    "seconds": self.timed(engine, 0, 20),
                    "bytes": self.bytes(engine),
                }
            finally:
                engine.close()

    def ask(self, engine: NvflareEngine, request: Request) -> Any:
        engine.send([request])
        reply = engine.recv(60)
        assert reply is not None
        return reply

    def timed(self, engine: NvflareEngine, count: int, times: int) -> list[float]:
        """Seconds of a question to all three sites at once."""
        found = []
        for number in range(times):
            shared = {"z": torch.zeros(count)}
            began = time.monotonic()
            engine.send(
                [Request(site, "nothing", f"t{count}.{number}", 0, shared) for site in SITES]
            )
            for _ in SITES:
                reply = engine.recv(60)
                assert reply is not None
                assert reply.error is None
            found.append(time.monotonic() - began)
        return found

    def bytes(self, engine: NvflareEngine) -> list[dict[str, Any]]:
        """Bytes of frames, of letters, and of this process's TCP connections."""
        found = []
        for count in (0, 250_000, 2_500_000):
            frames, before, wire_before = [0, 0], engine.traffic, tcp_bytes()
            began = time.monotonic()
            for number in range(4):
                shared = {"z": torch.zeros(count)}
                tag = f"b{count}.{number}"
                reply = self.ask(engine, Request("pair-1", "nothing", tag, 0, shared))
                assert reply.error is None, reply
                frames = [frames[0] + reply.down, frames[1] + reply.up]
            seconds = (time.monotonic() - began) / 4
            after, wire_after = engine.traffic, tcp_bytes()
            found.append(
                {
                    "floats": count,
                    "seconds": seconds,
                    "frames": frames,
                    "letters": [b - a for a, b in zip(before, after, strict=True)],
                    "tcp": [b - a for a, b in zip(wire_before, wire_after, strict=True)],
                }
            )
        return found


def tcp_bytes() -> tuple[int, int]:
    """(sent and acknowledged, received) bytes of all TCP connections of this process."""
    import socket
    import struct

    sent = received = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as one:
                if one.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                acked, got = struct.unpack_from("<QQ", info, 120)
        except OSError:
            continue
        sent, received = sent + acked, received + got
    return sent, received
