"""The asking end of an agent's socket; for frames that others made. No torch is needed for it."""

from __future__ import annotations

import socket
from pathlib import Path
from types import TracebackType

from motet.agent.protocol import (
    MAX_FRAME,
    PATIENCE,
    ProtocolError,
    address,
    receive_frame,
    send_frame,
)


class Client:
    """One connection to an agent, which answers one frame after the other.

    limit: the largest reply that is taken. Raises OSError when nobody listens there.
    """

    def __init__(self, path: Path | str, *, limit: int = MAX_FRAME) -> None:
        self.path = path
        self.limit = limit
        # What went over the socket, heads of frames included.
        self.sent = self.received = 0
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connection.connect(address(path))
        except BaseException:
            self._connection.close()
            raise

    def exchange(self, frame: bytes, timeout: float | None = None) -> bytes:
        """The reply to a frame.

        timeout: seconds to wait for it; None for ever. Raises TimeoutError, and OSError when the
        agent is gone. After either the connection is of no more use, and the question may be
        repeated on another one: the agent answers a repeated tag without doing the work again.
        """
        self._connection.settimeout(PATIENCE)
        send_frame(self._connection, frame)
        self._connection.settimeout(timeout)
        reply = receive_frame(self._connection, self.limit)
        if reply is None:
            raise ProtocolError(f"the agent at {self.path} closed the connection")
        self.sent += 8 + len(frame)
        self.received += 8 + len(reply)
        return reply

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def exchange(
    path: Path | str, frame: bytes, *, timeout: float | None = None, limit: int = MAX_FRAME
) -> bytes:
    """The reply of the agent at this socket to one frame; raises OSError, as ``Client`` does."""
    with Client(path, limit=limit) as client:
        return client.exchange(frame, timeout)
