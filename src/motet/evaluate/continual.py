"""Tasks one after the other: their rows, and what is learnt and forgotten.

A table's row t holds the accuracies on tasks 0 to t after task t, in percent.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from motet.core.batch import Dataset
from motet.core.errors import DataError
from motet.evaluate.suite import evaluate

TASK = "task"


def rows_of(data: Dataset, task: int, tasks: int) -> Dataset:
    """The rows whose column "task" has this number; all of them where there is but one task.

    Raises DataError for rows without such a column.
    """
    if TASK in data.about:
        return data.where(TASK, task)
    if tasks == 1:
        return data
    raise DataError(
        f"{tasks} tasks are wanted, and the rows have no column {TASK!r} that numbers them from 0; "
        f"write data.options.tasks: {tasks}, or method.tasks: 1"
    )


def by_task(data: Dataset | None, tasks: int) -> list[Dataset]:
    """The rows of each task in turn; raises DataError for a task without any."""
    parts = [] if data is None else [rows_of(data, task, tasks) for task in range(tasks)]
    empty = [task for task in range(tasks) if not parts or not len(parts[task])]
    if empty:
        raise DataError(f"there are no test rows of task {empty[0]} (from 0); set data.test")
    return parts


def accuracies(model: nn.Module, tests: Sequence[Dataset]) -> list[float]:
    """Accuracy on each of these tests."""
    return [evaluate(model, test)["accuracy"][0] for test in tests]


def average(table: Sequence[Sequence[float]]) -> float:
    """Mean accuracy on all tasks so far, after the last (ACC)."""
    return sum(table[-1]) / len(table[-1])


def forgotten(table: Sequence[Sequence[float]]) -> float:
    """Mean fall of the earlier tasks' accuracy since each was learnt (FGT); 0 with one task."""
    earlier = range(len(table) - 1)
    return sum(table[task][task] - table[-1][task] for task in earlier) / max(len(earlier), 1)


def learnt(table: Sequence[Sequence[float]]) -> float:
    """The least accuracy that any task had when it had just been learnt."""
    return min(row[-1] for row in table)
