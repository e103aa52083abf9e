from __future__ import annotations

import subprocess
import sys

import pytest

import motet
import motet.core
import motet.experiment.runner
import motet.experiment.targets


def test_importing_the_package_is_cheap() -> None:
    script = "import sys, motet; motet.__version__; dir(motet); print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not {"torch", "numpy", "pydantic", "motet.core"} & set(result.stdout.split())


def test_everything_named_is_there_and_nothing_twice() -> None:
    assert dir(motet) == sorted(set(motet.__all__))
    assert len(motet.__all__) <= 30
    for name in motet.__all__:
        assert getattr(motet, name) is not None


def test_names_are_the_things_themselves() -> None:
    assert motet.run is motet.experiment.runner.run
    assert motet.Method is motet.core.Method
    assert motet.recipe is motet.experiment.targets.load_experiment


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'ran'"):
        _ = motet.ran
