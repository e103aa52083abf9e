"""Small charts as SVG that takes its colours and type from the page's own style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from markupsafe import Markup

from motet.experiment.report.text import number

WIDTH, HEIGHT = 420, 250
TOP, BOTTOM, LEFT = 12, 34, 40
# More curves than these cannot be told apart by names at their ends.
MANY = 12
# Widths and heights of text, in the units of the drawing.
LETTER = 6.9
LINE = 14.0


@dataclass(frozen=True)
class Line:
    """One curve: (x, y) points, its name and last value as text, a hue class, dashed or not."""

    name: str
    value: str
    points: Sequence[tuple[float, float]]
    hue: str = "hue-1"
    dashed: bool = False


def _svg(classes: str, label: str, **attributes: object) -> ET.Element:
    root = ET.Element("svg", {"class": classes, **_plain(attributes)})
    if label:
        root.set("role", "img")
        root.set("aria-label", label)
    else:
        root.set("aria-hidden", "true")
    return root


def _plain(attributes: dict[str, object]) -> dict[str, str]:
    return {
        name.rstrip("_").replace("_", "-"): f"{value:.2f}".rstrip("0").rstrip(".")
        if isinstance(value, float)
        else str(value)
        for name, value in attributes.items()
    }


def _add(parent: ET.Element, tag: str, text: str = "", **attributes: object) -> ET.Element:
    element = ET.SubElement(parent, tag, _plain(attributes))
    element.text = text or None
    return element


def _markup(root: ET.Element) -> Markup:
    # ElementTree has escaped every text and attribute.
    return Markup(ET.tostring(root, encoding="unicode"))


def ticks(low: float, high: float, most: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers that span low to high."""
    from matplotlib.ticker import MaxNLocator

    if high <= low:
        high = low + 1
    steps = [1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10]
    return [float(v) for v in MaxNLocator(most, steps=steps, integer=whole).tick_values(low, high)]


def line_chart(lines: Sequence[Line], *, label: str, x_label: str = "rounds") -> Markup:
    """Curves over rounds from zero up, each named and valued at its right end.

    label: what a screen reader says. More than ``MANY`` lines stay without names.
    """
    drawn = [line for line in lines if _finite(line.points)]
    values = [y for line in drawn for _, y in _finite(line.points)]
    y_ticks = ticks(min(0.0, *values), max(values)) if values else [0.0, 1.0]
    last = max((x for line in drawn for x, _ in line.points), default=1)
    x_ticks = [x for x in ticks(0, last, 6, whole=True) if x <= last]
    named = len(drawn) <= MANY
    letters = max((len(line.name) + len(line.value) + 1 for line in drawn), default=0)
    right = letters * LETTER + 24 if named else 16.0
    frame = _Frame(0.0, float(max(last, 1)), y_ticks[0], y_ticks[-1], min(max(right, 52.0), 170.0))
    root = _svg("chart", label, viewBox=f"0 0 {WIDTH} {HEIGHT}")
    _axes(root, frame, x_ticks, y_ticks, x_label)
    for line in drawn:
        _curve(root, frame, line)
    if named:
        _labels(root, frame, drawn)
    return _markup(root)


