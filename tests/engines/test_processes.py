"""Sites in real processes: the bits of the reference, whoever is killed, and at what cost."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from tests.agent.toyagents import RECIPE, TARGET, share, until
from tests.conformance.tiny import Case, experiment, parties, try_out
from tests.core.toys import NAMES, Phases, federation, specs

from motet.agent.messages import asked
from motet.core import ConfigError, Engine, Reply, Request, WireError, wire
from motet.core.events import Event
from motet.engines.nursery import nursery
from motet.engines.processes import ATTEMPTS, Processes
from motet.experiment import worker
from motet.experiment.runner import METRICS, Result, metrics_csv, run

PROBES = ("fedavg", "creamfl", "scaffold", "frl", "split-tuning", "gossip")
ON = ("engine.name=processes", "engine.processes=2")


@pytest.fixture(autouse=True)
def _find_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process from which agents are forked must find the tests' own sites."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


@cache
def plain(name: str, *settings: str) -> Result:
    """The reference: in one process, one site after the other."""
    return try_out(Case(name), *settings)


def told(result: Result) -> list[str]:
    """What happened, bytes included; in which order sites answer is nobody's business."""
    events = [
        {key: value for key, value in event.items() if key != "time"}
        for event in result.events
        if event["event"] not in ("started", "checkpoint", "resumed")
    ]
    return sorted(json.dumps(event, sort_keys=True) for event in events)


def equal(found: Result, name: str, *settings: str) -> None:
    assert found.hash == plain(name, *settings).hash
    assert told(found) == told(plain(name, *settings))


@pytest.mark.parametrize("name", PROBES)
def test_it_gives_the_bits_of_the_reference(name: str) -> None:
    equal(try_out(Case(name), *ON), name)


PROTECTED = {
    "codec": "protect.compress={weights: int8}",
    "sparse": "protect.compress={weights: top-k}",
    "local privacy": "protect.privacy={mode: local, kinds: [weights], clip: 1.0, noise: 0.01}",
    "secure sum": "protect.secure_sum={kinds: [weights], dropouts: 1, weights: uniform}",
    "attack": "attack={name: label-flip, share: 0.34}",
    "median": "protect.robust={name: median}",
}


@pytest.mark.parametrize("setting", PROTECTED.values(), ids=PROTECTED)
def test_protection_works_across_processes(setting: str) -> None:
    equal(try_out(Case("fedavg"), *ON, setting), "fedavg", setting)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_the_number_of_processes_changes_nothing(count: int) -> None:
    equal(try_out(Case("scaffold"), ON[0], f"engine.processes={count}"), "scaffold")


class Watched:
    """Runs a recipe while something else can get at the engine."""

    def __init__(self) -> None:
        self.engine: Any = None

    def wrap(self, engine: Engine) -> Engine:
        self.engine = engine
        return engine

    def run(self, name: str, *settings: str, folder: Path | None = None, **options: Any) -> Result:
        wanted = experiment(Case(name), *ON, *settings)
        return run(wanted, folder=folder, parties=parties(wanted), wrap=self.wrap, **options)

    def kill(self, rng: random.Random, fresh: bool = True) -> bool:
        """Kills one of the processes; whether there was one.

        fresh: also one that has not answered since it was started. Of those that are killed over
        and over nobody learns anything but that a question is given up.
        """
        agents = [agent for agent in self.engine.agents if agent.pid is not None]
        agents = [agent for agent in agents if fresh or (agent._client and agent._client.received)]
        if not agents:
            return False
        # Its parent has hardly been asked yet how it ended, so that the number is nobody else's.
        with suppress(ProcessLookupError):
            os.kill(rng.choice(agents).pid, signal.SIGKILL)
        return True


@pytest.mark.parametrize("name", PROBES)
def test_agents_that_are_killed_between_questions_change_nothing(name: str, tmp_path: Path) -> None:
    watched, rng, kills = Watched(), random.Random(name), []

    def listener(event: Event) -> None:
        if event["event"] in ("round", "checkpoint", "metric"):
            kills.append(watched.kill(rng))

    equal(watched.run(name, folder=tmp_path / "run", listeners=[listener]), name)
    assert sum(kills) >= 4


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("saved", [False, True])
def test_agents_that_are_killed_at_work_change_nothing(
    tmp_path: Path, seed: int, saved: bool
) -> None:
    """At random moments of a run, whatever the processes do then."""
    watched, rng, over = Watched(), random.Random(seed), threading.Event()
    kills: list[bool] = []

    def killer() -> None:
        while not over.wait(rng.uniform(0.0, 0.05)):
            if watched.engine is not None:
                kills.append(watched.kill(rng, fresh=False))

    thread = threading.Thread(target=killer)
    thread.start()
    folder = tmp_path / "run" if saved else None
    try:
        result = watched.run("scaffold", "method.rounds=10", folder=folder)
    finally:
        over.set()
        thread.join()
    assert sum(kills) >= 3
    equal(result, "scaffold", "method.rounds=10")


