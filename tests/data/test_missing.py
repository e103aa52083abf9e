"""Modalities go missing in the asked numbers, and nobody is left with nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from motet.core import ConfigError, DataError, Dataset
from motet.data import Missing, assign_modalities, drop_rows, parse_missing, without


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pairs(n: int = 20) -> Dataset:
    return Dataset(
        columns={
            "image": torch.full((n, 3, 2, 2), 9, dtype=torch.uint8),
            "text": tuple(f"text {i}" for i in range(n)),
        },
        labels=torch.arange(n),
    )


def column(data: Dataset, name: str) -> torch.Tensor:
    values = data.columns[name]
    assert isinstance(values, torch.Tensor)
    return values


@given(st.floats(0, 0.5), st.floats(0, 0.5), st.integers(1, 40), st.integers(0, 99))
def test_rows_never_lose_everything(image: float, text: float, n: int, seed: int) -> None:
    shares = {"image": image, "text": text}
    try:
        data = drop_rows(pairs(n), shares, rng(seed))
    except DataError:
        # Rounding can ask for one row too many when the shares add up to 1.
        assert round(image * n) + round(text * n) > n
        return
    assert bool((data.present["image"] | data.present["text"]).all())
    for name, share in shares.items():
        assert int((~data.present[name]).sum()) == round(share * n)


def test_what_is_gone_is_filled_and_the_rest_is_as_it_was() -> None:
    whole = pairs()
    data = drop_rows(whole, {"image": 0.3, "text": 0.5}, rng())
    for row in range(20):
        seen = bool(data.present["image"][row])
        assert set(column(data, "image")[row].flatten().tolist()) == {9 if seen else 0}
        seen = bool(data.present["text"][row])
        assert data.columns["text"][row] == (f"text {row}" if seen else "")
    assert torch.equal(data.rows, whole.rows)
    assert bool(whole.present["image"].all())
    assert set(column(whole, "image").flatten().tolist()) == {9}


def test_the_generator_decides_which_rows() -> None:
    masks = [drop_rows(pairs(), {"text": 0.5}, rng(seed)).present["text"] for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_rows_that_lack_one_already_are_left_alone() -> None:
    data = drop_rows(pairs(), {"text": 0.5}, rng())
    assert int(drop_rows(data, {"text": 0.5}, rng(1)).present["text"].sum()) == 5
    twice = drop_rows(data, {"image": 0.5}, rng(1))
    assert bool((twice.present["image"] | twice.present["text"]).all())
    assert int((~twice.present["image"]).sum()) == 10
    with pytest.raises(DataError, match="image should go from 12 rows, but only 10 have another"):
        drop_rows(data, {"image": 0.6}, rng(1))
    with pytest.raises(ConfigError, match=r"no modality 'sound'; write one of \['image', 'text'\]"):
        drop_rows(data, {"sound": 0.1}, rng())


def test_without_drops_rows_that_had_nothing_else() -> None:
    data = drop_rows(pairs(), {"text": 0.25}, rng())
    left = without(data, "image")
    assert left.modalities == ("text",)
    assert len(left) == 15
    assert "" not in left.columns["text"]
    with pytest.raises(DataError, match="text is the only modality"):
        without(left, "text")


def test_missing_at_sites_and_rows() -> None:
    spec = parse_missing({"sites": {"image": 0.5, "text": 0.25}, "rows": {"text": 0.2}})
    sites = spec.apply([pairs(20 + 5 * k) for k in range(8)], rng())
    kinds = [data.modalities for data in sites]
    assert kinds.count(("text",)) == 4
    assert kinds.count(("image",)) == 2
    for data in sites:
        if data.modalities == ("image", "text"):
            assert int((~data.present["text"]).sum()) == round(0.2 * len(data))
        else:
            assert bool(data.present[data.modalities[0]].all())


def test_one_site_does_not_depend_on_the_rows_of_another() -> None:
    spec = Missing(rows={"text": 0.5})
    one = spec.apply([pairs(30), pairs(20)], rng())[1]
    two = spec.apply([pairs(8), pairs(20)], rng())[1]
    assert torch.equal(one.present["text"], two.present["text"])


def test_missing_says_what_cannot_be() -> None:
    sites = [pairs(), pairs().only(["text"])]
    with pytest.raises(ConfigError, match=r"missing.rows.sound: .*write one of image, text"):
        Missing(rows={"sound": 0.1}).apply(sites, rng())
    with pytest.raises(DataError, match=r"missing.sites.text: 2 sites should lack it, .* only 1"):
        Missing(sites={"text": 0.9}).apply(sites, rng())
    with pytest.raises(ConfigError, match=r"missing.rows.text: .*less than 1, not 1"):
        parse_missing({"rows": {"text": 1}})
    with pytest.raises(ConfigError, match=r"data.missing.row: there is no such field here"):
        parse_missing({"row": {}}, "data.missing")


def test_modalities_are_assigned_in_numbers_or_shares() -> None:
    numbers = assign_modalities(8, {"image": 2, "text": 2, "text+image": 4})
    assert numbers == [("image",)] * 2 + [("text",)] * 2 + [("image", "text")] * 4
    shares = assign_modalities(8, {"image": 0.25, "text": 0.25, "image + text": 0.5})
    assert shares == numbers
    assert assign_modalities(3, {"image": 0.5, "text": 0.5}) == [("image",)] * 2 + [("text",)]
    assert assign_modalities(3, {"image": 0.1, "text": 0.9}) == [("text",)] * 3
    assert assign_modalities(1, {"image+text": 1}) == [("image", "text")]


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=3), st.integers(1, 50))
def test_shares_add_up_to_all_sites(weights: list[float], sites: int) -> None:
    kinds = ["image", "text", "image+text"][: len(weights)]
    total = sum(weights)
    shares = {kind: weight / total for kind, weight in zip(kinds, weights, strict=True)}
    given_ = assign_modalities(sites, shares)
    assert len(given_) == sites
    for kind, share in shares.items():
        assert abs(given_.count(tuple(sorted(kind.split("+")))) - share * sites) < 1 + 1e-6


@pytest.mark.parametrize("shares", [{}, {"image": -1, "text": 2}, {"image+": 1.0}])
def test_bad_assignments_show_how_to_write_one(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"write for instance image\+text: 1.0"):
        assign_modalities(4, shares)
    with pytest.raises(ConfigError, match=r"add up to 0.7; write shares .* that add up to 4"):
        assign_modalities(4, {"image": 0.3, "text": 0.4})
