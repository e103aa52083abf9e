"""Retrieval pictures and the preview of the data as plain values for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from motet.experiment.report.charts import cells
from motet.experiment.report.text import plural

Plain = dict[str, Any]
# More squares than these would make the page heavy, and are too narrow to be told apart.
MOST_SQUARES = 4000


def gallery_view(gallery: Mapping[str, Any]) -> Plain:
    """Queries with what every stage found for them; empty without pictures."""
    stages: Mapping[str, Sequence[Plain]] = gallery.get("stages", {})
    if not stages or not any(stages.values()):
        return {}
    pictures = gallery["pictures"]
    by_query: dict[int, dict[str, Plain]] = {}
    for stage, found in stages.items():
        for item in found:
            by_query.setdefault(item["query"], {})[stage] = item
    queries = [
        {
            "wanted": pictures[str(row)],
            "stages": [_found(stage, own[stage], pictures) for stage in stages if stage in own],
        }
        for row, own in by_query.items()
    ]
    shown = [item for found in stages.values() for item in found]
    most = max(item["of"] for item in shown)
    return {
        "queries": queries,
        "stages": [
            {"name": stage, "median": f"{median(item['place'] for item in found):g}"}
            for stage, found in stages.items()
            if found
        ],
        "count": plural(len(queries), "caption"),
        "of": f"{most:,}",
        "chance": f"{(most + 1) / 2:.0f}",
        "depth": max(len(item["found"]) for item in shown),
    }


def _found(stage: str, item: Plain, pictures: Mapping[str, Plain]) -> Plain:
    tiles = []
    for hit in item["found"]:
        kind = "right" if hit["right"] else "same" if hit["same"] else "other"
        word = {"right": "the right picture", "same": "same category", "other": "another one"}
        picture = pictures[str(hit["row"])]
        alt = f"{picture['caption']} ({word[kind]})"
        tiles.append({"data": picture["data"], "kind": kind, "alt": alt})
    return {"name": stage, "place": item["place"], "of": f"{item['of']:,}", "tiles": tiles}


def preview_view(preview: Mapping[str, Any]) -> Plain:
    """Modalities and labels per site, as ``preview_of`` tells them; empty without a preview."""
    sites: Mapping[str, Plain] = preview.get("sites", {})
    if not sites:
        return {}
    names = preview.get("labels", [])
    shared = {f"{name} set": preview[name] for name in ("public", "test") if preview.get(name)}
    modalities = sorted({name for info in sites.values() for name in info["present"]})
    most = max((max(info["labels"], default=0) for info in sites.values()), default=0)
    drawn = bool(names) and len(names) * len(sites) <= MOST_SQUARES
    column = preview.get("about") or "labels"
    rows = []
    for party, info in {**sites, **shared}.items():
        seen = f"{sum(count > 0 for count in info['labels'])} of {len(names)}"
        told = f"{party}: rows of {seen} {column}"
        rows.append(
            {
                "name": party,
                "site": party in sites,
                "rows": f"{info['rows']:,}",
                "present": [f"{info['present'].get(name, 0):,}" for name in modalities],
                "seen": seen,
                "cells": cells(info["labels"], names, most, label=told) if drawn else "",
            }
        )
    return {
        "modalities": modalities,
        "sites": rows,
        "column": column if names else "",
        "counted": f"{len(names)} {'labels' if column == 'labels' else f'values of {column}'}",
        "drawn": drawn,
        "most": f"{most:,}",
    }
