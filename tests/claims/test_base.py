"""Claims judge what came out, and never on the seeds that a setting was chosen on."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from motet.claims import base, claim_named, list_claims
from motet.claims.base import Claim, Expectation, markdown, run_claim, with_fairness
from motet.claims.registry import claim_title
from motet.core import ConfigError
from motet.experiment.compare import Arm, Comparison
from motet.methods.registry import METHODS

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
        assert found.title == claim_title(name)
        arms = {arm.name for arm in found.arms()}
        assert found.reference in arms
        assert len(found.seeds) >= 3
        assert not set(found.seeds) & set(found.calibration)
        assert {*found.alone, *found.alone.values()} <= arms, name
        for expectation in found.expectations:
            assert expectation.arms <= arms, name
            names = ("least", "most", "every_least", "every_most", "ratio", "most_ratio")
            bounds = [getattr(expectation, bound) for bound in names]
            assert expectation.every or any(bound is not None for bound in bounds), name


def test_every_method_but_references_has_a_claim() -> None:
    """Some are arms of another's: CreamFL's family, gossip of Bristle, split-tuning of SFPrompt."""
    with_creamfl = {"server-only", "fediot", "fedet", "fedgems"}
    of_another = {name for name in METHODS if name.startswith("modal-")} | with_creamfl
    # An attack of the auditor's and a part of the recipe, and no methods.
    others = {"gifd", "privacy"}
    assert set(METHODS) - of_another - {"gossip", "split-tuning"} == set(list_claims()) - others


@pytest.mark.parametrize(
    ("bounds", "holds"),
    [
        ({"every_least": 1.0}, True),
        ({"every_least": 1.1}, False),
        ({"every_most": 3.0}, True),
        ({"every_most": 2.9}, False),
        ({"least": 2.0, "most": 2.0}, True),
        ({"every": True}, True),
        ({"ratio": 1.5}, True),
        ({"most_ratio": 1.4}, False),
    ],
)
def test_bounds_on_every_seed_and_on_ratios(bounds: dict[str, float], holds: bool) -> None:
    values = {"a": [{"m": 5.0}, {"m": 7.0}], "b": [{"m": 4.0}, {"m": 4.0}]}
    arms = (Arm("a", {}), Arm("b", {}))
    comparison = Comparison("", "a", (1, 2), arms, values)
    judged = Expectation("", "a", "b", "m", **bounds).judge(comparison)  # type: ignore[arg-type]
    assert judged["holds"] is holds


def test_an_arms_own_value_is_judged_without_another() -> None:
    values = {"a": [{"m": 5.0}, {"m": 7.0}]}
    comparison = Comparison("", "a", (1, 2), (Arm("a", {}),), values)
    judged = Expectation("", "a", metric="m", every_least=5.0).judge(comparison)
    assert judged["holds"]
    assert judged["figure"] == "6.0 (sd 1.4, smallest 5.0)"


def of_sites(*values: float) -> dict[str, float]:
    named = {f"site-{i}/accuracy": value for i, value in enumerate(values)}
    # What must not be taken for a site's last accuracy.
    others = {"sites' accuracy": 1.0, "site-1/accuracy@5": 2.0, "site-1/accuracy as received": 3.0}
    return {**named, **others}


def test_fairness_is_how_sites_fare_by_what_they_are_alone() -> None:
    alone = [of_sites(10, 20, 30), of_sites(10, 20, 30)]
    values = {
        "fair": [of_sites(70, 80, 90), of_sites(90, 80, 70)],
        "alone": alone,
        "one model": [{"accuracy": 80.0}, {"accuracy": 81.0}],
        "without": [of_sites(70, 80, 90)] * 2,
    }
    arms = tuple(Arm(name, {}) for name in values)
    comparison = Comparison("", "fair", (1, 2), arms, values)
    found = with_fairness(comparison, {"fair": "alone", "one model": "alone", "gone": "alone"})
    assert found.of("fair", "fairness") == pytest.approx([100, -100])
    assert found.of("one model", "fairness") == [0, 0]
    with pytest.raises(ConfigError, match="fairness"):
        found.of("without", "fairness")
    assert "fairness" not in comparison.values["fair"][0]


@pytest.mark.usefixtures("no_runs")
def test_an_arm_brings_the_sites_alone_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {
        "new": of_sites(70, 80, 90),
        "old": of_sites(1, 1, 1),
        "alone": of_sites(10, 20, 40),
        "third": of_sites(9, 9, 9),
    }

    def compare(title: str, arms: list[Arm], seeds: list[int], **rest: object) -> Comparison:
        values = {arm.name: [figures[arm.name] for _ in seeds] for arm in arms}
        return Comparison(title, "new", tuple(seeds), tuple(arms), values, "motet claim toy")

    monkeypatch.setattr(base, "compare", compare)
    fair = Expectation("fair", "new", metric="fairness", every_least=98)
    made = claim(
        arms=lambda: [Arm(name, {}) for name in figures],
        expectations=(fair, Expectation("less", "old", metric="fairness", most=0)),
        alone={"new": "alone", "old": "third"},
    )
    result = run_claim(made, tmp_path, only=["new"])
    assert list(result.values) == ["new", "alone"]
    assert [item["text"] for item in result.expectations] == ["fair"]
    assert result.expectations[0]["holds"]
    whole = run_claim(made, tmp_path)
    assert [item["holds"] for item in whole.expectations] == [True, True]


def test_an_unknown_claim_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="creamfl"):
        claim_named("cream")
