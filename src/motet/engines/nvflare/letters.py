"""What NVFlare carries: one byte that says what it is, then the bytes themselves.

The hub's are a QUESTION (a frame for the agent) and WAIT (the name of a question that was given
before). The site's are a REPLY (the agent's frame), PENDING where there is none yet, and LOST with
a sentence where there will be none, so that the hub must put its question anew.

A question may take hours, and a call of NVFlare should not: whoever waits for hours cannot tell a
long training from a process that is gone. So a call is held for some seconds and no longer.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from motet.agent.client import exchange

QUESTION, WAIT = b"Q", b"W"
REPLY, PENDING, LOST = b"R", b"P", b"L"
# Seconds for which a site holds a call that has no answer yet.
HOLD = 10.0
# Questions that nobody came back for are forgotten when there are more.
MAX_OPEN = 16
SITE = "{site}"


def name_of(frame: bytes) -> bytes:
    """The name of a question; no two are alike, since each frame has a nonce."""
    return hashlib.blake2b(frame, digest_size=16).digest()


class Postbox:
    """Hands questions to the agent at a socket, each in a thread of its own.

    socket: its path; None where nobody said where the agent listens.
    """

    def __init__(self, socket: str | None, *, hold: float = HOLD) -> None:
        self.socket = socket
        self.hold = hold
        self._open: dict[bytes, _Errand] = {}
        self._lock = threading.Lock()

    def post(self, letter: bytes) -> bytes:
        """The site's letter in return for the hub's."""
        kind, rest = letter[:1], letter[1:]
        if kind == QUESTION:
            errand = self._begin(rest)
        elif kind == WAIT and rest in self._open:
            errand = self._open[rest]
        else:
            return LOST + b"the site was not asked that, or it does not remember"
        if not errand.done.wait(self.hold):
            return PENDING
        with self._lock:
            self._open.pop(errand.name, None)
        return errand.letter

    def _begin(self, frame: bytes) -> _Errand:
        errand = _Errand(name_of(frame))
        with self._lock:
            while len(self._open) >= MAX_OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[errand.name] = errand
        threading.Thread(target=errand.run, args=[self.socket, frame], daemon=True).start()
        return errand


class _Errand:
    def __init__(self, name: bytes) -> None:
        self.name = name
        self.letter = b""
        self.done = threading.Event()

    def run(self, socket: str | None, frame: bytes) -> None:
        try:
            self.letter = ask_agent(socket, frame)
        finally:
            self.done.set()


def ask_agent(socket: str | None, frame: bytes) -> bytes:
    """The letter with the agent's reply, or with what is wrong at the site and what to do there."""
    if socket is None:
        return _lost("NVFlare's client does not know where the agent listens; set MOTET_SOCKET")
    try:
        return REPLY + exchange(socket, frame)
    except ValueError as error:
        return _lost(f"MOTET_SOCKET: {error}")
    except (FileNotFoundError, ConnectionRefusedError):
        name = Path(socket).name
        return _lost(f"no agent listens at {name}; start it: motet site --config site.yaml")
    except OSError as error:
        return _lost(f"the agent broke off: {error.strerror or type(error).__name__}")
    except Exception as error:
        return _lost(f"the agent could not be asked: {type(error).__name__}")


def _lost(reason: str) -> bytes:
    return LOST + reason.encode()
