from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

import motet.commands.run as command
from motet.core import StoreError
from motet.core.events import Event, read_events
from motet.experiment.runner import run
from motet.experiment.standing import size_of

Motet = Callable[..., Result]


def weights(folder: str) -> bytes:
    return Path(folder, "model.safetensors").read_bytes()


def stop_in_round(
    monkeypatch: pytest.MonkeyPatch, number: int, error: type[BaseException] | BaseException
) -> None:
    """Runs of the command are stopped at the start of this round."""

    def stopped(*args: object, **kwargs: object) -> object:
        def stop(event: Event) -> None:
            if event["event"] == "round" and event["round"] == number:
                raise error

        return run(*args, **{**kwargs, "listeners": [*kwargs["listeners"], stop]})  # type: ignore[arg-type,misc]

    monkeypatch.setattr(command, "run", stopped)


def test_a_recipe_runs_and_tells_metrics_and_report(motet: Motet, tiny: str) -> None:
    result = motet("run", tiny)
    assert result.exit_code == 0
    assert "report: runs/tiny-0/report.html" in result.stdout
    assert "rsum" in result.stdout
    assert "image-1" in result.stdout
    assert "round 1/2" in result.stderr
    assert "round 2/2" in result.stderr
    assert Path("runs/tiny-0/report.html").exists()
    preview = json.loads(Path("runs/tiny-0/preview.json").read_text())
    assert set(preview["sites"]) == {"image-1", "pair-1", "pair-2"}


