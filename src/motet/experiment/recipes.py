"""The recipes that come with Motet, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from motet.core.errors import ConfigError
from motet.experiment.reading import read_recipe

# Inside an installed package recipes lie beside the modules, in a checkout at its top.
_PLACES = (
    Path(__file__).parents[1] / "recipes",
    Path(__file__).parents[3] / "recipes",
)


def recipe_paths() -> dict[str, Path]:
    """Name -> file of every recipe that comes with Motet, sorted."""
    place = next((place for place in _PLACES if place.is_dir()), _PLACES[0])
    return {path.stem: path for path in sorted(place.glob("*.yaml"))}


def shipped_recipe(name: str) -> dict[str, Any]:
    """The plain values of one of Motet's recipes; ConfigError lists the names there are."""
    paths = recipe_paths()
    if name not in paths:
        raise ConfigError(f"there is no recipe {name!r}; write one of {', '.join(paths)}")
    return read_recipe(paths[name])
