from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import motet
from motet.cli import app
from motet.core import ConfigError, DataError, SiteError, StoreError

GROUP = typer.main.get_group(app)
COMMANDS = sorted(GROUP.commands)
DEPLOYING = sorted(getattr(GROUP.commands["deploy"], "commands", ()))


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['motet', '--help']\n"
        "from motet.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    result = python("-c", script)
    listed = result.stdout.partition("Commands:")[2].split()
    assert len(COMMANDS) == 16
    assert DEPLOYING == ["check", "flower", "nvflare"]
    assert set(COMMANDS) <= set(listed)
    heavy = {"torch", "numpy", "pydantic", "matplotlib", "rich.table", "motet.core"}
    assert not heavy & set(result.stderr.split())


def test_what_there_is_is_listed_without_importing_it() -> None:
    script = (
        "import sys; sys.argv = ['motet', 'list']\n"
        "from motet.cli import main\n"
        "try: main()\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    result = python("-c", script)
    assert "creamfl" in result.stdout
    heavy = {"torch", "numpy", "matplotlib", "pyarrow", "PIL", "motet.methods.creamfl"}
    assert not heavy & set(result.stderr.split())


def test_the_package_runs_as_a_module() -> None:
    result = python("-m", "motet", "--version")
    assert result.returncode == 0
    assert result.stdout == f"{motet.__version__}\n"


@pytest.mark.parametrize("command", [*COMMANDS, *(f"deploy {name}" for name in DEPLOYING)])
def test_every_command_says_what_it_does(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    text = result.stdout.split("\n\n")[1].strip()
    assert text.endswith(".")
    assert "..." not in text


def test_without_a_command_the_help_is_shown() -> None:
    result = CliRunner().invoke(app, [])
    assert "Commands:" in result.output


@pytest.mark.parametrize(
    "words", [["run"], ["runn"], ["run", "creamfl", "--seed", "x"], ["list", "foo"], ["show"]]
)
def test_a_command_that_is_typed_wrongly_leaves_with_2(words: list[str]) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError, 2), (DataError, 2), (StoreError, 1), (SiteError, 1)]
)
def test_errors_of_ours_are_one_red_line_and_their_code_says_whose_mistake(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], code: int
) -> None:
    def fail(name: str) -> None:
        raise error(f"no {name}\n  to be had")

    monkeypatch.setattr("motet.commands.show.show", fail)
    result = CliRunner().invoke(app, ["show", "luck"], color=True)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == typer.style("motet: no luck to be had", fg="red") + "\n"


def test_an_error_that_is_not_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise LookupError(name)

    monkeypatch.setattr("motet.commands.show.show", fail)
    result = CliRunner().invoke(app, ["show", "luck"])
    assert isinstance(result.exception, LookupError)


def test_pages_go_where_they_are_wanted(tmp_path: object) -> None:
    result = CliRunner().invoke(app, ["docs", str(tmp_path)])
    assert result.exit_code == 0
    assert f"{tmp_path}/methods/creamfl.md" in result.stdout.splitlines()
