from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

import motet.commands.compare as command
from motet.commands.compare import arms_of, usual_metrics
from motet.core import ConfigError
from motet.experiment.compare import Arm, Comparison
from motet.experiment.spec import read_recipe, with_settings

Motet = Callable[..., Result]
ONE = ("--seeds", "1", "--jobs", "1")


def comparison(**values: list[dict[str, float]]) -> Comparison:
    arms = tuple(Arm(name, {}) for name in values)
    seeds = tuple(range(len(next(iter(values.values())))))
    return Comparison("Some", arms[0].name, seeds, arms, values)


def test_arms_are_compared_and_told(motet: Motet, tiny: str) -> None:
    arm = "none:method.private.epochs=0"
    result = motet("compare", tiny, "--arm", arm, "--set", "method.rounds=1", *ONE)
    assert result.exit_code == 0
    assert "1/2  tiny  seed 1" in result.stderr
    assert "rsum above tiny" in result.stdout
    assert "report: runs/compare-tiny/report.html" in result.stdout
    told = json.loads(Path("runs/compare-tiny/comparison.json").read_text())
    assert list(told["arms"]) == ["tiny", "none"]
    assert told["reference"] == "tiny"
    assert told["command"] == (
        f"motet compare tiny.yaml --arm {arm} --set method.rounds=1 --seeds 1"
    )


def test_results_that_are_there_are_not_computed_again(motet: Motet, tiny: str) -> None:
    motet("compare", tiny, *ONE, "--out", "there")
    result = motet("compare", tiny, *ONE, "--out", "there", "--metric", "cat@10")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert list(json.loads(Path("there/comparison.json").read_text())["metrics"]) == ["cat@10"]


def test_the_report_of_a_comparison_is_written_anew(motet: Motet, tiny: str) -> None:
    motet("compare", tiny, *ONE, "--out", "there")
    page = Path("there/report.html").read_bytes()
    Path("there/report.html").unlink()
    assert motet("report", "there").stdout == "report: there/report.html\n"
    assert Path("there/report.html").read_bytes() == page


def test_an_arm_has_the_change_and_the_others_do_not(motet: Motet, tiny: str) -> None:
    arms = arms_of(
        [tiny],
        ["a:method.rounds=1", "a:data.public=5", "b:method=server-only"],
        ["data.test=7"],
    )
    base = with_settings(read_recipe(Path(tiny)), ["data.test=7"])
    assert [arm.name for arm in arms] == ["tiny", "a", "b"]
    assert arms[0].values == base
    assert arms[1].values == with_settings(base, ["method.rounds=1", "data.public=5"])
    assert arms[1].title == "method.rounds=1, data.public=5"
    assert arms[2].values["method"]["name"] == "server-only"
    assert arms[2].values["method"]["rounds"] == 2


@pytest.mark.parametrize(
    ("arms", "told"),
    [
        (["x"], "--arm 'x': write NAME:FIELD=VALUE"),
        (["x:rounds"], "write NAME:FIELD=VALUE"),
        (["a/b:method.rounds=1"], "write NAME:FIELD=VALUE"),
        (["tiny:method.rounds=1"], "--arm tiny: there is an arm of this name"),
        (["x:method.roundz=1"], "arm x: tiny.yaml: method.roundz: there is no such field"),
    ],
)
def test_wrong_arms_are_refused_before_any_runs(
    motet: Motet, tiny: str, arms: list[str], told: str
) -> None:
    words = [word for arm in arms for word in ("--arm", arm)]
    result = motet("compare", tiny, *words, *ONE)
    assert result.exit_code == 2
    assert told in result.stderr
    assert not Path("runs").exists()


def test_one_recipe_twice_is_refused(motet: Motet, tiny: str) -> None:
    with pytest.raises(ConfigError, match="two arms are named alike"):
        arms_of([tiny, tiny], [], [])


def test_an_interrupted_comparison_says_what_is_kept(
    motet: Motet, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: object, **kwargs: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "compare", stopped)
    result = motet("compare", tiny, *ONE)
    assert result.exit_code == 1
    assert "`motet compare tiny.yaml ...` goes on" in result.stderr


def test_the_chief_metrics_of_server_and_populations_are_shown() -> None:
    values = {"i2t_r1": 1.0, "rsum": 2.0, "best rsum": 3.0, "accuracy": 4.0}
    values |= {"a-1/rsum": 5.0, "a sites' cat@10": 6.0, "a sites' rsum": 6.0, "MB up": 7.0}
    chosen = usual_metrics(comparison(one=[{**values, "MB down": 1.0}]))
    assert chosen == ["rsum", "accuracy", "a sites' rsum", "MB down", "MB up"]
    sites_only = usual_metrics(comparison(one=[{"a sites' accuracy": 6.0, "MB up": 7.0}]))
    assert sites_only[0] == "a sites' accuracy"


def test_a_table_has_mean_spread_and_paired_difference() -> None:
    told = comparison(
        base=[{"rsum": 10.0, "MB up": 1.0}, {"rsum": 20.0, "MB up": 1.0}],
        arm=[{"rsum": 13.0, "MB up": 2.0}, {"rsum": 21.0, "MB up": 2.0}],
        silent=[{"MB up": 0.0}, {"MB up": 0.0}],
    )
    table = command.arms_table(told, ["rsum", "MB up"])
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["base", "arm", "silent"]
    assert columns[1] == ["15.0 ± 7.1", "17.0 ± 5.7", "–"]
    assert columns[2] == ["1.0", "2.0", "0.0"]
    assert columns[3] == ["–", "+2.0 ± 1.4", "–"]


def test_the_demo_is_told_and_opened(motet: Motet, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    asked: list[object] = []

    def run_demo(folder: Path, **options: object) -> Path:
        asked.extend([folder, options["jobs"]])
        return folder / "run" / "report.html"

    monkeypatch.setattr("motet.claims.demo.run_demo", run_demo)
    monkeypatch.setattr(command, "show_file", opened.append)
    result = motet("demo", "--jobs", "2", "--open")
    assert result.stdout == "report: runs/demo/run/report.html\n"
    assert asked == [Path("runs/demo"), 2]
    assert opened == [Path("runs/demo/run/report.html")]
