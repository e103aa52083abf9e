"""Flower's courier without any process: a Grid in memory, and real agents' words behind it."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'motet[flower]'")

from flwr.app import Error, Message, RecordDict

from motet.agent.messages import answered, introduced, read_question, refused
from motet.agent.protocol import receive_frame, send_frame
from motet.core import wire
from motet.core.errors import MotetError, SiteError
from motet.core.messages import Request, Traits
from motet.core.tree import DTYPES, Tree
from motet.engines.flower import records
from motet.engines.flower.clientapp import own_code_only
from motet.engines.flower.engine import FlowerEngine
from motet.engines.flower.front import guarded
from motet.engines.flower.shim import answer, app

RECIPE = "0123456789abcdef"
TRAITS = Traits(("image",), 7, "mlp", "rows")
HEAD = {"op": "train", "tag": "0.0.1", "round": 0}
EVERY_DTYPE = {
    str(dtype): torch.arange(6).to(torch.float32).to(dtype).reshape(2, 3)
    for dtype in sorted(DTYPES, key=str)
}
TREE = {
    "weights": {"w": torch.randn(5, 3, generator=torch.Generator().manual_seed(1))},
    "list": [1, None, "ü \u0000", [torch.tensor(2.5), True]],
    "empty": torch.zeros(0, 4),
    **EVERY_DTYPE,
}


def same(found: Tree, wanted: Tree) -> bool:
    return wire.digest(found) == wire.digest(wanted)


@pytest.mark.parametrize(
    "frames", [{}, {"shared": TREE}, {"own": TREE}, {"shared": TREE, "own": TREE}]
)
def test_a_question_is_the_frame_that_wire_would_have_made(frames: dict[str, Tree]) -> None:
    packed = {name: records.framed(wire.encode(tree)) for name, tree in frames.items()}
    frame = records.question_frame(records.question(HEAD, packed))
    assert same(wire.decode(frame), {**HEAD, **frames})
    # Where the tensors lie may take some digits more or fewer to say.
    assert abs(len(frame) - wire.frame_size({**HEAD, **frames})) <= 64


def test_frames_go_through_flowers_own_encoding() -> None:
    content = records.reply(wire.encode(TREE))
    carried = RecordDict.inflate(content.deflate(), children=content.children)
    assert records.reply_frame(carried) == wire.encode(TREE)


def test_what_sites_share_is_one_object() -> None:
    shared = records.framed(wire.encode({"w": torch.ones(1000)}))
    one, two = (records.question({**HEAD, "site": site}, {"shared": shared}) for site in ("a", "b"))
    assert one.array_records["frames"]["shared"].object_id == shared.object_id
    assert two.array_records["frames"]["shared"].object_id == shared.object_id
    assert one.object_id != two.object_id


DAMAGED = [
    b"",
    b"\0" * 8,
    b"\xff" * 64,
    wire.encode(TREE)[:-1],
    wire.encode(TREE)[:40],
    b"\x02" + b"\0" * 7 + b"[]",
]


@pytest.mark.parametrize("frame", DAMAGED)
def test_damaged_frames_are_refused_before_they_are_passed_on(frame: bytes) -> None:
    with pytest.raises(records.RecordError, match="own holds .* that are no frame"):
        records.splice(HEAD, {"own": frame})


def test_other_records_are_none_of_ours() -> None:
    with pytest.raises(records.RecordError, match="no question of Motet"):
        records.question_frame(RecordDict())
    strange = records.reply(b"x")
    strange.array_records["reply"]["frame"].stype = "numpy.ndarray"
    with pytest.raises(records.RecordError, match="no frame of Motet"):
        records.reply_frame(strange)


def test_the_shim_loads_no_torch() -> None:
    script = "import sys, motet.engines.flower.shim; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not {"torch", "safetensors", "pydantic"} & set(found.stdout.split())


class Agent:
    """An agent that says who it is, counts what it is asked, and gives back what it got."""

    def __init__(self, site: str, traits: Traits = TRAITS, recipe: str = RECIPE) -> None:
        self.site = site
        self.traits = traits
        self.recipe = recipe
        self.asked: list[Request] = []
        self.nonces: set[str] = set()

    def __call__(self, frame: bytes) -> bytes:
        try:
            question = read_question(wire.decode(frame))
        except MotetError as error:
            return wire.encode(refused("", "", str(error)))
        assert question.nonce not in self.nonces
        self.nonces.add(question.nonce)
        if question.request is None:
            return wire.encode(introduced(self.site, self.traits, self.recipe))
        self.asked.append(question.request)
        if question.request.op == "fail":
            return wire.encode(refused(self.site, question.tag, f"site {self.site} will not"))
        value = {"shared": question.request.shared, "own": question.request.own}
        return wire.encode(answered(self.site, question.tag, value))


class FakeGrid:
    """Flower's Grid in one process: nodes answer when replies are pulled."""

    def __init__(self, agents: Iterable[Agent] = ()) -> None:
        self.nodes: dict[int, SimpleNamespace] = {}
        self.pushed: list[Message] = []
        self.waiting: dict[str, Message] = {}
        self.eaten = 0
        for agent in agents:
            self.join(agent)

    def join(self, agent: Agent, key: bytes = b"") -> int:
        number = len(self.nodes) + 1
        self.nodes[number] = SimpleNamespace(
            node_id=number, public_key=key, last_activated_at="1", agent=agent, online=True
        )
        return number

    def get_nodes(self) -> list[SimpleNamespace]:
        return [node for node in self.nodes.values() if node.online]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        numbers = []
        for message in messages:
            number = str(len(self.pushed))
            message.metadata.__dict__["_message_id"] = number
            self.pushed.append(message)
            if self.eaten:
                self.eaten -= 1
            else:
                self.waiting[number] = message
            numbers.append(number)
        return numbers

    def pull_messages(self, numbers: Iterable[str]) -> list[Message]:
        found = []
        for number in numbers:
            message = self.waiting.get(number)
            node = None if message is None else self.nodes[message.metadata.dst_node_id]
            if message is not None and node is not None and node.online:
                del self.waiting[number]
                found.append(self.reply(message, node.agent))
        return found

    def reply(self, message: Message, agent: Any) -> Message:
        if isinstance(agent, Exception):
            return Message(Error(8, str(agent)), reply_to=message)
        if isinstance(agent, str):
            return Message(records.undelivered(agent), reply_to=message)
        return Message(
            records.reply(agent(records.question_frame(message.content))), reply_to=message
        )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("motet.engines.flower.engine.WATCH", 0.0)
    monkeypatch.setattr("motet.engines.flower.engine.AGAIN", (0.0,))
    # Flower's processes know who they are before they make messages.
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(f"flwr.supercore.task_identity.TaskIdentity.{name}", 1)


