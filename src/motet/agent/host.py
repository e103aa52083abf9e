"""One site behind a socket: what is asked of it counts once, whoever is killed, and whenever."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from motet.agent.journal import Journal
from motet.agent.memory import Memory, Nonces
from motet.agent.messages import Question, answered, introduced, own_version
from motet.agent.policy import Approvals, Policy
from motet.core import wire
from motet.core.errors import MotetError, SiteError
from motet.core.messages import Request, Traits
from motet.core.site import Door
from motet.core.tree import Tree, leaves

ERRORS = "errors.log"
# Bytes after which the log begins anew; the one before is kept.
MAX_ERRORS = 10_000_000
CHECKPOINTS = ("@save", "@restore")
IDLE = "idle"


@dataclass
class Health:
    """What a site is doing, since when, and how it has fared."""

    doing: str = IDLE
    since: float = field(default_factory=time.time)
    started: float = field(default_factory=time.time)
    answers: int = 0
    refusals: int = 0
    last: str = ""
    error: str = ""
    error_time: float = 0.0

    def now(self, doing: str) -> None:
        """From now on it does this."""
        self.doing, self.since = doing, time.time()


class Host:
    """A site's door with a memory, a policy and a journal.

    method: the method's registered name. recipe: the digest of what the site was set up for.
    folder: the site's own; None for a simulated site, which has no journal, no policy, and no log.
    careful: keep every reply, also of an operation that left nothing behind; where all agents are
    restarted on the same machine, doing such a one again gives the same bits. age: seconds for
    which a message counts; None for ever. seconds: how long an operation may take; None for ever.
    """

    def __init__(
        self,
        door: Door,
        traits: Traits,
        *,
        method: str,
        recipe: str,
        memory: Memory,
        folder: Path | None = None,
        policy: Policy | None = None,
        careful: bool = True,
        age: float | None = None,
        seconds: float | None = None,
    ) -> None:
        self.door = door
        self.name = door.site.name
        self.traits = traits
        self.method = method
        self.recipe = recipe
        self.memory = memory
        self.policy = policy or Policy()
        self.careful = careful
        self.seconds = seconds
        self.health = Health()
        self._folder = folder
        self._journal = None if folder is None else Journal(folder / "journal.jsonl")
        self._approvals = None if folder is None else Approvals(folder, self.policy, recipe)
        self._nonces = Nonces(folder, age)
        if memory.state is not None:
            door.put_back(memory.state)

    def hello(self) -> Tree:
        """Who it is, and what it was set up for."""
        return introduced(self.name, self.traits, self.recipe)

    def status(self) -> Tree:
        """Plain values for a person who wants to know how it is."""
        known = self.health
        return {
            "doing": known.doing,
            "since": known.since,
            "started": known.started,
            "answers": known.answers,
            "refusals": known.refusals,
            "last": known.last,
            "error": known.error,
            "error time": known.error_time,
            "bytes left": self.memory.left,
            "rows": self.traits.rows,
            "modalities": list(self.traits.modalities),
            "method": self.method,
            "recipe": self.recipe,
            "version": own_version(),
        }

    def admit(self, question: Question, pause: Callable[[float], bool]) -> Request:
        """The request of a question that may be asked here, when a person said yes to it.

        May wait for that. Raises SiteError for any other question; nothing was done then.
        """
        request = question.request
        assert request is not None
        try:
            self._check_sender(question)
            if self.memory.answer(request.tag) is None:
                self._check_policy(request, pause)
        except MotetError as error:
            self._refuse(request, error)
            raise self._named(request, error) from error
        return request

    def _check_sender(self, question: Question) -> None:
        if question.version != own_version():
            raise SiteError(
                f"the hub runs Motet {question.version} and this site {own_version()}; install "
                "the same version at both ends"
            )
        if question.recipe != self.recipe:
            raise SiteError(
                f"the question is about the recipe {question.recipe or 'of no name'}, and this "
                f"site was set up for {self.recipe}; give both the same recipe file"
            )

    def _check_policy(self, request: Request, pause: Callable[[float], bool]) -> None:
        self.policy.check_method(self.method)
        operation = self.door.operations.get(request.op)
        if operation is None:
            # The door knows what to say to that.
            return
        self.policy.check_operation(request.op, operation)
        if self._approvals is not None and self.policy.approve != "none":
            try:
                self._approvals.wait(request, operation, self.health.now, pause)
            finally:
                self.health.now(IDLE)

    def answer(self, request: Request, question: Question) -> bytes:
        """The frame of the reply; raises SiteError when there is none, without any effect then.

        Not to be called by two threads at once, nor for two sites of one process at once, since
        torch's default generators are set for the length of an operation.
        """
        found = self.memory.answer(request.tag)
        if found is not None:
            if self._journal is not None:
                value = wire.decode(found)["value"]
                self._journal.left(request, value, self._sends(request), found, again=True)
            return found
        try:
            self._check_time(question, request)
            with self._at_work(request), self._all_or_nothing():
                return self._answer(request, question)
        except MotetError as error:
            self._refuse(request, error)
            raise self._named(request, error) from error

    def _check_time(self, question: Question, request: Request) -> None:
        if request.tag in self.memory.done:
            raise SiteError("it was answered before, and other questions since")
        if question.sent < self.memory.since:
            raise SiteError("it was sent before the run was begun anew or taken up again")
        complaint = self._nonces.complaint(question.nonce, question.sent)
        if complaint is not None:
            raise SiteError(complaint)

    @contextmanager
    def _at_work(self, request: Request) -> Iterator[None]:
        self.health.now(f"{request.op}, round {request.round}")
        try:
            yield
        finally:
            self.health.last = f"{request.op}, round {request.round}"
            self.health.now(IDLE)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        before = self.door.kept()
        try:
            yield
        except BaseException:
            self.door.put_back(before)
            raise

    def _answer(self, request: Request, question: Question) -> bytes:
        before = self.door.kept()
        with time_limit(None if request.op in CHECKPOINTS else self.seconds):
            value = self.door.handle(request)
        after = self.door.kept()
        frame = wire.encode(answered(self.name, request.tag, value))
        if request.op == "@save":
            self.memory.saved(after)
            return frame
        if request.op == "@restore":
            self.memory.restored(after, question.sent)
            return frame
        self.policy.check_bytes(request.op, len(frame), self.memory.left)
        if self._journal is not None:
            self._journal.left(request, value, self._sends(request), frame)
        # What guards answer is kept by the guards alone, and goes with the process.
        passing = request.op not in self.door.operations
        if passing or not (self.careful or _holds(before) or _holds(after)):
            self.memory.again(request.tag, frame)
        else:
            self.memory.answered(request.tag, frame, after, changed=_differs(before, after))
        self.health.answers += 1
        return frame

    def _sends(self, request: Request) -> dict[str, Any]:
        operation = self.door.operations.get(request.op)
        return {} if operation is None else dict(operation.sends)

    def _refuse(self, request: Request, error: MotetError) -> None:
        """Keeps the reason, and what lies behind it, at the site."""
        self.health.refusals += 1
        self.health.error, self.health.error_time = str(error), time.time()
        if self._folder is None:
            return
        trace = "".join(traceback.format_exception(error))
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        path = self._folder / ERRORS
        if path.exists() and path.stat().st_size > MAX_ERRORS:
            path.replace(path.with_suffix(".old"))
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{when} {request.op} {request.tag}: {error}\n{trace}\n")
        if self._journal is not None:
            self._journal.kept_back(request, str(error))

    def _named(self, request: Request, error: MotetError) -> SiteError:
        text = str(error)
        if text.startswith(f"site {self.name}"):
            return SiteError(text)
        about = f"site {self.name}, round {request.round}, operation {request.op}"
        return SiteError(f"{about}: {text}")

    def close(self) -> None:
        """Closes what is open."""
        if self._journal is not None:
            self._journal.close()


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises SiteError in what runs inside for longer; for the main thread alone."""
    if seconds is None:
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise SiteError(f"it took more than {seconds:g} s, which is this site's limit")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _holds(kept: Tree) -> bool:
    """Whether anything stays at the site from one question to the next."""
    parts = kept["kept"]
    return bool(parts["state"] or parts["learner"] or any(parts["guards"].values()))


def _differs(before: Tree, after: Tree) -> bool:
    """Whether the kept trees may differ; operations put new leaves in place of old ones."""
    old, new = (
        [(path, id(leaf)) for path, leaf in leaves(tree["kept"])] for tree in (before, after)
    )
    return old != new
