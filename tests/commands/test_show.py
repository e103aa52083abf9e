from __future__ import annotations

from collections.abc import Callable

import pytest
from typer.testing import Result

from motet.data import list_data
from motet.experiment.recipes import recipe_paths
from motet.methods.registry import METHODS, method_class
from motet.models import list_encoders

Motet = Callable[..., Result]


def test_all_is_listed(motet: Motet) -> None:
    result = motet("list")
    assert result.exit_code == 0
    names = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    everything = [*METHODS, *recipe_paths()]
    everything += [data.name for data in list_data()]
    everything += [encoder.name for encoder in list_encoders()]
    assert set(everything) <= set(names)
    for title in ("Methods", "Data", "Models", "Recipes", "Claims"):
        assert title in names


def test_methods_are_listed_with_what_travels(motet: Motet) -> None:
    result = motet("list", "methods")
    assert "Models" not in result.stdout
    told = " ".join(result.stdout.split())
    assert "own modalities. Heads stay." in told
    assert "what travels" in told


def test_claims_are_listed(motet: Motet) -> None:
    assert "creamfl" in motet("list", "claims").stdout


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_shown_whole(motet: Motet, name: str) -> None:
    result = motet("show", name)
    assert result.exit_code == 0
    told = " ".join(result.stdout.split())
    about = method_class(name).about()
    for part in ("paper", "travels", "use"):
        assert about[part] in told
    assert f"src/{method_class(name).__module__.replace('.', '/')}.py" in told
    rounds = method_class(name).model_fields["rounds"].default
    assert f"rounds {rounds} int >= 1" in told


def test_nested_hyper_parameters_are_shown_with_default_and_bounds(motet: Motet) -> None:
    told = " ".join(motet("show", "creamfl").stdout.split())
    assert "server.lr 0.0002 float > 0 Adam learning rate" in told
    assert "distil.clip null float or null > 0" in told
    assert "aggregation gca one of gca, mean, size" in told
    assert "Claim: " in told
    assert "distil.weight 0.25" in " ".join(motet("show", "fedgems").stdout.split())


def test_data_encoders_and_recipes_are_shown(motet: Motet) -> None:
    told = " ".join(motet("show", "emoji").stdout.split())
    assert "size 64 int edge of the pictures in pixels" in told
    told = " ".join(motet("show", "folder").stdout.split())
    assert "path – Path folder of the pictures" in told
    told = " ".join(motet("show", "resnet-gn").stdout.split())
    assert "depth 8 one of 8, 14, 18, 20" in told
    told = motet("show", "creamfl-emoji").stdout
    assert recipe_paths()["creamfl-emoji"].read_text() in told


def test_an_unknown_name_is_answered_with_a_similar_one(motet: Motet) -> None:
    result = motet("show", "resnet")
    assert result.exit_code == 2
    assert "did you mean 'resnet-gn'?" in result.stderr
