"""A real agent process behind a real socket: what it takes, what it refuses, how it ends."""

from __future__ import annotations

import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.agent.toyagents import RECIPE, Odd, Resident, host, question, resident, until
from tests.core.toys import specs

from motet.agent.client import Client
from motet.agent.host import Host
from motet.agent.journal import read_journal
from motet.agent.messages import about, call, own_version, read_hello
from motet.agent.policy import Policy, decide
from motet.agent.protocol import ProtocolError, receive_frame, send_frame
from motet.agent.server import MAX_CONNECTIONS, alone, listen
from motet.core import ConfigError, SiteError, wire

LIMIT = 200_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    return tmp_path


def hosts(folder: Path, *names: str, **options: Any) -> list[Host]:
    return [
        host(
            spec,
            Odd(),
            shelf=folder / "shelf" / spec.name,
            memory=folder / "memory" / spec.name,
            folder=folder / "site",
            **options,
        )
        for spec in specs(names or ("ada",))
    ]


@pytest.fixture
def agent(folder: Path) -> Iterator[Resident]:
    with resident(folder, lambda: hosts(folder, candid=False), limit=LIMIT) as found:
        yield found


def alive(agent: Resident) -> None:
    """It still answers, and this process is the first one."""
    assert agent.call(about("status"))["value"]["process"] == agent.process.pid


def test_it_says_who_it_is(agent: Resident) -> None:
    site, traits = read_hello(agent.call(about("hello")), RECIPE)
    assert (site, traits.modalities, traits.rows) == ("ada", ("x",), 6)
    assert len(traits.public) == 16
    with pytest.raises(SiteError, match="give both the same recipe file"):
        read_hello(agent.call(about("hello")), "other")


def test_a_connection_takes_one_question_after_the_other(agent: Resident) -> None:
    with Client(agent.at) as client:
        for number in range(1, 4):
            reply = call(client, question("visit", f"0.0.{number}"))
            assert (reply["site"], reply["tag"]) == ("ada", f"0.0.{number}")
            assert reply["value"]["visits"] == number


def test_nobody_else_can_connect(agent: Resident) -> None:
    assert agent.at.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("moment", ["idle", "at work"])
def test_a_killed_agent_gives_the_same_bytes_and_counts_once(
    agent: Resident, folder: Path, moment: str
) -> None:
    agent.call(question("visit", "0.0.1"))
    frame = agent.frame(question("visit", "0.0.2"))
    if moment == "at work":
        path = folder / "work"
        threading.Thread(
            target=ignore, args=[agent, question("wait", "0.0.3", path=str(path))]
        ).start()
        until(path.with_name("work.begun").exists)
    agent.kill()
    agent.start()
    assert agent.frame(question("visit", "0.0.2")) == frame
    assert agent.call(question("visit", "0.0.4"))["value"]["visits"] == 3
    lines = read_journal(folder / "site" / "journal.jsonl")
    assert [line["tag"] for line in lines if line["what"] == "left"] == [
        "0.0.1",
        "0.0.2",
        "0.0.2",
        "0.0.4",
    ]


def ignore(agent: Resident, tree: dict[str, Any]) -> None:
    """Asks, and does not mind that the agent dies."""
    try:
        agent.call(tree, None)
    except OSError:
        return


def test_a_hub_that_goes_away_finds_its_answer_later(agent: Resident, folder: Path) -> None:
    """Two connections ask the same while it is at work: it works once."""
    path = folder / "work"
    asked = question("wait", "0.0.1", path=str(path))
    with Client(agent.at) as client, pytest.raises(TimeoutError):
        client.exchange(wire.encode(asked), 0.01)
    until(path.with_name("work.begun").exists)
    frames: list[bytes] = []
    second = threading.Thread(
        target=lambda: frames.append(agent.frame(question("wait", "0.0.1", path=str(path))))
    )
    second.start()
    path.touch()
    second.join()
    assert wire.decode(frames[0])["value"]["z"].tolist() == [0.0]
    assert agent.call(about("status"))["value"]["answers"] == 1


def test_status_is_told_while_it_works(agent: Resident, folder: Path) -> None:
    path = folder / "work"
    asked = question("wait", "0.2.1", number=2, path=str(path))
    asking = threading.Thread(target=agent.call, args=[asked])
    asking.start()
    until(path.with_name("work.begun").exists)
    status = agent.call(about("status"))["value"]
    assert status["doing"] == "wait, round 2"
    assert status["started"] <= status["since"]
    path.touch()
    asking.join()
    status = agent.call(about("status"))["value"]
    assert (status["doing"], status["last"], status["answers"]) == ("idle", "wait, round 2", 1)


@pytest.mark.parametrize("op", ["run", "__init__", "model_dump", "@exec", "evaluate.x", ""])
def test_an_unauthorised_operation_is_refused(agent: Resident, op: str) -> None:
    assert "site ada" in agent.call(question(op))["error"]
    alive(agent)


def test_a_bug_tells_its_place_and_no_value(agent: Resident) -> None:
    error = agent.call(question("fail"))["error"]
    assert error.startswith("site ada, round 0, operation fail: ValueError (line")
    assert "4711" not in error
    alive(agent)


def test_a_question_for_another_site_is_refused(agent: Resident) -> None:
    reply = agent.call(question("visit", site="ben"))
    assert reply["error"] == "here is ada, and no site 'ben'"


def test_another_version_is_refused(agent: Resident) -> None:
    told = agent.call({**question("visit"), "version": "0.0.0"})["error"]
    assert told.endswith(
        f"the hub runs Motet 0.0.0 and this site {own_version()}; install the same"
        " version at both ends"
    )
    assert "of protocol 99" in agent.call({**question("visit"), "protocol": 99})["error"]
    alive(agent)


