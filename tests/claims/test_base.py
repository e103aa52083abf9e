"""Claims judge what came out, and never on the seeds that a setting was chosen on."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from motet.claims import base, claim_named, list_claims
from motet.claims.base import Claim, Expectation, markdown, run_claim
from motet.core import ConfigError
from motet.experiment.compare import Arm, Comparison

ARMS = (Arm("new", {}, "the new one"), Arm("old", {}, "the old one", "baseline"))


def comparison(new: list[float], old: list[float]) -> Comparison:
    values = {"new": [{"score": x} for x in new], "old": [{"score": x} for x in old]}
    return Comparison("t", "new", tuple(range(len(new))), ARMS, values)


@pytest.mark.parametrize(
    ("bounds", "holds"),
    [
        ({"least": 2.0}, True),
        ({"least": 2.1}, False),
        ({"most": 2.0}, True),
        ({"most": 1.9}, False),
        ({"least": 0.0, "every": True}, False),
        ({"ratio": 1.2}, True),
        ({"ratio": 1.3}, False),
    ],
)
def test_an_expectation_is_judged_by_its_bounds(bounds: dict[str, float], holds: bool) -> None:
    result = comparison([15.0, 9.0], [10.0, 10.0])
    judged = Expectation("x", "new", "old", "score", **bounds).judge(result)
    assert judged["holds"] is holds


def test_every_seed_counts_where_it_is_asked_for() -> None:
    result = comparison([11.0, 12.0], [10.0, 10.0])
    assert Expectation("x", "new", "old", "score", least=1, every=True).judge(result)["holds"]


def claim(**changes: object) -> Claim:
    fields = {
        "name": "toy",
        "title": "The new beats the old",
        "paper": "Nobody, 2026.",
        "arms": lambda: ARMS,
        "reference": "new",
        "metrics": ("score",),
        "expectations": (Expectation("better", "new", "old", "score", least=0),),
        "seeds": (7, 8),
        "calibration": (1,),
        **changes,
    }
    return Claim(**fields)


@pytest.fixture
def no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(title: str, arms: list[Arm], seeds: list[int], **rest: object) -> Comparison:
        score = {"new": 2.0, "old": 1.0}
        values = {arm.name: [{"score": score[arm.name]} for _ in seeds] for arm in arms}
        return Comparison(title, "new", tuple(seeds), tuple(arms), values, "motet claim toy")

    monkeypatch.setattr(base, "compare", compare)


@pytest.mark.usefixtures("no_runs")
def test_calibration_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[1\]"):
        run_claim(claim(), tmp_path, seeds=[1, 2])


@pytest.mark.usefixtures("no_runs")
def test_an_unknown_arm_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="new, old"):
        run_claim(claim(), tmp_path, only=["nwe"])


@pytest.mark.usefixtures("no_runs")
def test_expectations_about_arms_left_out_are_left_out(tmp_path: Path) -> None:
    assert run_claim(claim(), tmp_path, only=["new"]).expectations == ()


@pytest.mark.usefixtures("no_runs")
def test_the_page_shows_what_does_not_hold(tmp_path: Path) -> None:
    hard = Expectation("much better", "new", "old", "score", least=5)
    made = claim(expectations=(hard,), notes="A note.")
    result = run_claim(made, tmp_path)
    page = markdown(made, result, {"torch": "2"}, date(2026, 1, 2))
    assert "| much better | +1.0 (sd 0.0, smallest +1.0) | **no** |" in page
    assert "the old one (baseline) | 1.0 ± 0.0 | +1.0 ± 0.0 (smallest +1.0)" in page
    assert "Seeds 7, 8; the setting was chosen on 1." in page
    assert "2026-01-02" in page
    assert "A note." in page


def test_every_registered_claim_is_whole() -> None:
    for name in list_claims():
        found = claim_named(name)
        arms = {arm.name for arm in found.arms()}
        assert found.reference in arms
        assert len(found.seeds) >= 3
        assert not set(found.seeds) & set(found.calibration)
        for expectation in found.expectations:
            assert {expectation.arm, expectation.other} <= arms
            bounds = (expectation.least, expectation.most, expectation.ratio)
            assert any(bound is not None for bound in bounds)


def test_an_unknown_claim_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="creamfl"):
        claim_named("cream")
