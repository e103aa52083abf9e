"""The pieces of GIFD's claim: who has seen which pictures, what is counted and judged."""

from __future__ import annotations

import io
from datetime import date
from pathlib import Path

import pytest
import torch
from PIL import Image

from motet.audit.generators import GeneratorSpec
from motet.claims import gifd
from motet.claims.base import Expectation, markdown
from motet.claims.gifd import CASES, CLAIM, case_of, digits16, figure, measure, uploads_of
from motet.experiment.compare import Arm, Comparison


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTET_CACHE", str(tmp_path))
    monkeypatch.setattr(gifd, "SPEC", GeneratorSpec(maps=(4, 4, 4), epochs=1, batch=256))
    monkeypatch.setattr(gifd, "PICTURES", 1)
    made = gifd.case_of
    monkeypatch.setattr(gifd, "case_of", lambda name, seed, count=1: made(name, seed, 1))


@pytest.mark.parametrize("name", CASES)
def test_attacked_pictures_are_unseen_and_drawn_by_the_seed(name: str) -> None:
    pictures, labels = digits16()
    assert pictures.shape == (1797, 1, 16, 16)
    case = case_of(name, 1)
    assert case.pictures.shape == (6, 1, 16, 16)
    assert not torch.equal(case.pictures, case_of(name, 2).pictures)
    assert torch.equal(case.pictures, case_of(name, 1).pictures)
    later = pictures[1200:].flatten(1)
    assert all(bool((later == row).all(dim=1).any()) for row in case.pictures.flatten(1))
    if name == "other classes":
        assert bool((case.labels >= 5).all())
        assert len(case.public) == int((labels[:1200] < 5).sum())
    else:
        assert torch.equal(case.public, pictures[:1200])


def test_uploads_are_of_one_picture_and_one_model() -> None:
    case = case_of("pruned", 1)
    plain, pruned = uploads_of(case, "none", 1), uploads_of(case, "pruned", 1)
    assert [upload.batch for upload in pruned] == [1] * 6
    name = "layers.7.weight"
    first, second = plain[0].model.state_dict(), plain[5].model.state_dict()
    assert torch.equal(first[name], second[name])
    assert float((pruned[0].gradients[name] == 0).float().mean()) == pytest.approx(0.9, abs=0.01)
    other = uploads_of(case, "none", 2)[0].model.state_dict()
    assert not torch.equal(first[name], other[name])


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("arm", [arm.name for arm in CLAIM.arms()])
def test_every_arm_gives_the_claims_figures_within_its_budget(arm: str) -> None:
    values = {made.name: made.values for made in CLAIM.arms()}[arm]
    budget = min(values["budget"], 3)
    found = measure({**values, "budget": budget, "seed": 1})
    for name in CASES:
        assert 0 < found[f"PSNR {name}"] < 100
        if budget:
            assert found[f"gradients {name}"] == 3
            assert f"SSIM {name}" in found


@pytest.mark.usefixtures("quick")
def test_the_figure_is_a_small_png(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [Arm(arm.name, {**arm.values, "budget": 3}) for arm in CLAIM.arms()]
    monkeypatch.setattr(gifd, "arms", lambda: made)
    content = figure(1, count=2, scale=2)
    assert Image.open(io.BytesIO(content)).size == (36, 144)


def test_what_one_case_has_above_another_is_judged_by_seed() -> None:
    values = {
        "a": [{"in": 5.0, "out": 9.0}, {"in": 6.0, "out": 8.0}],
        "b": [{"in": 3.0, "out": 4.0}, {"in": 3.0, "out": 5.5}],
    }
    arms = (Arm("a", {}), Arm("b", {}))
    comparison = Comparison("", "a", (1, 2), arms, values)
    # out: 5 and 2.5, in: 2 and 3.
    judged = Expectation("", "a", "b", "out", less="in", every=True).judge(comparison)
    assert judged["figure"].startswith("+1.2")
    assert not judged["holds"]
    assert Expectation("", "a", "b", "out", less="in", least=1.25).judge(comparison)["holds"]


def test_the_page_shows_the_figure() -> None:
    values = {arm.name: [dict.fromkeys(CLAIM.metrics, 1.0)] for arm in CLAIM.arms()}
    comparison = Comparison("t", "gifd", (3,), tuple(CLAIM.arms()), values, "motet claim gifd")
    page = markdown(CLAIM, comparison, {"torch": "2"}, date(2026, 1, 2))
    assert "![seed 3](gifd.png)" in page
    assert "PSNR other classes" in page