def test_metrics_are_told_from_first_to_last(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[Event] = []
    for number, value in enumerate((20.0, 40.0, 30.0)):
        events.append({"event": "round", "round": number, "loop": 0, "of": 3})
        for party, scale in (("hub", 1.0), ("pair-1", 2.0)):
            metrics = {"i2t_r1": [1.0, 7], "rsum": [value * scale, 7]}
            event = {"event": "metric", "round": number, "party": party, "point": "x"}
            events.append({**event, "metrics": metrics})
    command.print_metrics(events)
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["rsum", "20.0", "40.0", "30.0", "7"] in told
    assert ["i2t_r1", "1.0", "1.0", "1.0", "7"] in told
    assert ["pair-1", "rsum", "40.0", "80.0", "60.0", "7"] in told
    assert ["pair-1", "i2t_r1", "1.0", "1.0", "1.0", "7"] not in told


def test_quiet_prints_the_report_alone(motet: Motet, tiny: str) -> None:
    result = motet("run", tiny, "--quiet", "--seed", 4)
    assert result.stdout == "report: runs/tiny-4/report.html\n"
    assert result.stderr == ""


def test_settings_and_seed_reach_the_recipe(motet: Motet, tiny: str) -> None:
    motet("run", tiny, "-q", "--set", "method.rounds=1", "--set", "method.private.epochs=0")
    saved = Path("runs/tiny-0/recipe.yaml").read_text()
    assert "rounds: 1" in saved
    assert [e["of"] for e in read_events(Path("runs/tiny-0/events.jsonl")) if e["event"] == "round"]


def test_a_method_takes_the_place_of_the_recipes_own(motet: Motet, tiny: str) -> None:
    result = motet("run", tiny, "--set", "method=server-only", "--set", "method.server.epochs=0")
    assert result.exit_code == 0
    saved = Path("runs/tiny-0/recipe.yaml").read_text()
    assert "name: server-only" in saved
    assert "rounds: 2" in saved, "a hyper-parameter that both have was lost"


def test_another_recipe_of_the_same_name_gets_a_folder_of_its_own(motet: Motet, tiny: str) -> None:
    motet("run", tiny, "-q", "--set", "method.rounds=1")
    result = motet("run", tiny, "-q")
    assert result.stdout == "report: runs/tiny-0-2/report.html\n"


def test_a_finished_run_is_not_run_again(motet: Motet, tiny: str) -> None:
    motet("run", tiny, "-q")
    before = Path("runs/tiny-0/events.jsonl").read_bytes()
    result = motet("run", tiny)
    assert "finished" in result.stderr
    assert "rsum" in result.stdout
    assert Path("runs/tiny-0/events.jsonl").read_bytes() == before


def test_a_run_that_was_killed_before_its_last_file_is_completed(motet: Motet, tiny: str) -> None:
    motet("run", tiny, "-q")
    whole = weights("runs/tiny-0")
    os.remove("runs/tiny-0/model.safetensors")
    motet("run", tiny, "-q")
    assert weights("runs/tiny-0") == whole


@pytest.mark.parametrize("words", [("resume", "runs/tiny-0"), ("run", "tiny.yaml")])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    motet: Motet, tiny: str, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    motet("run", tiny, "-q", "--out", "whole")
    stop_in_round(monkeypatch, 1, KeyboardInterrupt)
    result = motet("run", tiny)
    assert result.exit_code == 1
    assert "motet resume runs/tiny-0" in result.stderr
    assert "Traceback" not in result.output
    monkeypatch.setattr(command, "run", run)
    result = motet(*words)
    assert result.exit_code == 0
    assert "going on" in result.stderr
    assert "round 1/2" not in result.stderr, "the first round was run again"
    events = read_events(Path("whole/events.jsonl"))
    frames = [e[way]["frame"] for e in events if e["event"] == "replied" for way in ("down", "up")]
    assert size_of(sum(frames)) in result.stderr, "bytes of the first part were forgotten"
    assert weights("runs/tiny-0") == weights("whole")


def test_an_interruption_before_anything_was_saved(
    motet: Motet, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "build_parties", stopped)
    result = motet("run", tiny)
    assert result.exit_code == 1
    assert "the same command starts again" in result.stderr
    assert not Path("runs").exists()


def test_an_error_that_is_nobodys_mistake_leaves_with_1_and_says_how_to_go_on(
    motet: Motet, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_round(monkeypatch, 1, StoreError("the disk is full"))
    result = motet("run", tiny)
    assert result.exit_code == 1
    assert "motet: the disk is full\n" in result.stderr
    assert "motet resume runs/tiny-0" in result.stderr


def test_a_bug_keeps_its_traceback(
    motet: Motet, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_round(monkeypatch, 1, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        motet("run", tiny)


def test_a_folder_of_another_recipe_is_refused_and_left_alone(motet: Motet, tiny: str) -> None:
    motet("run", tiny, "-q", "--out", "mine")
    before = {path: path.stat().st_mtime_ns for path in Path("mine").rglob("*")}
    result = motet("run", tiny, "--out", "mine", "--set", "method.rounds=3")
    assert result.exit_code == 2
    assert result.stderr.startswith("motet: mine holds a run of another recipe")
    assert {path: path.stat().st_mtime_ns for path in Path("mine").rglob("*")} == before


def test_a_folder_that_is_no_run_is_refused_and_left_alone(motet: Motet, tiny: str) -> None:
    Path("full").mkdir()
    Path("full/letter.txt").write_text("dear")
    result = motet("run", tiny, "--out", "full")
    assert result.exit_code == 2
    assert "full is not empty" in result.stderr
    assert [path.name for path in Path("full").iterdir()] == ["letter.txt"]


def test_a_folder_that_cannot_be_made(motet: Motet, tiny: str) -> None:
    result = motet("run", tiny, "--out", "tiny.yaml/run")
    assert result.exit_code == 1
    assert result.stderr.startswith("motet: cannot write tiny.yaml/run")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "method.roundz=3"], "method.roundz: there is no such field; did you mean"),
        (["--set", "method.rounds=many"], "method.rounds = 'many': write a whole number"),
        (["--set", "method.rounds=0"], "method.rounds = 0: write at least 1"),
        (["--set", "method.private.lr=-1"], "method.private.lr = -1: write a value above 0"),
        (["--set", "method=creamfll"], "there is no method 'creamfll'"),
        (["--set", "rounds"], "--set 'rounds': write field=value"),
        (["--set", "method.rounds=[1"], "'[1' is not a YAML value"),
        (["--set", "populations.9.count=2"], "there is no entry '9'"),
        (["--set", "data.name=emojo"], "there is no data set 'emojo'"),
        (["--set", "data.options.siez=3"], "siez: there is no such option"),
        (["--set", "data.options.path=nowhere"], "nowhere does not exist"),
        (["--set", "data.public=1"], "public set of at least 2 rows"),
        (["--set", "data.test=1000"], "1000"),
        (["--set", "server.image.name=hog"], "there is no encoder 'hog'"),
        (["--seed", "-1"], "seed = -1: write at least 0"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(
    motet: Motet, tiny: str, words: list[str], told: str
) -> None:
    result = motet("run", tiny, *words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("motet: ")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert os.listdir() == [tiny]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("method: {name: modal-fedmd, roundz: 2}\npopulations: []", "wrong.yaml: method.roundz"),
        ("method: [\n", "wrong.yaml, line"),
        ("- modal-fedmd", "wrong.yaml must hold fields"),
        ("method: modal-fedmd", "wrong.yaml: populations: is missing"),
    ],
)
def test_a_damaged_recipe_is_named(motet: Motet, text: str, told: str) -> None:
    Path("wrong.yaml").write_text(text)
    result = motet("run", "wrong.yaml")
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_is_not_there_is_named_with_what_is(motet: Motet) -> None:
    assert "there is no recipe missing.yaml" in motet("run", "missing.yaml").stderr
    result = motet("run", "creamflx")
    assert result.exit_code == 2
    assert "did you mean 'creamfl'?" in result.stderr
    assert motet("resume", "nowhere").stderr.startswith("motet: there is no run in nowhere")
    assert motet("report", "nowhere").stderr.startswith("motet: there is no run in nowhere")
    assert motet("report").stderr.startswith("motet: there is no run in runs")
    assert os.listdir() == []


def test_the_report_of_the_newest_run_is_written_anew(motet: Motet, tiny: str) -> None:
    motet("run", tiny, "-q")
    motet("run", tiny, "-q", "--seed", 1)
    os.remove("runs/tiny-0/report.html")
    os.utime("runs/tiny-0/events.jsonl")
    os.utime("runs/tiny-1/events.jsonl", (1, 1))
    result = motet("report")
    assert result.stdout == "report: runs/tiny-0/report.html\n"
    assert Path("runs/tiny-0/report.html").exists()


def test_a_report_is_opened_on_request(
    motet: Motet, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def no_browser(address: str) -> bool:
        opened.append(address)
        return False

    monkeypatch.setattr("webbrowser.open", no_browser)
    motet("run", tiny, "-q")
    result = motet("report", "runs/tiny-0", "--open")
    assert opened == [Path("runs/tiny-0/report.html").resolve().as_uri()]
    assert "no browser" in result.stderr
