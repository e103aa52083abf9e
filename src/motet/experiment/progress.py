"""A run as it happens, told from its events alone: a live display, or one line per round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from motet.core.events import Event
from motet.experiment.standing import Standing, chief, duration, size_of


class _Display:
    """A few lines that are drawn anew in place, and whole lines above them that stay."""

    def __init__(self, console: Console | None, quiet: bool) -> None:
        self.console = console or Console(stderr=True)
        self.quiet = quiet
        self.clock: Callable[[], float] = time.time
        self._live: Live | None = None

    @property
    def moving(self) -> bool:
        """Whether lines may be drawn over: on a terminal, and where it is not to be quiet."""
        return self.console.is_terminal and not self.quiet

    def draw(self) -> RenderableType:
        """The lines as they are now; always equally many, or they would jump."""
        return ""

    def show(self) -> None:
        """Draws from now on, on a terminal."""
        if self.moving and self._live is None:
            # What is printed or logged meanwhile goes above the lines.
            self._live = Live(get_renderable=self.draw, console=self.console, refresh_per_second=4)
            self._live.start()

    def line(self, text: str, style: str = "", always: bool = False) -> None:
        """A line that stays; when it is to be quiet only if ``always``."""
        if always or not self.quiet:
            self.console.print(Text(text, style), soft_wrap=True)

    def close(self) -> None:
        """Leaves the last drawing where it is."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Progress(_Display):
    """Shows a run from its events: give it to ``run`` as a listener, and close it at the end.

    On a terminal a bar over the rounds with the time left, the hub's last metrics, bytes so far
    and sites that failed; elsewhere one line per round. quiet: nothing but failures.
    before: events of an earlier part of the same run, which count for bytes and metrics.
    """

    def __init__(
        self, console: Console | None = None, *, quiet: bool = False, before: Sequence[Event] = ()
    ) -> None:
        super().__init__(console, quiet)
        self.standing = Standing()
        self._before = before

    def __call__(self, event: Event) -> None:
        """Takes one event of the run."""
        kind = event["event"]
        if kind == "resumed":
            self._recall(event["version"])
        if kind in ("round", "finished"):
            self._end_round(event["time"])
        self.standing.add(event)
        if kind == "round":
            self.show()
        elif kind == "failed":
            self._failed(event)
        elif kind == "log":
            self._log(event)
        elif kind in ("finished", "stopped"):
            self.close()

    def _recall(self, version: int) -> None:
        """Counts the earlier events up to the checkpoint that the run goes on from."""
        marks = [
            i
            for i, event in enumerate(self._before)
            if event["event"] == "checkpoint" and event["version"] == version
        ]
        for event in self._before[: marks[0]] if marks else self._before:
            self.standing.add(event)
        self.standing.new_start()

    def _end_round(self, now: float) -> None:
        at = self.standing
        if self.moving or at.began == 0.0:
            return
        parts = [
            f"round {at.round + 1}/{at.of}",
            at.figures(),
            size_of(at.down + at.up),
            f"{duration(now - at.round_began)}",
            at.troubles(),
        ]
        self.line("  ".join(part for part in parts if part))

    def _failed(self, event: Event) -> None:
        site, number, op = event["site"], event["round"], event["op"]
        # The error names all of them as well, and counts rounds from 0.
        reason = event["error"].removeprefix(f"site {site}, round {number}, operation {op}: ")
        reason = reason.removeprefix(f"{site}: ")
        self.line(f"round {number + 1}: {site} failed in {op}: {reason}", "yellow", always=True)

    def _log(self, event: Event) -> None:
        fields = {k: v for k, v in event.items() if k not in ("event", "time", "round")}
        told = "  ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in fields.items()
        )
        self.line(f"round {event['round'] + 1}: {told}", "dim")

    def draw(self) -> RenderableType:
        """Three lines: the bar, the figures, the traffic."""
        at = self.standing
        done = at.of if at.done else max(at.round, 0)
        now = self.clock()
        left = at.left(now)
        time_left = "" if at.done else "time left not known yet" if left is None else _left(left)
        head = f"round {min(done + 1, at.of)} of {at.of}" if not at.done else f"{at.of} rounds"
        best = [f"best {name} {at.best[name]:.1f}" for name in chief(at.best)[:1]]
        answers = "1 answer" if at.answers == 1 else f"{at.answers} answers"
        traffic = f"{size_of(at.down)} down  {size_of(at.up)} up  {answers}"
        spent = duration(now - at.began) if at.began else ""
        return Group(
            _bar(head, done, at.of, "  ".join(part for part in (spent, time_left) if part)),
            _text("  ".join([at.figures() or "no figures yet", *best])),
            _text(traffic, at.troubles()),
        )


class ArmsProgress(_Display):
    """Shows a comparison from its notes ({"done", "of", "arm", "seed", "values"}).

    of: how many runs there will be, to be shown from the start; 0 waits for the first note.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False, of: int = 0) -> None:
        super().__init__(console, quiet)
        self._began = self.clock()
        self._first: int | None = None
        self._note: dict[str, Any] = {"done": 0, "of": of}
        if of:
            self.show()

    def __call__(self, note: dict[str, Any]) -> None:
        """Takes one note of the comparison."""
        if self._first is None:
            # Results that were there already took no time.
            self._first = note["done"] - 1
        self._note = note
        if self.moving:
            self.show()
        else:
            self.line(f"{note['done']}/{note['of']}  {self._told()}")

    def _told(self) -> str:
        note = self._note
        values = {k: v for k, v in note["values"].items() if "/" not in k}
        figures = "  ".join(f"{name} {values[name]:.1f}" for name in chief(values))
        return f"{note['arm']}  seed {note['seed']}  {figures}"

    def draw(self) -> RenderableType:
        """Two lines: the bar, and the newest result."""
        done, of = self._note["done"], self._note["of"]
        spent = self.clock() - self._began
        behind = done - (self._first or 0)
        left = _left(spent / behind * (of - done)) if behind > 0 and done < of else ""
        bar = _bar(f"{done} of {of} runs", done, of, f"{duration(spent)}  {left}".strip())
        return Group(bar, _text(self._told() if done else ""))


def _bar(head: str, done: int, of: int, tail: str) -> Table:
    row = Table.grid(padding=(0, 1))
    for _ in range(3):
        row.add_column(no_wrap=True, overflow="ellipsis")
    row.add_row(head, ProgressBar(total=max(of, 1), completed=done, width=32), tail)
    return row


def _text(text: str, warning: str = "") -> Text:
    line = Text(text, no_wrap=True, overflow="ellipsis")
    if warning:
        line.append(f"  {warning}", "yellow")
    return line


def _left(seconds: float) -> str:
    return f"about {duration(seconds)} left"