def engine(grid: FakeGrid, *sites: str, **options: Any) -> FlowerEngine:
    known = options.pop("known", dict.fromkeys(sites))
    options = {"recipe": RECIPE, "wait": 5.0, "pause": 0.001, **options}
    return FlowerEngine(grid, known, **options)  # type: ignore[arg-type]


def request(site: str, tag: str = "0.0.1", op: str = "train", **shared: Any) -> Request:
    return Request(site, op, tag, 0, shared, {"mine": site})


def test_a_round_trip_gives_every_site_its_own_reply_and_counts_frames() -> None:
    grid = FakeGrid([Agent("b"), Agent("a")])
    flower = engine(grid, "a", "b")
    assert flower.sites() == {"a": TRAITS, "b": TRAITS}
    shared = {"tree": TREE}
    flower.send([Request(site, "train", "0.0.1", 0, shared, {"mine": site}) for site in "ab"])
    replies = {reply.site: reply for reply in (flower.recv(), flower.recv()) if reply}
    assert flower.recv() is None
    for site in "ab":
        value = {"shared": shared, "own": {"mine": site}}
        assert replies[site].error is None
        assert same(replies[site].value or {}, value)
        assert replies[site].up == wire.frame_size(value)
        down = {"op": "train", "tag": "0.0.1", "round": 0, **value}
        assert replies[site].down == wire.frame_size(down)
    one, two = (message.content.array_records["frames"]["shared"] for message in grid.pushed[-2:])
    assert one.object_id == two.object_id
    assert one.data is two.data


