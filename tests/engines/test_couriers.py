"""Asynchronous rounds through real couriers: their time is real, and no simulated clock runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.conformance.tiny import Case, data, experiment

from motet.agent.host import Host
from motet.agent.memory import Memory
from motet.agent.messages import read_question, refused
from motet.agent.protocol import recipe_digest
from motet.core import ConfigError, MotetError, wire
from motet.core.messages import Engine
from motet.core.site import Door, Site
from motet.core.validate import row_order
from motet.engines.clock import ClientProfiles
from motet.evaluate.suite import evaluate
from motet.experiment import build
from motet.experiment.build import build_parties, hub_parties
from motet.experiment.runner import run
from motet.experiment.spec import Experiment

BUFFERED = experiment(Case("fedbuff"))
Frames = dict[str, Callable[[bytes], bytes]]


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load_data", lambda name, **options: data())


def agents(wanted: Experiment) -> Frames:
    """What the agent of each site answers to a frame."""
    made = build_parties(wanted)
    # One thread may work at a time, as in processes of their own.
    lock = threading.Lock()

    def of(host: Host) -> Callable[[bytes], bytes]:
        def answer(frame: bytes) -> bytes:
            question = read_question(wire.decode(frame))
            if question.request is None:
                return wire.encode(host.hello())
            try:
                with lock:
                    return host.answer(host.admit(question, lambda _: False), question)
            except MotetError as error:
                return wire.encode(refused(host.name, question.tag, str(error)))

        return answer

    found: Frames = {}
    for spec in made.sites:
        site = Site(spec, seed=wanted.seed, public=made.public, evaluate=evaluate)
        traits = spec.traits
        if made.public is not None:
            traits = type(traits)(
                traits.modalities, traits.rows, traits.model, public=row_order(made.public)
            )
        found[spec.name] = of(
            Host(
                Door(site, wanted.method),
                traits,
                method="fedbuff",
                recipe=recipe_digest(wanted.plain()),
                memory=Memory(None),
            )
        )
    return found


def through_flower(sites: Frames, recipe: str) -> Engine:
    from tests.engines.test_flower import FakeGrid

    from motet.engines.flower.engine import FlowerEngine

    return FlowerEngine(
        FakeGrid(list(sites.values())),  # type: ignore[arg-type]
        dict.fromkeys(sites),
        recipe=recipe,
        wait=20.0,
        pause=0.001,
    )


def through_nvflare(sites: Frames, recipe: str) -> Engine:
    from motet.engines.nvflare import letters
    from motet.engines.nvflare.engine import NvflareEngine

    class Proxy:
        def __init__(self, agent: Callable[[bytes], bytes]) -> None:
            self.agent = agent

        def __call__(self, *, timeout: float) -> Any:
            return self

        def ask(self, letter: bytes) -> bytes:
            return letters.REPLY + self.agent(letter[1:])

    proxies = {name: Proxy(agent) for name, agent in sites.items()}
    return NvflareEngine(proxies, recipe=recipe, wait=20.0)


@pytest.mark.parametrize("reach", [through_flower, through_nvflare])
def test_buffered_rounds_go_by_real_time(
    reach: Callable[[Frames, str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    if reach is through_flower:
        pytest.importorskip("flwr", reason="flwr is not installed: pip install 'motet[flower]'")
        # Flower's processes know who they are before they make messages.
        for name in ("_run_id", "_node_id", "_task_id"):
            monkeypatch.setattr(f"flwr.supercore.task_identity.TaskIdentity.{name}", 1)
    engine = reach(agents(BUFFERED), recipe_digest(BUFFERED.plain()))
    # Nothing is asked: nothing will ever come.
    assert engine.recv() is None
    result = run(BUFFERED, parties=hub_parties(BUFFERED), engine=engine)
    posted = [event for event in result.events if event["event"] == "posted"]
    assert posted
    assert result.events[-1]["event"] == "finished"
    assert [event for event in result.events if event["event"] == "failed"] == []
    # A clock that is made up would say its seconds.
    assert not any("seconds" in event for event in result.events)


def test_a_simulation_of_them_has_a_clock() -> None:
    result = run(BUFFERED, parties=build_parties(BUFFERED))
    assert any("seconds" in event for event in result.events)


def test_a_recipe_with_made_up_clients_is_for_a_simulation() -> None:
    wanted = BUFFERED.model_copy(update={"clients": ClientProfiles()})
    with pytest.raises(ConfigError, match="clients: only a simulation has it"):
        hub_parties(wanted)
