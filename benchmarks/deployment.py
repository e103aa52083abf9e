"""Real federations on this machine: their folders, their processes, and what kills them.

Three kinds: what `motet deploy` writes for Flower and for NVFlare, each service started by its own
script, and a run in bare processes, whose hub starts the agents.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import yaml

from benchmarks.processes import PATIENCE, children, end, family_of, spawn, words_of
from motet.commands.deploy import deploy
from motet.core.events import Event, read_events
from motet.deploy.plan import read_about
from motet.experiment.build import site_names
from motet.experiment.recipes import shipped_recipe
from motet.experiment.spec import parse_experiment, read_recipe, with_settings

MOTET = [sys.executable, "-m", "motet"]
SMALL = [
    "method.cohort=3",
    "method.server={epochs: 1, first_epochs: 1}",
    "method.distil={epochs: 1}",
    "method.private={epochs: 1}",
    "data.test=20",
    "data.public=24",
    "data.private=60",
]


def three_sites(rounds: int) -> dict[str, Any]:
    """CreamFL with one site of each kind, on a handful of pictures."""
    values = with_settings(shipped_recipe("creamfl-emoji"), [*SMALL, f"method.rounds={rounds}"])
    for population in values["populations"]:
        population |= {"count": 1, "models": population["models"][:1], "partition": {"name": "iid"}}
    return values


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def short_folder() -> Iterator[Path]:
    """A fresh folder whose path leaves room for sockets, whose paths may not be long."""
    with tempfile.TemporaryDirectory(prefix="m-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class Following(threading.Thread):
    """A call in a thread, such as of what follows a run; ``error``: what it raised."""

    def __init__(self, call: Callable[..., None], *given: Any) -> None:
        super().__init__(daemon=True)
        self.error: BaseException | None = None
        self._call = call
        self._given = given
        self.start()

    def run(self) -> None:
        """Makes the call."""
        try:
            self._call(*self._given)
        except BaseException as error:
            self.error = error

    def over(self) -> bool:
        """Whether it has returned, or raised."""
        return not self.is_alive()


class Federation(ABC):
    """Processes by name, and the run that they do; all are ended at the end of its ``with``.

    folder: in which they write their logs. run: the folder of the run. leader: the process with
    which the run begins and ends.
    """

    leader: ClassVar[str]

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder = folder
        self.run = run
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        # What lived on when its parent was killed, with what it was called.
        self._strays: dict[int, list[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running.values():
            end(process)
        for pid, words in self._strays.items():
            # By now the number may be another's.
            if words and words_of(pid) == words:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @abstractmethod
    def command(self, name: str) -> Sequence[str | Path]:
        """What starts one process."""

    @abstractmethod
    def parts(self) -> list[str]:
        """What may be killed now, by names whose last word is its kind."""

    @abstractmethod
    def begin(self) -> None:
        """Starts everything."""

    def strike(self, name: str) -> None:
        """Kills one of the parts, which is started again unless something else does that."""
        self.kill(name)
        self.start(name)

    def start(self, name: str) -> None:
        """Starts one process."""
        self.running[name] = spawn(self.command(name), self.log(name), MOTET_ENV=sys.prefix)

    def kill(self, name: str) -> None:
        """Everything in a process's group, at once and without a word."""
        process = self.running.pop(name)
        self._strays |= {pid: words_of(pid) for pid in family_of(process.pid)[1:]}
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> Path:
        """Where a process's words go."""
        return self.folder / f"{name.replace(' ', '/')}.log"

    def said(self, name: str) -> str:
        """What a process said; empty before it began."""
        path = self.log(name)
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def words(self) -> str:
        """The last words of everything that was started."""
        return "\n".join(f"{name}: {self.said(name)[-2000:]}" for name in self.running)

    def until(
        self, done: Callable[[], Any], what: str, patience: float = PATIENCE, pause: float = 0.1
    ) -> Any:
        """What a condition gives once it holds; raises TimeoutError with everybody's last words."""
        last = time.monotonic() + patience
        while not (found := done()):
            if time.monotonic() > last:
                raise TimeoutError(f"waited {patience:g} s for: {what}\n{self.words()}")
            time.sleep(pause)
        return found

    def over(self) -> bool:
        """Whether the leading process has ended."""
        return self.running[self.leader].poll() is not None

    def events(self) -> list[Event]:
        """What took effect of the run."""
        path = self.run / "events.jsonl"
        return read_events(path) if path.exists() else []

    def reached(self, number: int) -> bool:
        """Whether the run has begun this round, counted from 0."""
        return any(e["event"] == "round" and e["round"] >= number for e in self.events())

    def until_round(self, number: int, following: Following) -> None:
        """Waits for a round of a run; raises RuntimeError when the run is over instead."""
        self.until(lambda: self.reached(number) or following.over(), f"round {number}", pause=0.05)
        if following.over():
            raise RuntimeError(f"no round {number}\n{self.words()}") from following.error

    def hash(self) -> str | None:
        """Of the weights in which the run ended; None when it has not."""
        return self.events()[-1].get("hash") if self.events() else None


class Bare(Federation):
    """A run of a folder with a recipe, whose hub has a child that starts the agents."""

    leader = "hub"

    def command(self, name: str) -> Sequence[str | Path]:
        """The hub's: `motet resume`."""
        return [*MOTET, "resume", self.run, "--quiet"]

    def begin(self) -> None:
        """Starts the hub."""
        self.start("hub")

    def parts(self) -> list[str]:
        """The hub, and the agents by the numbers of their processes."""
        below = children()
        own = below.get(self.running["hub"].pid, [])
        return ["hub", *(f"{agent} agent" for child in own for agent in below.get(child, []))]

    def strike(self, name: str) -> None:
        """Kills the hub, or an agent, which the hub starts again."""
        if name == "hub":
            super().strike(name)
        else:
            with suppress(ProcessLookupError):
                os.kill(int(name.split()[0]), signal.SIGKILL)