def test_another_recipe_is_refused(agent: Resident) -> None:
    told = agent.call({**question("visit"), "method": "feedbeef"})["error"]
    assert "about the recipe feedbeef, and this site was set up for" in told


def raw(agent: Resident) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A connection with a time limit does not wait for its turn to be accepted.
    connection.connect(str(agent.at))
    connection.settimeout(20)
    return connection


def test_an_oversize_frame_is_refused_unread(agent: Resident) -> None:
    with raw(agent) as connection:
        connection.sendall(struct.pack(">Q", 2**60))
        frame = receive_frame(connection)
        assert frame is not None
        assert "over the limit of 200,000" in wire.decode(frame)["error"]
        # Nothing that comes after it can be a frame.
        assert connection.recv(1) == b""
    alive(agent)


def test_a_question_at_the_limit_is_answered(agent: Resident) -> None:
    tree = question("nothing", z=torch.zeros(LIMIT // 4 - 1000))
    assert LIMIT - 5000 < len(wire.encode(tree)) <= LIMIT
    assert agent.call(tree)["value"]["z"].shape == (LIMIT // 4 - 1000,)


@pytest.mark.parametrize("frame", [b"", b"\x80\x04garbage" * 9, b"\0" * 100, b"{}"])
def test_garbage_is_refused(agent: Resident, frame: bytes) -> None:
    with raw(agent) as connection:
        for _ in range(2):
            send_frame(connection, frame)
            reply = receive_frame(connection)
            assert reply is not None
            assert "not a frame" in wire.decode(reply)["error"]
    alive(agent)


def test_a_frame_that_is_no_question_is_refused(agent: Resident) -> None:
    assert agent.call({"x": torch.zeros(2)})["error"] == (
        "the question's type is no text of at most 256 characters"
    )


@pytest.mark.parametrize("sent", [b"\0\0", struct.pack(">Q", 100) + b"not all of it"])
def test_a_truncated_frame_ends_its_connection_alone(agent: Resident, sent: bytes) -> None:
    with raw(agent) as connection:
        connection.sendall(sent)
    alive(agent)


def test_many_connections_are_turned_away(agent: Resident) -> None:
    held = [raw(agent) for _ in range(MAX_CONNECTIONS + 3)]
    try:
        # Those that came first are served; of the last ones none.
        send_frame(held[0], wire.encode(about("status")))
        assert receive_frame(held[0])
        assert held[-1].recv(1) == b""
    finally:
        for connection in held:
            connection.close()
    until(lambda: answers(agent))


def answers(agent: Resident) -> bool:
    try:
        return "value" in agent.call(about("status"))
    except (ProtocolError, ConnectionError):
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_cleanly(agent: Resident, folder: Path, number: int, busy: bool) -> None:
    agent.call(question("visit", "0.0.1"))
    path = folder / "work"
    if busy:
        asked = question("wait", "0.0.2", path=str(path))
        asking = threading.Thread(target=ignore, args=[agent, asked])
        asking.start()
        until(path.with_name("work.begun").exists)
    assert agent.end(number) == 0
    assert not agent.at.exists()
    if busy:
        asking.join()
    agent.start()
    # What it was at had no effect.
    assert agent.call(question("visit", "0.0.3"))["value"]["visits"] == 2


def test_it_stops_when_told(agent: Resident) -> None:
    assert agent.call(about("stop"))["value"] == {}
    agent.process.join(20)
    assert agent.process.exitcode == 0


def test_a_question_waits_for_a_person(folder: Path) -> None:
    policy = Policy(approve="first")
    with resident(folder, lambda: hosts(folder, policy=policy)) as agent:
        replies: list[Any] = []
        asking = threading.Thread(target=lambda: replies.append(agent.call(question("visit"))))
        asking.start()
        until(lambda: agent.call(about("status"))["value"]["doing"].startswith("waits for a yes"))
        number = next((folder / "site" / "pending").glob("*.json")).stem
        decide(folder / "site", number, True)
        asking.join()
        assert replies[0]["value"]["visits"] == 1
        # One yes is enough for the operation.
        assert agent.call(question("visit", "0.0.2"))["value"]["visits"] == 2


def test_an_agent_that_waits_for_a_person_can_be_stopped(folder: Path) -> None:
    with resident(folder, lambda: hosts(folder, policy=Policy(approve="every"))) as agent:
        asking = threading.Thread(target=ignore, args=[agent, question("visit")])
        asking.start()
        until(lambda: list((folder / "site" / "pending").glob("*.json")))
        assert agent.end() == 0
        asking.join()


def test_one_process_may_hold_several_sites(folder: Path) -> None:
    with resident(folder, lambda: hosts(folder, "ada", "ben")) as agent:
        assert agent.call(question("visit", site="ada"))["value"]["visits"] == 1
        assert agent.call(question("visit", site="ben"))["value"]["visits"] == 1
        assert agent.call(about("hello", "ben"))["site"] == "ben"
        assert agent.call(about("hello"))["error"] == "here is ada, ben, and no site ''"


def test_a_socket_that_a_kill_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listen(path).close()
    assert path.exists()
    with listen(path), pytest.raises(ConfigError, match="an agent listens at .* already"):
        listen(path)


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="socket: the path of a socket has .* write a shorter"):
        listen(tmp_path / ("x" * 120))


def test_two_agents_cannot_share_a_state(tmp_path: Path) -> None:
    refused = pytest.raises(ConfigError, match="another agent is at work in")
    with alone(tmp_path), refused, alone(tmp_path):
        pass
    with alone(tmp_path):
        pass