def test_what_the_hub_changes_after_sending_does_not_travel() -> None:
    agent = Agent("a")
    flower = engine(FakeGrid([agent]), "a")
    weights = torch.ones(3)
    flower.send([request("a", w=weights)])
    weights.zero_()
    flower.recv()
    assert agent.asked[0].shared["w"].tolist() == [1, 1, 1]


def test_a_sites_refusal_is_a_reply_and_is_not_repeated() -> None:
    agent = Agent("a")
    flower = engine(FakeGrid([agent]), "a")
    flower.send([request("a", op="fail")])
    reply = flower.recv()
    assert reply is not None
    assert reply.error == "site a will not"
    assert len(agent.asked) == 1


def test_recv_gives_none_when_time_is_over_and_takes_the_reply_later() -> None:
    grid = FakeGrid([Agent("a")])
    flower = engine(grid, "a")
    grid.nodes[1].online = False
    flower.send([request("a")])
    assert flower.recv(0.01) is None
    assert flower.recv(0.0) is None
    grid.nodes[1].online = True
    reply = flower.recv(5.0)
    assert reply is not None
    assert reply.error is None


def test_an_agent_that_is_away_for_a_while_is_asked_again() -> None:
    told: list[tuple[str, str]] = []
    agent = Agent("a")
    grid = FakeGrid([agent])
    flower = engine(grid, "a", tell=lambda who, what: told.append((who, what)))
    grid.nodes[1].agent = "no agent listens there"
    flower.send([request("a")])
    assert flower.recv(0.02) is None
    grid.nodes[1].agent = agent
    reply = flower.recv(5.0)
    assert reply is not None
    assert reply.error is None
    # Said once, however often it was tried.
    assert told == [("a", "no agent listens there"), ("a", "")]


@pytest.mark.parametrize("gone", ["agent", "courier", "node"])
def test_a_site_that_stays_away_is_given_up_with_the_reason(gone: str) -> None:
    grid = FakeGrid([Agent("a")])
    flower = engine(grid, "a", patience=0.05)
    if gone == "node":
        grid.nodes[1].online = False
    else:
        grid.nodes[1].agent = "no agent listens" if gone == "agent" else OSError("crashed")
    flower.send([request("a")])
    reply = flower.recv(5.0)
    assert reply is not None
    wanted = {"agent": "no agent listens", "courier": "crashed", "node": "not connected"}[gone]
    assert reply.error is not None
    assert wanted in reply.error
    assert reply.error.startswith("site a, round 0, operation train: not reached for 0.05 s")
    assert flower.recv() is None


def test_a_supernode_that_was_restarted_is_asked_again_under_the_same_tag() -> None:
    agent = Agent("a")
    grid = FakeGrid([agent])
    flower = engine(grid, "a")
    grid.eaten = 1
    flower.send([request("a")])
    assert flower.recv(0.02) is None
    grid.nodes[1].last_activated_at = "2"
    reply = flower.recv(5.0)
    assert reply is not None
    assert [asked.tag for asked in agent.asked] == ["0.0.1"]


def test_a_reply_that_got_lost_without_a_word_is_asked_for_again() -> None:
    agent = Agent("a")
    grid = FakeGrid([agent])
    flower = engine(grid, "a")
    grid.eaten = 1
    flower.send([request("a")])
    for errand in flower._errands.values():
        errand.repeat = 0.05
    assert flower.recv(0.02) is None
    reply = flower.recv(5.0)
    assert reply is not None
    assert reply.error is None
    assert len(grid.pushed) == 3


