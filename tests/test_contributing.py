"""CONTRIBUTING's method works as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.methods import tiny

from motet.experiment.runner import run
from motet.methods import registry

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"


def test_the_example_method_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module = ModuleType("motet.methods.public_mean")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(registry.METHODS, "public-mean", "motet.methods.public_mean:PublicMean")
    registry.method_class.cache_clear()
    made = tiny.experiment(
        method={
            "name": "public-mean",
            "rounds": 2,
            "server": tiny.TASK,
            "private": tiny.PRIVATE,
            "distil": tiny.DISTIL,
        }
    )
    result = run(made, parties=tiny.parties(made, monkeypatch))
    registry.method_class.cache_clear()
    assert result.last("rsum") > 0
    sent = [event["up"] for event in result.events if event.get("op") == "train"]
    assert all(set(up) == {"frame", "representations"} for up in sent)


def test_the_row_of_the_registry_is_the_one_shown() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert '"public-mean": "motet.methods.public_mean:PublicMean",' in text
