"""Run folders made up of events, and pages taken apart."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from motet.experiment.report import write_report

EVIL = """<script>alert(1)</script>"'><img src=http://evil.example/x onerror=alert(2)>&"""
RECIPE = """\
title: A title
seed: 7
method: {name: creamfl, rounds: 3}
data: {name: emoji, unit: concept, public: 300}
protect: {}
"""
SITES = {
    "image-1": {"modalities": ["image"], "rows": 1200, "model": "hog-mlp-64"},
    "pair-1": {"modalities": ["image", "text"], "rows": 30, "model": "a + b"},
}


def metric(number: int, party: str, **values: float) -> dict[str, Any]:
    pairs = {name: [value, 400] for name, value in values.items()}
    point = "hub" if party == "hub" else "after local training"
    return {"event": "metric", "round": number, "party": party, "point": point, "metrics": pairs}


def replied(number: int, site: str, op: str, up: int, kind: int = 0) -> dict[str, Any]:
    sent = {"frame": up, **({"representations": kind} if kind else {})}
    return {
        "event": "replied",
        "round": number,
        "site": site,
        "op": op,
        "tag": f"0.{number}.{1 if op == 'contrast' else 2}",
        "down": {"frame": 1000, "representations": 900},
        "up": sent,
    }


def a_round(number: int, *, of: int = 3) -> list[dict[str, Any]]:
    return [
        {"event": "checkpoint", "round": number, "version": number + 1},
        {"event": "round", "round": number, "loop": 0, "of": of},
        replied(number, "image-1", "contrast", 2000, 1900),
        replied(number, "pair-1", "contrast", 4000, 3800),
        metric(number, "hub", rsum=60 + 10 * number, t2i_r1=2.0, i2t_r1=3.0),
        replied(number, "image-1", "evaluate", 50),
        metric(number, "image-1", accuracy=20 + number),
        metric(number, "pair-1", rsum=30 + number),
    ]


def history(rounds: int = 3, *ending: dict[str, Any]) -> list[dict[str, Any]]:
    events = [{"event": "started"}, {"event": "sites", "sites": SITES}]
    for i in range(rounds):
        events += a_round(i)
    end = {"event": "finished", "round": 3, "hash": "00ff00ff00ff00ff"}
    last = {"event": "checkpoint", "round": rounds, "version": rounds + 1}
    return [*events, *(ending or (last, end))]


def folder(
    path: Path, events: list[dict[str, Any]] | None = None, recipe: str = RECIPE, **files: Any
) -> Path:
    path.mkdir(exist_ok=True)
    (path / "recipe.yaml").write_text(recipe)
    timed = [{"time": 1.7e9 + i, **event} for i, event in enumerate(events or history())]
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in timed))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


class Page(HTMLParser):
    """Text without tags, checked for balance; tags with their attributes."""

    VOID = frozenset({"meta", "img", "link", "br"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.pieces: list[str] = []
        self.html = path.read_text()
        self.feed(self.html)
        self.close()
        assert not self.open, f"left open: {self.open}"
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.pieces.append(data)

    def headings(self) -> list[str]:
        return re.findall(r"<h2>(.*?)</h2>", self.html)


def report(path: Path, **options: Any) -> Page:
    return Page(write_report(path, **options))


def arm(group: str, title: str = "", **values: list[float]) -> dict[str, Any]:
    return {"title": title, "group": group, "values": values}


def comparison(**changes: Any) -> dict[str, Any]:
    own = {"rsum": [100.0, 104.0, 96.0], "MB up": [2.0, 2.0, 2.0]}
    return {
        "title": "Does it help?",
        "reference": "creamfl",
        "seeds": [5, 6, 8],
        "metrics": ["rsum", "MB up"],
        "arms": {
            "creamfl": arm("method", "CreamFL", **own),
            "fedmd": arm("baseline", "FedMD", rsum=[90, 92, 94]),
            "alone": arm("baseline", "server only", rsum=[60, 50, 70]),
            "scrambled": arm("control", "scrambled", rsum=[101, 80, 90]),
        },
        "expectations": [
            {"text": "above FedMD", "figure": "+8.0", "holds": True},
            {"text": "above the scrambled", "figure": "+9.7", "holds": False},
        ],
        "command": "motet claim creamfl",
        **changes,
    }


GALLERY = {
    "pictures": {
        "0": {"caption": "a cat", "label": "animals", "data": "data:image/webp;base64,AAAA"},
        "1": {"caption": "a dog", "label": "animals", "data": "data:image/webp;base64,BBBB"},
        "2": {"caption": "a car", "label": "things", "data": "data:image/webp;base64,CCCC"},
    },
    "stages": {
        "before training": [
            {
                "query": 0,
                "place": 3,
                "of": 400,
                "found": [
                    {"row": 1, "right": False, "same": True},
                    {"row": 2, "right": False, "same": False},
                ],
            }
        ],
        "after training": [
            {
                "query": 0,
                "place": 1,
                "of": 400,
                "found": [
                    {"row": 0, "right": True, "same": True},
                    {"row": 2, "right": False, "same": False},
                ],
            }
        ],
    },
}
