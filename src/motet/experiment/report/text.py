"""Words and numbers of a report: metrics by their names, digits that fit, a real minus."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from statistics import fmean, stdev

METRICS = {
    "rsum": "rsum",
    "cat@10": "same category among the first 10, %",
    "accuracy": "accuracy, %",
    "i2t_r1": "picture → text, R@1",
    "i2t_r5": "picture → text, R@5",
    "i2t_r10": "picture → text, R@10",
    "t2i_r1": "text → picture, R@1",
    "t2i_r5": "text → picture, R@5",
    "t2i_r10": "text → picture, R@10",
}
NOTES = {
    "rsum": "recall at 1, 5 and 10, from picture to text and back, summed: at most 600",
    "cat@10": "share of the first ten results that are of the query's category",
    "recall, %": "solid: from text to picture; dashed: from picture to text",
    "accuracy": "share of test rows whose class is recognised",
}


def digits_for(values: Iterable[float]) -> int:
    """Decimals with which numbers of this size are told apart."""
    most = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 1 if most >= 10 else 2 if most >= 1 else 3


def number(value: float, digits: int = 1, *, sign: bool = False) -> str:
    """A number with a real minus; a dash for what is none."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if not float(text):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def size(count: float) -> str:
    """Bytes in the unit that suits them, 1 MB = 1,000,000 bytes."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            value = count / scale
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Seconds as a reader says them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"


def day(time: float | None) -> str:
    """The date of a moment, UTC."""
    if time is None:
        return ""
    moment = datetime.fromtimestamp(time, UTC)
    return f"{moment.day} {moment:%B %Y}"


def plural(count: int, word: str) -> str:
    """``1 site``, ``8 sites``."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def listed(words: Sequence[str], last: str = "and") -> str:
    """``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def spread(values: Sequence[float]) -> float:
    """Standard deviation, NaN for a single value."""
    return stdev(values) if len(values) > 1 else math.nan


def mean(values: Sequence[float]) -> float:
    """Mean, NaN without values."""
    return fmean(values) if values else math.nan
