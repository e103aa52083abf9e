"""From recipe to parties: who gets which rows and which model."""

from __future__ import annotations

import pytest
import torch
from tests.methods import tiny

from motet.core import ConfigError, DataError
from motet.experiment import build
from motet.experiment.build import build_parties
from motet.experiment.rows import join, scramble
from motet.experiment.spec import parse_experiment


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load_data", lambda name, **options: tiny.pairs())


def concepts(data: object) -> set[int]:
    return set(data.about["concept"].tolist())  # type: ignore[attr-defined]


def test_test_public_and_private_rows_share_no_unit() -> None:
    parties = build_parties(tiny.experiment())
    test, public = concepts(parties.test), concepts(parties.public)
    assert (len(test), len(public)) == (16, 24)
    assert not test & public
    for site in parties.sites:
        assert not concepts(site.data) & (test | public)


def test_a_population_shares_out_all_private_rows_once() -> None:
    sites = {site.name: site for site in build_parties(tiny.experiment()).sites}
    pairs = [sites["pair-1"].data, sites["pair-2"].data]
    assert not concepts(pairs[0]) & concepts(pairs[1])
    assert concepts(pairs[0]) | concepts(pairs[1]) == concepts(sites["image-1"].data)


def test_sites_hold_their_modalities_alone() -> None:
    for site in build_parties(tiny.experiment()).sites:
        wanted = {"pair": ("image", "text"), "image": ("image",), "text": ("text",)}
        kind = site.name.split("-")[0]
        assert site.data.modalities == site.test.modalities == wanted[kind]
        assert site.build().modalities == wanted[kind]
        assert (site.build().head is None) == (kind == "pair")


def test_models_are_taken_in_turn() -> None:
    values = tiny.recipe()
    large = {"width": 8, "image": {"name": "hog-mlp", "hidden": 16}, "text": "hashed-mlp"}
    values["populations"][2]["count"] = 3
    values["populations"][2]["models"].append(large)
    sites = build_parties(parse_experiment(values)).sites
    labels = [site.model for site in sites if site.name.startswith("pair")]
    assert labels[0] == labels[2] != labels[1]
    assert labels[1] == "hog-mlp-16 + hashed-mlp-128"


def test_the_split_depends_on_the_seed_alone() -> None:
    one, two = build_parties(tiny.experiment()), build_parties(tiny.experiment("method.rounds=9"))
    other = build_parties(tiny.experiment("seed=1"))
    assert torch.equal(one.test.rows, two.test.rows)
    assert not torch.equal(one.test.rows, other.test.rows)


def test_site_level_missing_takes_the_modality_away() -> None:
    made = tiny.experiment("populations.2.missing={sites: {text: 0.5}}")
    sites = [site for site in build_parties(made).sites if site.name.startswith("pair")]
    assert sorted(site.data.modalities for site in sites) == [("image",), ("image", "text")]


def test_row_level_missing_sets_the_mask() -> None:
    made = tiny.experiment("populations.2.missing={rows: {image: 0.5}}")
    site = next(site for site in build_parties(made).sites if site.name == "pair-1")
    share = site.data.present["image"].double().mean()
    assert 0.2 < float(share) < 0.8
    assert bool(site.data.present["text"].all())


def test_rows_can_be_chosen_by_a_column() -> None:
    made = tiny.experiment("populations.0.where={concept: ['1', '2', '3', '4', '5', '6', '7']}")
    site = build_parties(made).sites[0]
    assert concepts(site.data) <= set(range(1, 8))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("populations.0.where={style: noto}", "where names 'style'"),
        ("populations.0.where={concept: nine}", "no private row"),
        ("populations.0.modalities=[sound]", "no encoder for sound"),
        ("populations.0.partition={name: dirichlet, by: group}", "group"),
        ("data.test=90", "90"),
        ("data.unit=street", "street"),
        ("populations.2.count=200", "200"),
        ("populations.0.models=[{width: 8, text: hashed-mlp}]", "image"),
    ],
)
def test_what_does_not_fit_is_named(setting: str, words: str) -> None:
    with pytest.raises((ConfigError, DataError), match=words):
        build_parties(tiny.experiment(setting))


def test_models_of_different_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="width"):
        tiny.experiment("server.width=16")


def test_scramble_keeps_rows_and_loses_meaning() -> None:
    data = tiny.pairs()
    mixed = scramble(data, torch.Generator().manual_seed(0))
    assert sorted(mixed.columns["text"]) == sorted(data.columns["text"])
    assert mixed.columns["text"] != data.columns["text"]
    assert torch.equal(mixed.columns["image"], data.columns["image"])


def test_join_puts_rows_in_order() -> None:
    data = tiny.pairs()
    parts = [data.take(range(5)), data.take(range(5, 12))]
    joined = join(parts)
    assert torch.equal(joined.rows, data.rows[:12])
    assert joined.columns["text"] == data.columns["text"][:12]
    assert torch.equal(joined.about["concept"], torch.arange(12))