def test_a_site_may_come_back_as_another_node() -> None:
    agent = Agent("a")
    grid = FakeGrid([agent])
    flower = engine(grid, "a")
    grid.eaten = 1
    flower.send([request("a")])
    assert flower.recv(0.02) is None
    grid.nodes[1].online = False
    grid.join(agent)
    reply = flower.recv(5.0)
    assert reply is not None
    assert reply.error is None
    assert grid.pushed[-1].metadata.dst_node_id == 2


def test_a_late_second_reply_is_dropped() -> None:
    agent = Agent("a")
    grid = FakeGrid([agent])
    flower = engine(grid, "a")
    grid.nodes[1].agent = "away"
    flower.send([request("a")])
    flower.recv(0.01)
    grid.nodes[1].agent = agent
    # What was sent before the restart is answered too.
    grid.nodes[1].last_activated_at = "2"
    assert flower.recv(5.0) is not None
    flower.send([request("a", tag="0.0.2")])
    reply = flower.recv(5.0)
    assert reply is not None
    assert reply.tag == "0.0.2"
    assert flower.recv(0.0) is None


def test_who_does_not_say_hello_is_named() -> None:
    grid = FakeGrid([Agent("a")])
    grid.join("no agent listens there")  # type: ignore[arg-type]
    with pytest.raises(
        SiteError, match="no hello from b, c within 0.05 s; .*no agent listens there"
    ):
        engine(grid, "a", "b", "c", wait=0.05)


def test_a_site_that_was_set_up_for_another_recipe_is_refused_at_once() -> None:
    with pytest.raises(SiteError, match="site a was set up for the recipe"):
        engine(FakeGrid([Agent("a", recipe="f" * 16)]), "a")


def test_a_stranger_takes_no_part() -> None:
    told: dict[str, str] = {}
    grid = FakeGrid([Agent("stranger"), Agent("a")])
    flower = engine(grid, "a", tell=told.__setitem__)
    flower.send([request("a")])
    assert flower.recv() is not None
    assert list(flower.sites()) == ["a"]
    assert "which has no part in this run" in told["node 1"]


def test_a_key_is_asked_only_as_its_own_site() -> None:
    grid = FakeGrid()
    spy = Agent("a")
    grid.join(spy, b"unknown key\n")
    grid.join(Agent("a"), b"key of a\n")
    known = {"a": b"key of a"}
    flower = engine(grid, known=known)
    flower.send([request("a")])
    reply = flower.recv()
    assert reply is not None
    assert grid.pushed[-1].metadata.dst_node_id == 2
    assert spy.nonces == set()


def test_a_site_cannot_speak_for_another() -> None:
    grid = FakeGrid()
    grid.join(Agent("b"), b"key of a")
    grid.join(Agent("b"), b"key of b")
    with pytest.raises(SiteError, match="another site's key says that it is b"):
        engine(grid, known={"a": b"key of a", "b": b"key of b"})


def test_a_reply_of_another_tag_is_an_error_and_not_taken() -> None:
    grid = FakeGrid([Agent("a")])
    flower = engine(grid, "a")
    grid.nodes[1].agent = lambda frame: wire.encode(answered("a", "9.9.9", {}))
    flower.send([request("a")])
    reply = flower.recv()
    assert reply is not None
    assert reply.value is None
    assert "what came back is no reply" in str(reply.error)


def test_a_damaged_reply_is_an_error() -> None:
    grid = FakeGrid([Agent("a")])
    flower = engine(grid, "a")
    grid.nodes[1].agent = lambda frame: b"rubbish"
    flower.send([request("a")])
    reply = flower.recv()
    assert reply is not None
    assert "what came back is no reply" in str(reply.error)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Callable[[Callable[[bytes], bytes]], str]]:
    """Starts what answers one frame at a Unix socket."""
    servers: list[socket.socket] = []

    def start(agent: Callable[[bytes], bytes]) -> str:
        path = str(tmp_path / "agent.sock")
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(path)
        server.listen()
        servers.append(server)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                frame = receive_frame(connection)
                assert frame is not None
                if reply := agent(frame):
                    send_frame(connection, reply)

        threading.Thread(target=serve, daemon=True).start()
        return path

    yield start
    for server in servers:
        server.close()