def killed_hub(name: str, folder: Path, count: int, pids: Path) -> bool:
    """A hub in a process of its own that is killed after so many events; whether it was."""

    def child() -> None:
        watched = Watched()
        left = iter(range(count - 1, -1, -1))

        def listener(_: Event) -> None:
            if next(left, 1) == 0:
                engine = watched.engine
                known = [engine.scratch, *(agent.pid for agent in engine.agents if agent.pid)]
                pids.write_text("\n".join(map(str, known)))
                os.kill(os.getpid(), signal.SIGKILL)

        watched.run(name, folder=folder, listeners=[listener])

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("name", ["creamfl", "scaffold"])
def test_a_killed_hub_goes_on_and_leaves_nobody_behind(name: str, tmp_path: Path) -> None:
    folder, pids = tmp_path / "run", tmp_path / "pids"
    assert killed_hub(name, folder, len(plain(name).events) // 2, pids)
    scratch, *processes = pids.read_text().split("\n")
    assert processes
    until(lambda: not any(map(exists, processes)) and not Path(scratch).exists())
    result = Watched().run(name, folder=folder)
    assert result.hash == plain(name).hash
    assert sorted((folder / METRICS).read_text().splitlines()) == sorted(
        metrics_csv(plain(name).events).splitlines()
    )


def exists(pid: str) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Processes]:
    """Five toy sites in two processes."""
    found = toys("odd")
    try:
        yield found
    finally:
        found.close()


def toys(method: str, folder: Path | None = None) -> Processes:
    traits = {spec.name: spec.traits for spec in specs()}
    shares = [share(method, NAMES[:3], folder), share(method, NAMES[3:], folder)]
    return Processes(traits, shares, target=TARGET, recipe=RECIPE)


def tell(engine: Processes, op: str, tag: str = "0.0.1", site: str = "ada", **own: Any) -> Reply:
    engine.send([Request(site, op, tag, 0, own=own)])
    reply = engine.recv()
    assert reply is not None
    return reply


def test_all_that_can_be_kept_is_kept(tmp_path: Path) -> None:
    """Models, optimisers, states, two loops, and a kill of both processes at every save."""
    reference = federation(Phases())
    reference.start()
    found = toys("phases", tmp_path / "run" / "sites")

    def kill(event: dict[str, object]) -> None:
        if event["event"] == "checkpoint":
            for agent in found.agents:
                if agent.pid is not None:
                    os.kill(agent.pid, signal.SIGKILL)

    traits = {site: reference.engine.sites()[site] for site in NAMES}
    found._traits = traits
    fed = federation(Phases(), folder=tmp_path / "run", wrap=lambda _: found, listener=kill)
    try:
        fed.start()
    finally:
        found.close()
        fed.events.close()
    ends = [wire.encode({"state": one.state, "learner": one.tree()}) for one in (reference, fed)]
    assert ends[0] == ends[1]


def test_processes_work_at_the_same_time(engine: Processes, tmp_path: Path) -> None:
    """Both have begun before either is let go."""
    paths = {site: tmp_path / site for site in (NAMES[0], NAMES[3])}
    engine.send(
        [Request(site, "wait", "0.0.1", 0, own={"path": str(path)}) for site, path in paths.items()]
    )
    assert engine.recv(timeout=0.01) is None
    for path in paths.values():
        until(path.with_name(path.name + ".begun").exists)
    for path in paths.values():
        path.touch()
    assert sorted(reply.site for reply in (engine.recv(), engine.recv()) if reply) == sorted(paths)
    assert engine.recv() is None


def test_a_process_that_dies_is_replaced_and_asked_again(engine: Processes, tmp_path: Path) -> None:
    assert tell(engine, "visit", "0.0.1").value is not None
    reply = tell(engine, "die", "0.0.2", path=str(tmp_path / "died"))
    assert (reply.error, reply.value and reply.value["died"]) == (None, 1)
    again = tell(engine, "visit", "0.0.3").value
    # An operation puts its own state in place of the one before.
    assert again is not None
    assert again["visits"] == 1
    assert engine._agent_of["ada"].starts == 2


def test_a_question_over_which_every_process_dies_is_given_up(engine: Processes) -> None:
    reply = tell(engine, "die")
    assert reply.error == (
        f"site ada, round 0, operation die: its process ended {ATTEMPTS} times over it: "
        "exit code 3, after 'last words'"
    )
    assert (reply.down > 0, reply.up) == (True, 0)
    # The site is there for the next one.
    assert tell(engine, "visit", "0.0.2").error is None


def test_sites_that_cannot_be_set_up_say_why() -> None:
    broken = toys("broken")
    try:
        error = tell(broken, "visit").error
    finally:
        broken.close()
    assert error is not None
    assert "exit code 1, after 'RuntimeError: these sites cannot be set up'" in error


