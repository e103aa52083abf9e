"""Result, key figures, curves and sites of a run as plain values for the template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from motet.experiment.report.charts import MANY, Line, line_chart, spark
from motet.experiment.report.run import HUB, RunFiles, Series
from motet.experiment.report.text import (
    METRICS,
    NOTES,
    digits_for,
    listed,
    mean,
    number,
    plural,
    size,
)
from motet.experiment.report.traffic import Flow, Traffic

Plain = dict[str, Any]
RECALLS = {
    "t2i_r10": "R@10",
    "i2t_r10": "R@10",
    "t2i_r5": "R@5",
    "i2t_r5": "R@5",
    "t2i_r1": "R@1",
    "i2t_r1": "R@1",
}


def hues(run: RunFiles) -> dict[str, str]:
    """Modalities of sites, joined by " + " -> the hue of all such sites."""
    found = dict.fromkeys(_modalities(info) for info in run.sites.values())
    return {name: f"hue-{2 + number % 5}" for number, name in enumerate(sorted(found))}


def _modalities(info: Mapping[str, Any]) -> str:
    return " + ".join(info["modalities"])


def result_sentence(run: RunFiles) -> str:
    """What came out: the hub's own metric from the first to the last report, or its sites'."""
    if not run.series:
        told = run.status["error"]
        stopped = f"Stopped before anything was measured: {told}"
        return stopped if told else "Nothing has been measured yet."
    metric = run.own_metric(HUB)
    if metric:
        who, curve = "the server", run.series[HUB, metric]
        over = f"on {curve.rows:,} test rows" if curve.rows else ""
    else:
        metric, curve = _mean_of_sites(run)
        who, over = "a site on average", "on its own test rows"
    (x, first), (end, last) = curve.first, curve.last
    planned = run.rounds[1]
    rounds = f"{end} of {planned} rounds" if end < planned else plural(end, "round")
    opening = f"After {rounds}" if end else "Before the first round"
    digits = digits_for([first, last])
    name = METRICS.get(metric, metric).replace(", %", "")
    text = f"{opening}, {who} reaches {name} {number(last, digits)} {over}".rstrip()
    if len(curve.points) > 1:
        text += f", from {number(first, digits)} {_moment(x)}"
    return f"{text}."


def _moment(rounds: int) -> str:
    return f"after round {rounds}" if rounds else "before the first round"


def _since(rounds: int) -> str:
    return f"round {rounds}" if rounds else "the start"


def _mean_of_sites(run: RunFiles) -> tuple[str, Series]:
    """The metric that most sites are judged by, averaged over them."""
    judged = Counter(run.own_metric(site) for site in run.parties)
    metric = judged.most_common(1)[0][0] if judged else ""
    curves = [run.series[site, metric] for site in run.parties if (site, metric) in run.series]
    rounds = sorted({x for curve in curves for x, _ in curve.points})
    by_round = [{**dict(curve.points)} for curve in curves]
    points = tuple((x, mean([own[x] for own in by_round if x in own])) for x in rounds)
    return metric, Series(points)


def key_figures(run: RunFiles, traffic: Traffic) -> list[Plain]:
    """The few numbers at the top: label, value, remark."""
    figures: list[Plain] = []
    metric = run.own_metric(HUB)
    if metric:
        curve = run.series[HUB, metric]
        (x, first), (_, last) = curve.first, curve.last
        digits = digits_for([last])
        remark = f"{number(last - first, digits, sign=True)} since {_since(x)}"
        name = METRICS.get(metric, metric)
        figures.append({"label": f"server, {name}", "value": number(last, digits), "note": remark})
    kinds = Counter(_modalities(info) or "unknown" for info in run.sites.values())
    shares = listed([f"{count} {name}" for name, count in kinds.items()])
    if run.sites:
        figures.append({"label": "sites", "value": f"{len(run.sites)}", "note": shares})
    if traffic.up.messages:
        for label, flow in (("left the sites", traffic.up), ("reached the sites", traffic.down)):
            what = listed([kind for kind, count in flow.kinds.items() if count]) or "no tensors"
            figures.append({"label": label, "value": size(flow.frames), "note": what})
    return figures


def curve_charts(run: RunFiles) -> list[Plain]:
    """Charts of the hub's metrics and of each metric that sites are judged by."""
    hub = run.metrics_of(HUB)
    charts: list[Plain] = []
    own = run.own_metric(HUB)
    recalls = [name for name in RECALLS if name in hub]
    if own:
        charts.append(_chart("Server", own, [_line("server", hub[own], "hue-1")]))
    if recalls:
        lines = [_recall(name, hub[name]) for name in recalls]
        charts.append(_chart("Server", "recall, %", lines))
    for name in hub:
        if name not in (own, *recalls):
            charts.append(_chart("Server", name, [_line("server", hub[name], "hue-1")]))
    colours = hues(run)
    for metric in dict.fromkeys(run.own_metric(site) for site in run.parties):
        sites = [site for site in run.parties if run.own_metric(site) == metric]
        lines = [
            _line(site, run.series[site, metric], colours[_modalities(run.sites[site])])
            for site in sites
        ]
        charts.append(_chart("Sites", metric, lines))
    return charts


def _line(label: str, curve: Series, hue: str) -> Line:
    last = curve.last[1]
    return Line(label, number(last, digits_for([last])), curve.points, hue)


def _recall(name: str, curve: Series) -> Line:
    dashed = name.startswith("i2t")
    return Line(RECALLS[name], number(curve.last[1]), curve.points, "hue-1", dashed)


def _chart(who: str, metric: str, lines: Sequence[Line]) -> Plain:
    name = METRICS.get(metric, metric)
    many = len(lines) > MANY
    note = f"{plural(len(lines), 'site')}; names and values are in the table" if many else ""
    told = listed([f"{line.name} {line.value}" for line in lines[:MANY]])
    svg = line_chart(lines, label=f"{who}, {name}, over rounds; at the end: {told}")
    return {"who": who, "name": name, "note": note or NOTES.get(metric, ""), "svg": svg}


def site_rows(run: RunFiles, traffic: Traffic) -> list[Plain]:
    """The table of sites."""
    colours = hues(run)
    done = run.rounds[0]
    rows: list[Plain] = []
    for site, info in run.sites.items():
        metric = run.own_metric(site)
        curve = run.series.get((site, metric), Series(()))
        flows = traffic.sites.get(site, {"down": Flow(), "up": Flow()})
        ends = (curve.first[1], curve.last[1])
        digits = digits_for(ends)
        rows.append(
            {
                "name": site,
                "hue": colours[_modalities(info)],
                "modalities": _modalities(info) or "–",
                "rows": "–" if info["rows"] is None else f"{info['rows']:,}",
                "model": info["model"] or "–",
                "metric": METRICS.get(metric, metric).replace(", %", "") or "–",
                "first": number(ends[0], digits),
                "last": number(ends[1], digits),
                "spark": spark([y for _, y in curve.points]) if metric else Markup(""),
                "down": size(flows["down"].frames),
                "up": size(flows["up"].frames),
                "rounds": f"{traffic.participations(site)} of {done}",
            }
        )
    return rows
