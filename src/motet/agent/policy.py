"""What a site lets out: which kinds, how many bytes, for which methods, and with whose consent."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from motet.core.errors import SiteError
from motet.core.kinds import Kind
from motet.core.messages import Request
from motet.core.method import Operation
from motet.core.store import write_atomic

PENDING = "pending"
YES, NO = "yes", "no"
MEGABYTE = 1e6


class Policy(BaseModel):
    """A site's own rules, which no hub can change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: tuple[Kind, ...] | None = Field(
        None, description="kinds that may leave, such as [weights, metric]; null for all"
    )
    reply_mb: float | None = Field(
        None, gt=0, description="largest reply in MB of 1,000,000 bytes; null for no limit"
    )
    run_mb: float | None = Field(
        None, gt=0, description="all replies to one recipe together in MB; null for no limit"
    )
    methods: tuple[str, ...] | None = Field(
        None, description="methods that may ask here, such as [fedavg]; null for all"
    )
    approve: Literal["none", "first", "every"] = Field(
        "none",
        description="who waits for a yes by hand: no question, the first of every operation, all",
    )
    approve_hours: float = Field(
        24.0, gt=0, description="hours after which a question without a yes is refused"
    )

    def check_method(self, method: str) -> None:
        """Raises SiteError for a method that may not ask here."""
        if self.methods is not None and method not in self.methods:
            raise SiteError(
                f"this site's policy lets {', '.join(self.methods) or 'no method'} ask, and not "
                f"{method}"
            )

    def check_operation(self, op: str, operation: Operation) -> None:
        """Raises SiteError, before any work is done, for replies of a kind that may not leave."""
        if self.kinds is None:
            return
        for key, kind in operation.sends.items():
            if kind not in self.kinds:
                raise SiteError(
                    f"{op} sends {key!r}, which is {kind}, and this site's policy lets "
                    f"{', '.join(self.kinds) or 'nothing'} leave"
                )

    def check_bytes(self, op: str, size: int, before: int) -> None:
        """Raises SiteError for too many bytes; ``before``: those that left in the run so far."""
        if self.reply_mb is not None and size > self.reply_mb * MEGABYTE:
            raise SiteError(
                f"the reply of {op} has {size:,} bytes, and this site's policy lets "
                f"{self.reply_mb:g} MB leave at once"
            )
        if self.run_mb is not None and before + size > self.run_mb * MEGABYTE:
            raise SiteError(
                f"the reply of {op} has {size:,} bytes after {before:,} before, and this site's "
                f"policy lets {self.run_mb:g} MB leave in all"
            )


class Approvals:
    """Questions that wait for a yes: a file for each, and an answer in a file beside it.

    ``folder``/pending/ID.json says what is asked; ID.yes or ID.no beside it is the answer, whatever
    it holds. A yes to the first question of an operation is one for the whole run.
    """

    def __init__(self, folder: Path, policy: Policy, recipe: str) -> None:
        self.folder = folder / PENDING
        self.policy = policy
        self.recipe = recipe

    def number(self, request: Request) -> str:
        """What the question is called: the same whenever it is repeated."""
        tag = request.tag if self.policy.approve == "every" else ""
        about = json.dumps([self.recipe, request.op, tag])
        return hashlib.blake2b(about.encode(), digest_size=6).hexdigest()

    def wait(
        self,
        request: Request,
        operation: Operation,
        told: Callable[[str], None],
        pause: Callable[[float], bool],
    ) -> None:
        """Returns once there is a yes; raises SiteError for a no, or when none comes in time.

        told: called with a sentence that says what is waited for. pause: waits so many seconds,
        and says whether the agent is to stop.
        """
        number = self.number(request)
        answers = {word: self.folder / f"{number}.{word}" for word in (YES, NO)}
        if not answers[YES].exists() and not answers[NO].exists():
            self._note(number, request, operation)
            told(
                f"waits for a yes to {number}: create {answers[YES]}, or motet site --yes {number}"
            )
        note = self.folder / f"{number}.json"
        end = time.monotonic() + self.policy.approve_hours * 3600
        while not answers[YES].exists():
            if answers[NO].exists():
                note.unlink(missing_ok=True)
                raise SiteError(f"a person at this site said no to {request.op} ({number})")
            if time.monotonic() > end:
                raise SiteError(
                    f"nobody at this site said yes to {request.op} ({number}) within "
                    f"{self.policy.approve_hours:g} hours"
                )
            if pause(0.1):
                raise SiteError("the agent was stopped while the question waited for a yes")
        note.unlink(missing_ok=True)

    def _note(self, number: str, request: Request, operation: Operation) -> None:
        about = {
            "id": number,
            "since": round(time.time(), 3),
            "recipe": self.recipe,
            "op": request.op,
            "round": request.round,
            "tag": request.tag,
            "sends": {key: str(kind) for key, kind in operation.sends.items()},
        }
        write_atomic(self.folder / f"{number}.json", json.dumps(about, indent=1).encode())


def decide(folder: Path, number: str, yes: bool) -> None:
    """Answers a question that waits; raises SiteError with what waits when there is no such one."""
    waiting = [path.stem for path in sorted((folder / PENDING).glob("*.json"))]
    if number not in waiting:
        listed = ", ".join(waiting) or "none"
        raise SiteError(f"no question {number!r} waits for a yes; waiting are: {listed}")
    write_atomic(folder / PENDING / f"{number}.{YES if yes else NO}", b"")
