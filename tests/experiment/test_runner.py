"""Runs in folders: whole, refused, resumed, and the same bits every time."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.methods import tiny

from motet.core import ConfigError, SiteError, StoreError, read_events
from motet.experiment import build, runner
from motet.experiment.runner import environment, resume, run


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "load_data", lambda name, **options: tiny.pairs())


def test_a_run_leaves_a_whole_folder(tmp_path: Path) -> None:
    made = tiny.experiment("seed=3")
    result = run(made, folder=tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"recipe.yaml", "environment.json", "events.jsonl", "metrics.csv"} <= names
    assert {"model.safetensors", "gallery.json", "checkpoint.json"} <= names
    assert yaml.safe_load((tmp_path / "run/recipe.yaml").read_text()) == made.plain()
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = [row for row in rows if row["party"] == "hub" and row["metric"] == "rsum"][-1]
    assert float(last["value"]) == result.last("rsum")
    assert (last["round"], last["n"]) == ("1", "16")
    finished = read_events(tmp_path / "run/events.jsonl")[-1]
    assert finished["hash"] == result.hash


def test_in_memory_and_in_a_folder_are_the_same_bits(tmp_path: Path) -> None:
    made = tiny.experiment()
    assert run(made).hash == run(made, folder=tmp_path / "run").hash == run(made).hash


def test_strict_mode_changes_neither_bits_nor_bytes() -> None:
    plain, strict = run(tiny.experiment()), run(tiny.experiment("engine.strict=true"))
    assert plain.hash == strict.hash

    def sizes(events: list[dict[str, Any]]) -> list[Any]:
        return [(e["site"], e["down"], e["up"]) for e in events if e["event"] == "replied"]

    assert sizes(plain.events) == sizes(strict.events)


def _die_at(number: int, folder: Path) -> None:
    seen = [0]

    def count(event: dict[str, Any]) -> None:
        seen[0] += 1
        if seen[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    build.load_data = lambda name, **options: tiny.pairs()
    run(tiny.experiment(), folder=folder, listeners=[count])


@pytest.mark.parametrize("number", [2, 5, 11, 19, 26])
def test_kill_and_resume_gives_the_same_bits(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "run"
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_die_at, args=(number, folder))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    result = resume(folder)
    whole = run(tiny.experiment(), folder=tmp_path / "whole")
    assert result.hash == whole.hash
    assert (folder / "metrics.csv").read_bytes() == (tmp_path / "whole/metrics.csv").read_bytes()


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first = run(tiny.experiment(), folder=tmp_path / "run")
    again = resume(tmp_path / "run")
    assert again.hash == first.hash
    assert again.last("rsum") == first.last("rsum")


def test_a_folder_of_another_recipe_is_refused_and_left_alone(tmp_path: Path) -> None:
    run(tiny.experiment("seed=1"), folder=tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(ConfigError, match="another recipe"):
        run(tiny.experiment("seed=2"), folder=tmp_path / "run")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match="not empty"):
        run(tiny.experiment(), folder=tmp_path)


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="public"):
        run(tiny.experiment("data.public=1"), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_kill_before_the_recipe_stands_does_not_spoil_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "environment.json").write_text("{}")
    (folder / ".recipe.yaml.7.part").write_text("half")
    assert run(tiny.experiment(), folder=folder).hash


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    import fcntl

    run(tiny.experiment(), folder=tmp_path / "run")
    with (tmp_path / "run/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process"):
            resume(tmp_path / "run")
    assert resume(tmp_path / "run").hash


def test_resuming_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        resume(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path: Path) -> None:
    bad = tiny.experiment("method.private.lr=1e30", "method.private.clip=null")
    with pytest.raises(SiteError, match=r"(image|pair|text)-\d.*lower the learning rate"):
        run(bad, folder=tmp_path / "run")
    stopped = read_events(tmp_path / "run/events.jsonl")[-1]
    assert stopped["event"] == "stopped"
    assert "lower the learning rate" in stopped["error"]


def test_a_full_disk_stops_the_run_and_it_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny.experiment())
    replace, calls = Path.replace, [0]

    def full(self: Path, target: Path) -> Path:
        calls[0] += 1
        if calls[0] == 7:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match="No space left"):
        run(tiny.experiment(), folder=tmp_path / "run")
    monkeypatch.setattr(Path, "replace", replace)
    assert not list((tmp_path / "run").rglob("*.part"))
    assert resume(tmp_path / "run").hash == whole.hash


def test_threads_are_put_back() -> None:
    import torch

    before = torch.get_num_threads()
    run(tiny.experiment("engine.threads=2"))
    assert torch.get_num_threads() == before


def test_the_environment_names_what_bits_depend_on() -> None:
    assert {"python", "machine", "motet", "torch", "numpy"} <= set(environment())
    assert runner.RECIPE == "recipe.yaml"