def asking() -> RecordDict:
    from motet.agent.messages import ask

    head = ask(Request("a", "train", "0.0.1", 0), RECIPE)
    return records.question(head, {"shared": records.framed(wire.encode(TREE))})


def test_the_shim_hands_the_question_to_the_agent_and_its_reply_back(listening: Any) -> None:
    path = listening(Agent("a"))
    found = wire.decode(records.reply_frame(answer(asking(), path)))
    assert found["site"] == "a"
    assert same(found["value"]["shared"], TREE)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        (None, "--node-config 'socket="),
        ("/nowhere/agent.sock", "start it there: motet site --config"),
        ("/tmp/" + "x" * 120, "the path of a socket has 125 bytes and may have 103"),
    ],
)
def test_the_shim_says_what_to_do_when_nobody_can_be_asked(path: str | None, told: str) -> None:
    with pytest.raises(records.RecordError) as error:
        records.reply_frame(answer(asking(), path))
    assert told in str(error.value)


def test_an_agent_that_dies_over_a_question_is_told_of(listening: Any) -> None:
    path = listening(lambda frame: b"")
    with pytest.raises(records.RecordError, match="broke off"):
        records.reply_frame(answer(asking(), path))


def asgi(scope: dict[str, Any]) -> list[dict[str, Any]]:
    """What a guarded application sends for a request."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "passed on"})

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guarded(app)(scope, None, send))  # type: ignore[arg-type]
    return sent


@pytest.mark.parametrize("client", ["10.0.0.5", "127.0.0.2", "::ffff:10.0.0.5", None])
@pytest.mark.parametrize(
    ("path", "open_to_all"),
    [
        ("/v1/fleet/pull-messages", True),
        ("/health", True),
        ("/v1/control/start-run", False),
        ("/v1/runtime/push-messages", False),
        ("/v1/fleet/../control/start-run", False),
        ("/v1/fleetx", False),
        ("/", False),
    ],
)
def test_from_elsewhere_only_what_supernodes_need(
    client: str | None, path: str, open_to_all: bool
) -> None:
    scope = {"type": "http", "path": path, "client": client and (client, 5)}
    sent = asgi(scope)
    assert (sent == [{"type": "passed on"}]) is open_to_all
    assert open_to_all or sent[0]["status"] == 403
    assert asgi({**scope, "client": ("127.0.0.1", 5)}) == [{"type": "passed on"}]
    assert asgi({**scope, "client": ("::1", 5)}) == [{"type": "passed on"}]
    assert asgi({**scope, "type": "websocket"}) == [{"type": "websocket.close", "code": 1008}]


def test_a_site_loads_motets_app_whatever_the_hub_sends() -> None:
    runtime = SimpleNamespace(install_from_fab=open, get_load_client_app_fn=open)
    own_code_only(runtime)
    assert runtime.install_from_fab(b"anything", skip_prompt=True) is None
    assert runtime.get_load_client_app_fn(default_app_ref="")("id", "1", "hash") is app


def test_a_flower_that_loads_apps_otherwise_is_not_started() -> None:
    with pytest.raises(SystemExit, match="does not know"):
        own_code_only(SimpleNamespace(install_from_fab=open))


def test_the_installed_flower_is_one_of_those() -> None:
    from importlib import import_module

    known = import_module("flwr.supernode.runtime.run_clientapp")
    names = known.run_clientapp.__code__.co_names
    assert {"install_from_fab", "get_load_client_app_fn"} <= set(names)
    own_code_only(SimpleNamespace(**vars(known)))
