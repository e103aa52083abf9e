"""What left every site and what reached it: bytes per kind and direction, counted on frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from motet.core.events import Event
from motet.core.kinds import Kind
from motet.core.messages import OTHER
from motet.experiment.report.charts import bar
from motet.experiment.report.text import listed, size

Plain = dict[str, Any]
FRAME = "frame"
REST = "rest"
EVALUATE = "evaluate"

ABOUT: Mapping[str, str] = {
    Kind.WEIGHTS: "parameters of a model",
    Kind.CONTROL: "steering, such as the numbers of public rows to use",
    Kind.GRADIENTS: "changes that private rows ask of a model's parameters",
    Kind.REPRESENTATIONS: "vectors that a model makes of rows",
    Kind.LOGITS: "scores of the classes that a model gives to rows",
    Kind.VOTES: "rankings or choices",
    Kind.SKETCH: "compressed summaries",
    Kind.ACTIVATIONS: "values from inside a model, one set per row",
    Kind.SYNTHETIC: "rows that a model invented",
    Kind.LABELS: "classes of rows",
    Kind.METRIC: "results of evaluation",
    Kind.RAW: "rows as they are, which a site refuses to send",
    OTHER: "tensors of no declared kind",
    REST: "names, single numbers, metrics and the frame around them",
}

# What a data officer asks for, in that order.
ASKED: Mapping[Kind, str] = {
    Kind.RAW: "raw rows",
    Kind.LABELS: "labels",
    Kind.WEIGHTS: "weights",
    Kind.GRADIENTS: "gradients",
    Kind.REPRESENTATIONS: "representations",
    Kind.LOGITS: "logits",
    Kind.ACTIVATIONS: "activations",
    Kind.SYNTHETIC: "synthetic rows",
    Kind.SKETCH: "sketches",
    Kind.VOTES: "votes",
    Kind.CONTROL: "control tensors",
}


@dataclass
class Flow:
    """Bytes of one direction: all frames, the tensors in them by kind, how many messages."""

    frames: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    messages: int = 0

    def add(self, counts: Mapping[str, int]) -> None:
        """Adds one message's counts as the events hold them."""
        self.messages += 1
        self.frames += counts[FRAME]
        for kind, count in counts.items():
            if kind != FRAME:
                self.kinds[kind] = self.kinds.get(kind, 0) + count

    def of(self, kind: str) -> int:
        """Bytes of a kind; ``REST`` is what the frames hold beside tensors."""
        if kind == REST:
            return max(self.frames - sum(self.kinds.values()), 0)
        return self.kinds.get(kind, 0)


@dataclass
class Traffic:
    """Both directions, in total, per site and per operation."""

    down: Flow = field(default_factory=Flow)
    up: Flow = field(default_factory=Flow)
    sites: dict[str, dict[str, Flow]] = field(default_factory=dict)
    operations: dict[str, dict[str, Flow]] = field(default_factory=dict)
    # Operation -> shapes of what a site sent in it, by kind, as of the first answer.
    shapes: dict[str, dict[str, str]] = field(default_factory=dict)
    # Site -> rounds in which it did more than evaluate, and all in which it answered.
    worked: dict[str, set[str]] = field(default_factory=dict)
    answered: dict[str, set[str]] = field(default_factory=dict)

    @property
    def kinds(self) -> list[str]:
        """Kinds that were seen in either direction, most bytes first, and the rest at the end."""
        seen = {*self.down.kinds, *self.up.kinds}
        return [*sorted(seen, key=lambda k: (-self.down.of(k) - self.up.of(k), k)), REST]

    @property
    def kinds_up(self) -> list[str]:
        """Kinds of tensors that left a site."""
        return [kind for kind in self.kinds if kind != REST and self.up.of(kind)]

    @property
    def never_up(self) -> list[Kind]:
        """Kinds of tensors that no site sent; metrics travel as plain numbers and are not one."""
        told = {*self.kinds_up, Kind.METRIC}
        return [kind for kind in Kind if kind not in told]

    def participations(self, site: str) -> int:
        """Rounds in which a site took part; evaluation counts where it was all that was asked."""
        busy = any(self.worked.values())
        return len((self.worked if busy else self.answered).get(site, set()))


