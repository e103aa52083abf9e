"""The comparison in a report."""

from __future__ import annotations

import re
from pathlib import Path

from tests.experiment.report.reports import (
    Page,
    arm,
    comparison,
    folder,
    report,
)

from motet.experiment.report import write_comparison
from motet.experiment.report.arms import arms_view


def test_arms_with_means_spreads_and_paired_differences() -> None:
    view = arms_view(comparison())
    groups = {group["title"]: group["rows"] for group in view["open"][0]["groups"]}
    assert list(groups) == ["Method", "Baselines", "Controls"]
    fedmd = groups["Baselines"][0]
    assert (fedmd["mean"], fedmd["sd"]) == ("92.0", "2.0")
    # 10, 12 and 2.
    assert (fedmd["gap"], fedmd["gap_sd"], fedmd["smallest"]) == ("+8.0", "5.3", "+2.0")
    scrambled = groups["Controls"][0]
    assert (scrambled["gap"], scrambled["smallest"]) == ("+9.7", "−1.0")
    assert groups["Method"][0]["reference"]
    assert view["open"][1]["missing"] == "FedMD, server only and scrambled"


def test_a_comparison_beside_a_run(tmp_path: Path) -> None:
    page = report(folder(tmp_path), comparison=comparison())
    assert "Does it help?" in page.headings()
    best = "Over 3 seeds, CreamFL reaches rsum 100.0 on average; the best baseline, FedMD, 92.0."
    assert best in page.text
    assert "4 arms on 3 seeds (5, 6 and 8)" in page.text
    assert "1 of 2 hold" in page.text
    assert "✓ holds above FedMD +8.0" in page.text
    assert "✗ does not hold above the scrambled +9.7" in page.text
    assert "motet claim creamfl" in page.text


def test_every_seed_is_a_dot_and_every_arm_a_mean(tmp_path: Path) -> None:
    page = report(folder(tmp_path), comparison=comparison(metrics=["rsum"]))
    strips = re.findall(r'<svg class="strip[^>]*role="img".*?</svg>', page.html)
    assert [strip.count("<circle") for strip in strips] == [3, 3, 3, 3]
    assert all('class="mean"' in strip for strip in strips)
    assert 'aria-label="FedMD: 90.0, 92.0 and 94.0"' in strips[1]


def test_a_comparison_alone(tmp_path: Path) -> None:
    page = Page(write_comparison(tmp_path / "new", comparison()))
    assert page.headings() == ["Does it help?"]
    assert "How to reproduce it" not in page.text


def test_a_comparison_of_one_seed_has_no_spread(tmp_path: Path) -> None:
    arms = {"creamfl": arm("method", "CreamFL", rsum=[3.0]), "b": arm("bound", "all", rsum=[4.5])}
    page = Page(write_comparison(tmp_path, comparison(arms=arms, seeds=[1], expectations=[])))
    assert "Over 1 seed, CreamFL reaches rsum 3.0." in page.text
    assert "all 4.50 −1.50" in page.text
    assert "± sd" not in page.text
    assert "smallest" not in page.text


def test_further_metrics_are_folded_away(tmp_path: Path) -> None:
    arms = {"creamfl": arm("method", "CreamFL", a=[1.0], b=[1.0], c=[2.0])}
    view = arms_view(comparison(arms=arms, metrics=["a", "b", "c", "none"], seeds=[1]))
    assert [block["metric"] for block in view["open"]] == ["a", "b"]
    assert [block["metric"] for block in view["folded"]] == ["c"]