@dataclass(frozen=True)
class _Frame:
    """From values to places on the drawing."""

    x0: float
    x1: float
    y0: float
    y1: float
    right: float

    def x(self, value: float) -> float:
        share = (value - self.x0) / (self.x1 - self.x0)
        return LEFT + share * (WIDTH - LEFT - self.right)

    def y(self, value: float) -> float:
        share = (value - self.y0) / (self.y1 - self.y0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _axes(
    root: ET.Element, frame: _Frame, xs: Sequence[float], ys: Sequence[float], x_label: str
) -> None:
    left, right = frame.x(frame.x0), frame.x(frame.x1)
    digits = 0 if all(float(y).is_integer() for y in ys) else 1 if ys[-1] >= 2 else 2
    for y in ys:
        at = frame.y(y)
        _add(root, "line", class_="grid" if y else "axis", x1=left, x2=right, y1=at, y2=at)
        _add(root, "text", number(y, digits), class_="tick end", x=left - 7, y=at + 4)
    base = frame.y(frame.y0)
    for x in xs:
        _add(root, "text", f"{x:.0f}", class_="tick middle", x=frame.x(x), y=base + 17)
    _add(root, "text", x_label, class_="tick", x=right + 8, y=base + 17)


def _curve(root: ET.Element, frame: _Frame, line: Line) -> None:
    group = _add(root, "g", class_=f"curve {line.hue}{' dashed' if line.dashed else ''}")
    _add(group, "title", f"{line.name} {line.value}")
    places = [(frame.x(x), frame.y(y)) for x, y in _finite(line.points)]
    if len(places) > 1:
        _add(group, "polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places))
    x, y = places[-1]
    _add(group, "circle", cx=x, cy=y, r=3)


def _labels(root: ET.Element, frame: _Frame, lines: Sequence[Line]) -> None:
    """Names at the right ends, moved apart where they would cover each other."""
    last = [_finite(line.points)[-1] for line in lines]
    wanted = [frame.y(y) for _, y in last]
    places = apart(wanted, LINE, TOP + 4, HEIGHT - BOTTOM)
    for line, (at, _), end, place in zip(lines, last, wanted, places, strict=True):
        x = frame.x(at)
        if abs(place - end) > 3:
            _add(root, "line", class_=f"lead {line.hue}", x1=x + 3, y1=end, x2=x + 10, y2=place)
        text = _add(root, "text", line.name, class_=f"name {line.hue}", x=x + 12, y=place + 4)
        _add(text, "tspan", line.value, class_="value", dx=5)


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places as near to the wanted ones as a gap between any two allows, in the same order."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    places = [0.0] * len(wanted)
    floor = low
    for i in order:
        places[i] = max(wanted[i], floor)
        floor = places[i] + gap
    ceiling = high
    for i in reversed(order):
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(y)]


def spark(values: Sequence[float]) -> Markup:
    """A curve the size of a word."""
    points = _finite([(float(i), value) for i, value in enumerate(values)])
    root = _svg("spark", "", viewBox="0 0 64 18")
    if points:
        low, high = min(y for _, y in points), max(y for _, y in points)
        across, up = max(len(values) - 1, 1), (high - low) or 1.0
        places = [(3 + 58 * x / across, 15 - 12 * (y - low) / up) for x, y in points]
        _add(root, "polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places))
        _add(root, "circle", cx=places[-1][0], cy=places[-1][1], r=2)
    return _markup(root)


def strip(
    values: Sequence[float], scale: Sequence[float], *, mark: float, label: str, hue: str
) -> Markup:
    """One row of a dot chart: a dot per value, a bar at their mean, a dashed line at ``mark``.

    scale: the ticks of the whole chart, a faint line each. As wide as its cell.
    """
    root = _svg(f"strip {hue}", label, width="100%", height="100%")
    for tick in scale:
        at = _percent(tick, scale)
        _add(root, "line", class_="grid", x1=at, x2=at, y1="0", y2="100%")
    if math.isfinite(mark):
        at = _percent(mark, scale)
        _add(root, "line", class_="mark", x1=at, x2=at, y1="0", y2="100%")
    finite = [value for value in values if math.isfinite(value)]
    for low, high in [(min(finite), max(finite))] if finite else []:
        x1, x2 = _percent(low, scale), _percent(high, scale)
        _add(root, "line", class_="range", x1=x1, x2=x2, y1="50%", y2="50%")
    for value in finite:
        _add(root, "circle", cx=_percent(value, scale), cy="50%", r=3.5)
    if finite:
        at = _percent(sum(finite) / len(finite), scale)
        _add(root, "line", class_="mean", x1=at, x2=at, y1="18%", y2="82%")
    return _markup(root)


def axis(scale: Sequence[float]) -> Markup:
    """The numbers above the rows of a dot chart."""
    root = _svg("scale", "", width="100%", height=18)
    digits = 0 if all(float(tick).is_integer() for tick in scale) else 1
    shown = scale[:: 1 + (len(scale) - 1) // 5]
    for tick in shown:
        at = _percent(tick, scale)
        _add(root, "text", number(tick, digits), class_="tick middle", x=at, y="12")
    return _markup(root)


def _percent(value: float, scale: Sequence[float]) -> str:
    """Where a value stands across the chart, with room at both ends for dots and numbers."""
    share = (value - scale[0]) / (scale[-1] - scale[0])
    return f"{6 + 88 * share:.2f}%"


def bar(parts: Sequence[tuple[float, str]], whole: float, *, label: str) -> Markup:
    """A bar of several parts (value, hue), where ``whole`` would fill its cell."""
    root = _svg("bar", label, width="100%", height=12)
    start = 0.0
    for value, hue in parts:
        width = 100 * value / whole if whole else 0.0
        if value:
            _add(root, "rect", class_=hue, x=f"{start:.3f}%", width=f"{width:.3f}%", height="100%")
        start += width
    return _markup(root)


def cells(counts: Sequence[int], names: Sequence[str], most: int, *, label: str) -> Markup:
    """A row of squares, the darker the more rows of a class; the darkest stands for ``most``."""
    root = _svg("cells", label, width="100%", height=16)
    step = 100 / max(len(counts), 1)
    for i, count in enumerate(counts):
        if not count:
            continue
        strength = min(math.sqrt(count / max(most, 1)), 1.0)
        place = {"x": f"{i * step:.3f}%", "width": f"{step:.3f}%", "height": "100%"}
        cell = _add(root, "rect", **place, fill_opacity=f"{strength:.2f}")
        _add(cell, "title", f"{names[i]}: {count}")
    return _markup(root)
