"""The comparison in a report: dots per seed, means, paired differences, expectations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from motet.experiment.report.charts import axis, strip, ticks
from motet.experiment.report.text import (
    METRICS,
    NOTES,
    digits_for,
    listed,
    mean,
    number,
    plural,
    spread,
)

Plain = dict[str, Any]
GROUPS = {
    "method": "Method",
    "option": "Options of our own",
    "ablation": "Parts taken out or changed",
    "baseline": "Baselines",
    "control": "Controls",
    "bound": "Bound",
}
# Blocks beyond these are folded away.
OPEN = 2


def arms_view(comparison: Mapping[str, Any]) -> Plain:
    """What the template shows of a comparison's plain values."""
    seeds = comparison["seeds"]
    expectations = [dict(item) for item in comparison["expectations"]]
    blocks = [_block(comparison, metric) for metric in comparison["metrics"]]
    blocks = [block for block in blocks if block["groups"]]
    return {
        "title": comparison["title"],
        "command": comparison["command"],
        "seeds": listed([str(seed) for seed in seeds]),
        "count": plural(len(seeds), "seed"),
        "arms": plural(len(comparison["arms"]), "arm"),
        "several": len(seeds) > 1,
        "reference": _title(comparison, comparison["reference"]),
        "open": blocks[:OPEN],
        "folded": blocks[OPEN:],
        "expectations": expectations,
        "holding": sum(bool(item["holds"]) for item in expectations),
    }


def arms_sentence(comparison: Mapping[str, Any]) -> str:
    """The comparison in one sentence: the reference beside the best baseline."""
    metric, reference = comparison["metrics"][0], comparison["reference"]
    arms = comparison["arms"]
    own = mean(arms[reference]["values"].get(metric, []))
    others = {
        name: mean(arm["values"][metric])
        for name, arm in arms.items()
        if arm["group"] == "baseline" and name != reference and arm["values"].get(metric)
    }
    seeds = plural(len(comparison["seeds"]), "seed")
    text = f"Over {seeds}, {_title(comparison, reference)} reaches {_name(metric)} {number(own)}"
    if len(comparison["seeds"]) > 1:
        text += " on average"
    if others:
        best = max(others, key=lambda name: others[name])
        text += f"; the best baseline, {_title(comparison, best)}, {number(others[best])}"
    return f"{text}."


def _name(metric: str) -> str:
    return METRICS.get(metric, metric)


def _title(comparison: Mapping[str, Any], arm: str) -> str:
    return str(comparison["arms"][arm]["title"] or arm)


def _block(comparison: Mapping[str, Any], metric: str) -> Plain:
    """One metric: the scale that all arms share, and the arms by group."""
    arms = comparison["arms"]
    known = {name: arm for name, arm in arms.items() if arm["values"].get(metric)}
    values = [v for arm in known.values() for v in arm["values"][metric] if math.isfinite(v)]
    scale = ticks(min(values), max(values), 4) if values else [0.0, 1.0]
    reference = comparison["reference"]
    base = known.get(reference, {"values": {}})["values"].get(metric, [])
    names = [*GROUPS, *sorted({arm["group"] for arm in known.values()} - set(GROUPS))]
    groups = []
    for group in names:
        rows = [
            _row(arm, metric, base, scale, reference=name == reference)
            for name, arm in known.items()
            if arm["group"] == group
        ]
        if rows:
            groups.append({"title": GROUPS.get(group, group.capitalize()), "rows": rows})
    missing = [_title(comparison, name) for name in arms if name not in known]
    return {
        "metric": metric,
        "name": _name(metric),
        "note": NOTES.get(metric.removeprefix("best "), ""),
        "axis": axis(scale),
        "empty": strip([], scale, mark=mean(base), label="", hue="hue-0"),
        "groups": groups,
        "missing": listed(missing),
    }


def _row(
    arm: Mapping[str, Any],
    metric: str,
    base: Sequence[float],
    scale: Sequence[float],
    *,
    reference: bool,
) -> Plain:
    values = arm["values"][metric]
    gaps = [] if reference else [b - v for b, v in zip(base, values, strict=False)]
    digits = digits_for([*values, *base])
    each = listed([number(value, digits) for value in values])
    return {
        "title": arm["title"],
        "reference": reference,
        "strip": strip(
            values,
            scale,
            mark=mean(base),
            label=f"{arm['title']}: {each}",
            hue="hue-1" if reference else "hue-0",
        ),
        "mean": number(mean(values), digits),
        "sd": number(spread(values), digits),
        "gap": number(mean(gaps), digits, sign=True),
        "gap_sd": number(spread(gaps), digits),
        "smallest": number(min(gaps, default=math.nan), digits, sign=True),
    }