def traffic_of(events: Sequence[Event]) -> Traffic:
    """Sums up the replies of a run; a request that failed counts on its way down."""
    total = Traffic()
    for event in events:
        if event["event"] in ("replied", "failed") and "down" in event:
            _add(total, event)
    return total


def _add(total: Traffic, event: Mapping[str, Any]) -> None:
    site, op = event["site"], event["op"]
    flows = (
        {"down": total.down, "up": total.up},
        total.sites.setdefault(site, {"down": Flow(), "up": Flow()}),
        total.operations.setdefault(op, {"down": Flow(), "up": Flow()}),
    )
    for pair in flows:
        for way, flow in pair.items():
            if way in event:
                flow.add(event[way])
    if event.get("shapes"):
        total.shapes.setdefault(op, event["shapes"])
    if event["event"] == "replied":
        # A tag begins with loop and round.
        moment = event["tag"].rpartition(".")[0]
        total.answered.setdefault(site, set()).add(moment)
        if op != EVALUATE:
            total.worked.setdefault(site, set()).add(moment)


def traffic_view(names: Sequence[str], traffic: Traffic) -> Plain:
    """Bytes by kind, site and operation; names: sites in the order of the tables."""
    kinds = [kind for kind in traffic.kinds if kind != REST]
    colours = {kind: f"hue-{1 + number % 6}" for number, kind in enumerate(kinds)}
    colours[REST] = "hue-0"
    shown = [kind for kind in traffic.kinds if traffic.up.of(kind) or traffic.down.of(kind)]
    most = max((flows["up"].frames for flows in traffic.sites.values()), default=0)
    sites = [site for site in names if site in traffic.sites]
    return {
        "kinds": [
            {
                "name": _kind(kind),
                "hue": colours[kind],
                "about": ABOUT.get(kind, ""),
                "up": size(traffic.up.of(kind)),
                "down": size(traffic.down.of(kind)),
            }
            for kind in shown
        ],
        "up": size(traffic.up.frames),
        "down": size(traffic.down.frames),
        "up_kinds": [_kind(kind) for kind in shown if traffic.up.of(kind)],
        "sites": [_site_bytes(site, traffic, shown, colours, most) for site in sites],
        "operations": [
            {
                "name": name,
                "count": f"{flows['up'].messages:,}",
                "down": size(flows["down"].frames),
                "up": size(flows["up"].frames),
                "kinds": listed([k for k in flows["up"].kinds if flows["up"].of(k)]) or "–",
                "shapes": "; ".join(
                    f"{kind} {form}" for kind, form in traffic.shapes.get(name, {}).items()
                ),
            }
            for name, flows in traffic.operations.items()
        ],
        "said": _said(traffic),
    }


def _said(traffic: Traffic) -> str:
    """What left, and what did not, in two sentences."""
    sent = listed(traffic.kinds_up)
    first = f"The tensors that left a site are {sent}." if sent else "No tensor left a site."
    never = [words for kind, words in ASKED.items() if kind in traffic.never_up]
    return f"{first} Of the kinds that Motet knows, no site sent {listed(never, 'or')}."


def _kind(kind: str) -> str:
    return "everything else" if kind == REST else kind


def _site_bytes(
    site: str, traffic: Traffic, kinds: Sequence[str], colours: Mapping[str, str], most: int
) -> Plain:
    up = traffic.sites[site]["up"]
    parts = [(float(up.of(kind)), colours[kind]) for kind in kinds]
    told = listed([f"{size(up.of(kind))} {_kind(kind)}" for kind in kinds if up.of(kind)])
    return {
        "name": site,
        "bar": bar(parts, float(most), label=f"left {site}: {told}"),
        "kinds": [size(up.of(kind)) for kind in kinds if traffic.up.of(kind)],
        "up": size(up.frames),
        "down": size(traffic.sites[site]["down"].frames),
        "messages": f"{up.messages:,}",
    }