def test_a_target_that_is_not_there_is_told() -> None:
    lost = Processes({}, [share("odd", ["ada"])], target="motet.core:nobody", recipe=RECIPE)
    try:
        error = tell(lost, "visit").error
    finally:
        lost.close()
    assert error == "the process that starts agents has ended"


def test_a_nursery_that_dies_is_replaced(engine: Processes) -> None:
    tell(engine, "visit", "0.0.1")
    before = nursery(TARGET)
    before._process.kill()
    before._process.wait()
    # Agents that run do not need it.
    assert tell(engine, "visit", "0.0.2").error is None
    pid = engine._agent_of["ada"].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    value = tell(engine, "visit", "0.0.3").value
    assert value is not None
    assert value["visits"] == 3
    assert nursery(TARGET) is not before


def test_a_failure_is_a_reply(engine: Processes) -> None:
    error = tell(engine, "fail").error
    assert error is not None
    assert error.startswith("site ada, round 0, operation fail: ValueError: a private value")
    told = tell(engine, "nobody", "0.0.2").error
    assert told is not None
    assert told.startswith("site ada refuses 'nobody'")


def test_a_payload_that_cannot_travel_is_refused(engine: Processes) -> None:
    with pytest.raises(WireError, match=r"payload at own\.x is of type set"):
        engine.send([Request("ada", "nothing", "0.0.1", 0, own={"x": {1}})])
    assert engine.recv() is None


def test_what_the_hub_does_later_does_not_reach_a_site(engine: Processes, tmp_path: Path) -> None:
    z, path = torch.ones(2), tmp_path / "work"
    engine.send([Request("ada", "wait", "0.0.1", 0, own={"path": str(path)})])
    engine.send([Request("ada", "nothing", "0.0.2", 0, {"z": z})])
    z.mul_(9)
    path.touch()
    replies = [engine.recv(), engine.recv()]
    assert replies[1] is not None
    assert replies[1].value is not None
    assert replies[1].value["z"].tolist() == [1.0, 1.0]


def test_it_closes_while_sites_are_at_work(tmp_path: Path) -> None:
    engine = toys("odd")
    path = tmp_path / "never"
    engine.send([Request("ada", "wait", "0.0.1", 0, own={"path": str(path)})] * 2)
    until(path.with_name("never.begun").exists)
    pid, scratch = engine._agent_of["ada"].pid, engine.scratch
    assert exists(str(pid))
    engine.close()
    assert not exists(str(pid))
    assert not scratch.exists()
    assert engine.recv() is None
    engine.close()


def test_it_closes_before_anything_was_asked() -> None:
    engine = toys("odd")
    engine.close()
    assert not engine.scratch.exists()


def many(engine: Processes, count: int, op: str, **own: Any) -> list[float]:
    """Seconds of each of so many exchanges."""
    tell(engine, op, f"{uuid4()}", **own)
    found = []
    for _ in range(count):
        tag, begun = f"{uuid4()}", time.perf_counter()
        assert tell(engine, op, tag, **own).error is None
        found.append(time.perf_counter() - begun)
    return found


@pytest.mark.parametrize("op", ["nothing", "visit"])
def test_an_exchange_costs_little_time(engine: Processes, op: str) -> None:
    """The quickest tenth of many, since others are at work on this machine too."""
    assert statistics.quantiles(many(engine, 100, op), n=10)[0] < 0.005


@pytest.mark.parametrize("numbers", [0, 1, 1000, 1_000_000])
def test_sockets_carry_little_but_the_payload(engine: Processes, numbers: int) -> None:
    tell(engine, "nothing", "0.0.1")
    before = engine.traffic
    z = torch.zeros(numbers)
    reply = tell(engine, "nothing", "0.0.2", z=z)
    sent, received = (now - then for now, then in zip(engine.traffic, before, strict=True))
    down = len(wire.encode(asked(Request("ada", "nothing", "0.0.2", 0, own={"z": z}))))
    assert reply.value is not None
    up = len(wire.encode(reply.value))
    assert (reply.down, reply.up) == (down, up)
    assert down <= sent <= 1.001 * down + 300
    assert up <= received <= 1.001 * up + 300


def test_sites_are_shared_out_by_their_rows() -> None:
    groups = worker.shared_out(specs(), 2)
    assert sorted(site.name for group in groups for site in group) == list(NAMES)
    sizes = [sum(len(site.data) for site in group) for group in groups]
    # 6, 7, 8, 9 and 10 rows.
    assert max(sizes) - min(sizes) <= 6
    assert len(worker.shared_out(specs(), 9)) == 5


def test_there_is_a_process_for_every_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert worker.cores(experiment(Case("fedavg"))) == 6
    assert worker.cores(experiment(Case("fedavg"), "engine.threads=4")) == 1
    assert worker.cores(experiment(Case("fedavg"), "engine.threads=9")) == 1


def test_a_system_without_what_it_needs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    with pytest.raises(ConfigError, match="engine.name: processes needs .*; write serial"):
        Processes({}, [], target=TARGET, recipe=RECIPE)
