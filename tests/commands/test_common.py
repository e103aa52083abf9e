from __future__ import annotations

from pathlib import Path

import pytest

from motet.commands import common
from motet.core import ConfigError


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("1", (1,)), ("1,2,3", (1, 2, 3)), ("5-7, 1", (5, 6, 7, 1)), ("2,2,1-2", (2, 1)), ("0", (0,))],
)
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert common.seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "1-", "1.5", "3-1"])
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        common.seeds_of(text)


def test_what_is_printed_is_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold]a[/bold] :smile: [/nothing] " + "long " * 60
    common.result(text)
    common.say(text)
    told = capsys.readouterr()
    assert told.out == told.err == text + "\n"


def test_a_pipe_has_room_for_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert common.out().width == common.PIPED_WIDTH
    monkeypatch.setenv("COLUMNS", "66")
    assert common.out().width == 66


def test_a_file_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []

    def browse(address: str) -> bool:
        opened.append(address)
        return True

    monkeypatch.setattr("webbrowser.open", browse)
    common.show_file(tmp_path / "a b.html")
    assert opened == [(tmp_path / "a b.html").resolve().as_uri()]