class Deployment(Federation):
    """The parties' folders, as `motet deploy` wrote them; a service is called "PARTY NAME".

    "command" is the `motet hub` that follows the run, "hub" the process in which the courier runs
    the method.
    """

    leader = "command"
    courier: ClassVar[str]
    host: ClassVar[str]
    # What the process that runs the hub's method has in its command line.
    method: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, folder / "hub/run")
        self.config = folder / "hub/hub.yaml"
        self.experiment = parse_experiment(read_recipe(folder / "hub/recipe.yaml"))
        self.sites = site_names(self.experiment)
        self.port = int(read_about(folder / "hub")["listen"])

    @abstractmethod
    def up(self) -> bool:
        """Whether the hub's courier is there."""

    def command(self, name: str) -> Sequence[str | Path]:
        """A service's start script, or `motet hub`."""
        if name == self.leader:
            return [*MOTET, "hub", "--config", self.config]
        party, service = name.split()
        return [self.folder / party / f"start-{service}.sh"]

    def services(self, kind: str = "*") -> list[str]:
        """Everything that runs all the time, or all of one kind, the hub's first."""
        found = sorted(self.folder.glob(f"*/start-{kind}.sh"))
        found.sort(key=lambda path: path.parent.name != "hub")
        return [f"{path.parent.name} {path.stem.removeprefix('start-')}" for path in found]

    def begin(self) -> None:
        """Starts all services, and `motet hub`."""
        for name in self.services():
            self.start(name)
        self.until(self.up, "the hub's courier")
        self.start(self.leader)

    def parts(self) -> list[str]:
        """All services, `motet hub`, and the hub where there is one."""
        return [*self.services(), self.leader, *(["hub"] if self.runners() else [])]

    def strike(self, name: str) -> None:
        """Kills a part; the hub is started again by the courier."""
        if name != "hub":
            super().strike(name)
            return
        for pid in self.runners():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def runners(self) -> list[int]:
        """The processes in which the courier runs the hub's method."""
        family = [pid for process in self.running.values() for pid in family_of(process.pid)]
        return [pid for pid in family if any(self.method in word for word in words_of(pid))]

    def socket(self, site: str) -> Path:
        """Where a site's agent listens."""
        return self.folder / site / "state/agent.sock"


class Flower(Deployment):
    """A SuperLink, and a SuperNode beside each agent."""

    courier, host, method = "flower", "127.0.0.1", "flwr-serverapp"

    def up(self) -> bool:
        """Whether the SuperLink says that it is well."""
        try:
            return self.get("/health") == 200
        except OSError:
            return False

    def get(self, path: str, *, source: str = "127.0.0.1", method: str = "GET") -> int:
        """The status with which the hub answers, asked from this address of this machine."""
        trust = ssl.create_default_context(cafile=str(self.folder / "hub/tls/ca.crt"))
        link = HTTPSConnection(
            self.host, self.port, timeout=20, context=trust, source_address=(source, 0)
        )
        try:
            link.request(method, path, body=b"" if method == "POST" else None)
            return link.getresponse().status
        finally:
            link.close()


class Nvflare(Deployment):
    """A server, and a client beside each agent."""

    courier, host = "nvflare", "localhost"
    method = "nvflare.private.fed.app.server.runner_process"

    def up(self) -> bool:
        """Whether the server listens."""
        try:
            socket.create_connection((self.host, self.port), 1).close()
        except OSError:
            return False
        return True

    def heard(self, trust: Path, kit: Path | None = None) -> bool:
        """Whether the hub's port goes on with somebody who has these certificates."""
        context = ssl.create_default_context(cafile=trust)
        if kit is not None:
            context.load_cert_chain(kit / "client.crt", kit / "client.key")
        with (
            socket.create_connection((self.host, self.port), 20) as plain,
            context.wrap_socket(plain, server_hostname=self.host) as link,
        ):
            link.settimeout(2)
            try:
                # The server's verdict on a certificate comes after the handshake.
                return link.recv(1) != b""
            except TimeoutError:
                return True
            except (ssl.SSLError, ConnectionError):
                return False


Kind = TypeVar("Kind", bound=Deployment)


def opened(folder: Path) -> Deployment:
    """The deployment of a folder that `motet deploy` wrote."""
    courier = read_about(folder / "hub")["courier"]
    return Flower(folder) if courier == Flower.courier else Nvflare(folder)


@contextmanager
def deployed(kind: type[Kind], recipe: dict[str, Any]) -> Iterator[Kind]:
    """A fresh deployment on this machine, of which nothing is started yet."""
    with short_folder() as folder:
        (folder / "given.yaml").write_text(yaml.safe_dump(parse_experiment(recipe).plain()))
        address = f"{kind.host}:{free_port()}"
        deploy(kind.courier, str(folder / "given.yaml"), address, folder / "f")
        for script in folder.glob("f/*/start-supernode.sh"):
            # A SuperNode's own port may be taken.
            text = script.read_text("utf-8")
            before = text[text.index("--port ") :].split()[1]
            script.write_text(text.replace(f"--port {before}", f"--port {free_port()}"), "utf-8")
        with kind(folder / "f") as made:
            yield made
