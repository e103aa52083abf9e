"""The commands `motet claim` and `motet claims`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.commands.test_compare import Motet

from motet.claims import Claim, Expectation
from motet.commands import claims as command
from motet.experiment.compare import Arm
from motet.experiment.spec import read_recipe, with_settings

ONE = ["--seeds", "1", "--jobs", "1"]


@pytest.fixture
def claimed(motet: Motet, tiny: str, monkeypatch: pytest.MonkeyPatch) -> Motet:
    """A claim of which one thing holds and one, on other arms, does not."""
    base = with_settings(read_recipe(Path(tiny)), ["method.rounds=1"])
    changed = with_settings(base, ["method.private.epochs=0"])
    claim = Claim(
        name="small",
        title="Small",
        paper="Nobody.",
        arms=lambda: [Arm("base", base), Arm("same", base), Arm("other", changed)],
        reference="base",
        metrics=("rsum", "MB up"),
        expectations=(
            Expectation("base is same", "base", "same", "rsum", least=0, most=0),
            Expectation("other is far above", "other", "base", "rsum", least=1000),
        ),
        seeds=(5,),
        calibration=(0,),
        rates={"other": ("method.private.lr=0.1", "method.private.lr=0.2")},
    )
    monkeypatch.setattr(command, "claim_named", lambda name: claim)
    monkeypatch.setattr(command, "list_claims", lambda: ["small"])
    return motet


def test_a_claim_that_does_not_hold_leaves_with_1(claimed: Motet) -> None:
    result = claimed("claim", "small", "--jobs", "1", "--write", "pages")
    assert result.exit_code == 1
    assert "1 of 2 of what must come out did not" in result.stderr
    assert "NO" in result.stdout
    page = Path("pages/claims/small.md").read_text()
    assert "| base is same |" in page
    assert "Command: `motet claim small`" in page
    assert Path("runs/claim-small/report.html").exists()


def test_all_claims_are_run_and_written_on_one_page(claimed: Motet) -> None:
    result = claimed("claims", "--jobs", "1", "--write", "pages")
    assert result.exit_code == 1
    page = Path("pages/claims.md").read_text()
    assert "1 claims, 2 lines, of which 1 hold and 1 do not." in page
    assert (
        "| [small](claims/small.md) | base is same | +0.0 (sd 0.0, smallest +0.0) | yes |" in page
    )
    assert "| other is far above |" in page
    assert Path("pages/claims/small.md").exists()
    other = Path("pages/claims/small.md").read_text().replace("Seeds 5", "Seeds 7")
    Path("pages/claims/earlier.md").write_text(other)
    claimed("claim", "small", "--jobs", "1", "--write", "pages")
    page = Path("pages/claims.md").read_text()
    assert "2 claims, 4 lines, of which 2 hold and 2 do not." in page
    assert "| [earlier](claims/earlier.md) | base is same | +0.0" in page
    assert "| 7 | `motet claim small` | " in page
    assert "| 5 | `motet claim small` | " in page


def test_what_was_tried_on_the_calibration_seeds_is_shown(claimed: Motet) -> None:
    result = claimed("claim", "small", "--calibrate", "--jobs", "1")
    assert result.exit_code == 0
    for rate in ("0.1", "0.2"):
        assert f"other method.private.lr={rate}" in " ".join(result.stdout.split())


def test_a_claim_that_holds_leaves_with_0(claimed: Motet) -> None:
    result = claimed("claim", "small", "--only", "same", *ONE)
    assert result.exit_code == 0
    told = json.loads(Path("runs/claim-small/comparison.json").read_text())
    assert list(told["arms"]) == ["base", "same"]
    assert told["seeds"] == [1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seeds", "0"], "seeds [0] were used to choose"),
        (["--seeds", "a"], "--seeds 'a': write whole numbers"),
        (["--only", "none"], "has no arm 'none'"),
    ],
)
def test_a_claim_that_is_asked_wrongly(claimed: Motet, words: list[str], told: str) -> None:
    result = claimed("claim", "small", *words)
    assert result.exit_code == 2
    assert told in result.stderr


def test_an_unknown_claim_is_refused(motet: Motet) -> None:
    result = motet("claim", "nothing")
    assert result.exit_code == 2
    assert "there is no claim 'nothing'; write one of" in result.stderr
