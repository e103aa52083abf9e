"""Frames on a socket: whole ones come through, all others are refused early."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.conformance.tiny import Case, experiment

from motet.agent.client import Client, exchange
from motet.agent.protocol import (
    MAX_PATH,
    OversizeError,
    ProtocolError,
    address,
    receive_frame,
    recipe_digest,
    send_frame,
)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 3_000_000])
def test_a_frame_comes_through(ends: tuple[socket.socket, socket.socket], size: int) -> None:
    frame = bytes(i % 251 for i in range(size))
    sender = threading.Thread(target=send_frame, args=[ends[0], frame])
    sender.start()
    assert receive_frame(ends[1]) == frame
    sender.join()


def test_frames_follow_each_other(ends: tuple[socket.socket, socket.socket]) -> None:
    for frame in (b"one", b"", b"three"):
        send_frame(ends[0], frame)
    assert [receive_frame(ends[1]) for _ in range(3)] == [b"one", b"", b"three"]
    ends[0].close()
    assert receive_frame(ends[1]) is None


def test_a_frame_that_is_too_large_is_not_read(ends: tuple[socket.socket, socket.socket]) -> None:
    send_frame(ends[0], b"x" * 101)
    with pytest.raises(OversizeError, match="a frame of 101 bytes is over the limit of 100"):
        receive_frame(ends[1], limit=100)
    assert ends[1].recv(200) == b"x" * 101


def test_the_largest_frame_is_read(ends: tuple[socket.socket, socket.socket]) -> None:
    send_frame(ends[0], b"x" * 100)
    assert receive_frame(ends[1], limit=100) == b"x" * 100


@pytest.mark.parametrize("sent", [b"\0\0\0", struct.pack(">Q", 10) + b"four"])
def test_a_frame_that_breaks_off_is_told(
    ends: tuple[socket.socket, socket.socket], sent: bytes
) -> None:
    ends[0].sendall(sent)
    ends[0].close()
    with pytest.raises(ProtocolError, match=r"broke off after \d of \d+ bytes"):
        receive_frame(ends[1])


def test_the_rest_of_a_frame_must_come_in_time(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].sendall(struct.pack(">Q", 10) + b"four")
    with pytest.raises(ProtocolError, match=r"did not come within 0.01 s"):
        receive_frame(ends[1], patience=0.01)
    assert ends[1].gettimeout() is None


def test_a_path_must_be_short() -> None:
    assert address(Path("/tmp/agent.sock")) == "/tmp/agent.sock"
    assert address("x" * MAX_PATH)
    with pytest.raises(ValueError, match="has 104 bytes and may have 103: .*; write a shorter one"):
        address("ü" * 52)


def test_a_client_counts_what_goes_over_its_socket(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def answer() -> None:
        connection, _ = listener.accept()
        # A client that reads a reply in part leaves with a reset.
        with connection, suppress(ConnectionError):
            while (frame := receive_frame(connection)) is not None:
                send_frame(connection, frame + frame)

    server = threading.Thread(target=answer)
    server.start()
    with listener, Client(tmp_path / "s", limit=10) as client:
        assert client.exchange(b"abc") == b"abcabc"
        assert (client.sent, client.received) == (11, 14)
        with pytest.raises(OversizeError):
            client.exchange(b"seven..")
    server.join()


def test_nobody_at_a_socket_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "nobody", b"")


def test_a_courier_needs_no_torch() -> None:
    script = "import sys, motet.agent.client, motet.agent.protocol; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not {"torch", "numpy", "pydantic", "motet.core"} & set(result.stdout.split())


def test_a_recipe_has_a_digest_of_what_decides_its_results() -> None:
    one = experiment(Case("fedavg"))
    told = [
        experiment(Case("fedavg"), "title=Other"),
        experiment(Case("fedavg"), "engine.name=processes"),
    ]
    assert {recipe_digest(other.plain()) for other in told} == {recipe_digest(one.plain())}
    changed = experiment(Case("fedavg"), "method.local.lr=0.02")
    assert recipe_digest(changed.plain()) != recipe_digest(one.plain())
    assert len(recipe_digest(one.plain())) == 16
