"""What the commands share: where they print, how they ask for seeds, which runs there are."""

from __future__ import annotations

import os
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from motet.core.errors import ConfigError

RUNS = Path("runs")
PIPED_WIDTH = 120


def out() -> Console:
    """Where results go. Cells and texts are printed as they are, never read as markup."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # A file has no width of its own, and 80 columns are few for a table.
        console.width = PIPED_WIDTH
    return console


def notes() -> Console:
    """Where remarks and progress go, so that results can be piped."""
    return Console(stderr=True, markup=False, emoji=False, highlight=False)


def say(text: str, style: str = "") -> None:
    """A remark of one line."""
    notes().print(text, style=style, soft_wrap=True)


def result(text: str) -> None:
    """A result of one line."""
    out().print(text, soft_wrap=True)


def table(title: str, heads: Sequence[str], *, right: Sequence[str] = ()) -> Table:
    """An empty table of these columns, those of ``right`` aligned to the right."""
    made = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for head in heads:
        made.add_column(head, justify="right" if head in right else "left", overflow="fold")
    return made


def seeds_of(text: str) -> tuple[int, ...]:
    """Numbers from "1,2,5-7"; raises ConfigError that says how to write them."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"--seeds {text!r}: write whole numbers such as 1,2,3 or 1-3")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds:
        raise ConfigError(f"--seeds {text!r}: {first} comes after {last}; write the lower first")
    return tuple(dict.fromkeys(seeds))


def newest_run() -> Path:
    """The folder of the run that was written to last; raises ConfigError when there is none."""
    from motet.experiment.runner import EVENTS, RECIPE

    found = [path.parent for path in RUNS.rglob(EVENTS) if (path.parent / RECIPE).exists()]
    if not found:
        raise ConfigError(f"there is no run in {RUNS}; name a folder, or `motet run` something")
    return max(found, key=lambda folder: (folder / EVENTS).stat().st_mtime)


def show_file(path: Path) -> None:
    """Opens a file in the browser, or says that there is none."""
    if not webbrowser.open(path.resolve().as_uri()):
        say(f"no browser could be started; open {path} in one")
