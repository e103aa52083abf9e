"""What protected a run, what its privacy cost, and who attacked it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from motet.core.events import Event
from motet.experiment.report.run import RunFiles
from motet.experiment.report.text import listed
from motet.protect.spec import Protect
from motet.protect.words import described, nothing_hidden

Plain = dict[str, Any]


def protection_view(run: RunFiles) -> Plain:
    """Parts, privacy per party and attackers; "known" is false for a recipe of a later version."""
    given = run.recipe.get("protect")
    try:
        protect = Protect.model_validate(given or {})
    except ValidationError:
        # Of what cannot be read the report must not say that messages are bare.
        return {"known": False, "parts": [], "bare": False, "spent": [], "ended": "", "attack": ""}
    return {
        "known": True,
        "parts": described(protect, max(len(run.sites), 1)),
        "bare": nothing_hidden(protect),
        "spent": spent_rows(run.events),
        "ended": next((e["ended"] for e in run.events if e.get("ended")), ""),
        "attack": _attack(run),
    }


def spent_rows(events: Sequence[Event]) -> list[Plain]:
    """Party, unit, delta and epsilon after its first, middle and last release."""
    told: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event["event"] == "privacy":
            told.setdefault(str(event["party"]), []).append(event)
    return [
        {
            "party": party,
            "unit": f"one {found[-1]['unit']}",
            "delta": f"{found[-1]['delta']:.3g}",
            "releases": f"{len(found):,}",
            "first": _epsilon(found[0]),
            "middle": _epsilon(found[len(found) // 2]),
            "last": _epsilon(found[-1]),
            "bound": str(found[-1].get("bound", "")),
        }
        for party, found in sorted(told.items())
    ]


def _epsilon(event: Mapping[str, Any]) -> str:
    value = event["epsilon"]
    return "∞" if value is None else f"{value:.3g}"


def _attack(run: RunFiles) -> str:
    given = run.recipe.get("attack")
    if not isinstance(given, dict):
        return ""
    sites = sorted({site for e in run.events if e["event"] == "attacked" for site in e["sites"]})
    who = f": {listed(sites)}" if sites else ""
    return f"This recipe has dishonest sites, who do {given.get('name')}{who}."
