"""Recipes for populations of any size: what is not asked costs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from motet.core import ConfigError, DataError
from motet.core.events import read_events
from motet.core.roster import Drawn
from motet.experiment.build import build_parties, find_site
from motet.experiment.preview import preview_of
from motet.experiment.runner import run
from motet.experiment.spec import Experiment, parse_experiment, with_settings

MODEL = {"width": 8, "image": {"name": "pixel-mlp", "side": 8}}
VALUES: dict[str, Any] = {
    "method": {"name": "fedavg", "rounds": 3, "cohort": 5, "local": {"batch": 5, "steps": 1}},
    "data": {"name": "digits", "test": 50, "public": 20},
    "server": MODEL,
    "classify": True,
    "common_start": True,
    "populations": [
        {
            "name": "site",
            "count": 100_000,
            "modalities": ["image"],
            "partition": {"name": "draw", "rows": 10},
            "models": [MODEL],
        }
    ],
}
SITE = "populations.site"


def experiment(*settings: str) -> Experiment:
    return parse_experiment(with_settings(VALUES, settings))


def test_a_hundred_thousand_sites_run_and_leave_what_was_asked(tmp_path: Path) -> None:
    found = run(experiment(), folder=tmp_path)
    events = read_events(tmp_path / "events.jsonl")
    asked = {event["site"] for event in events if event["event"] == "replied"}
    assert len(asked) == 15
    told = [event for event in events if event["event"] == "sites"]
    assert {name for event in told for name in event["sites"]} == asked
    assert (tmp_path / "events.jsonl").stat().st_size < 50_000
    assert not (tmp_path / "sites").exists()
    again = run(experiment())
    assert again.hash == found.hash


def test_few_live_sites_and_many_give_equal_results() -> None:
    sites = (f"{SITE}.count=8", "method.name=scaffold", "method.rounds=4")
    wanted = run(experiment(*sites))
    assert run(experiment(*sites, "engine.live=2")).hash == wanted.hash


def test_a_site_draws_rows_of_its_own() -> None:
    parties = build_parties(experiment())
    assert isinstance(parties.sites, Drawn)
    assert len(parties.sites) == 100_000
    one, other = parties.sites.named("site-7"), parties.sites.named("site-70000")
    again = build_parties(experiment(f"{SITE}.count=7")).sites
    assert isinstance(again, Drawn)
    assert torch.equal(one.data.rows, again.named("site-7").data.rows)
    assert not torch.equal(one.data.rows, other.data.rows)
    assert len(one.data) == len(set(one.data.rows.tolist())) == 10
    assert one.traits == other.traits
    assert one.build is other.build
    seeded = build_parties(experiment("seed=1")).sites
    assert isinstance(seeded, Drawn)
    assert not torch.equal(one.data.rows, seeded.named("site-7").data.rows)


def test_one_site_of_each_model_stands_for_all() -> None:
    models = f"{SITE}.models=[{MODEL}, {{width: 8, image: {{name: pixel-mlp, side: 4}}}}]"
    parties = build_parties(experiment(models, "method.name=local-only"))
    assert set(parties.facts.sites) == {"site-1", "site-2"}
    assert parties.facts.encoders["site-1", "image"] != parties.facts.encoders["site-2", "image"]
    with pytest.raises(ConfigError, match="give all sites the server's encoders"):
        run(experiment(models))


def test_too_few_rows_to_draw_from() -> None:
    with pytest.raises(DataError, match=r"partition.rows=5000: there are 1727 rows"):
        build_parties(experiment(f"{SITE}.partition.rows=5000"))


def test_sites_are_found_by_name() -> None:
    population, number = find_site(experiment(), "site-99999")
    assert (population.name, number) == ("site", 99_998)
    for name in ("site-100001", "site-0", "other-1"):
        with pytest.raises(ConfigError, match=f"no site {name!r}"):
            find_site(experiment(), name)


def test_the_preview_counts_the_first_sites() -> None:
    told = preview_of(build_parties(experiment()))
    assert len(told["sites"]) == 1000


def test_processes_do_not_ship_a_large_population() -> None:
    with pytest.raises(ConfigError, match="100,000 sites are more than"):
        run(experiment("engine.name=processes"))
