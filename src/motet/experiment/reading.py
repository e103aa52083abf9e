"""Recipes and site files as plain values, read without what it takes to check or run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from motet.core.errors import ConfigError


def read_recipe(path: Path) -> dict[str, Any]:
    """The plain values of a YAML recipe; raises ConfigError naming file and line."""
    return read_fields(path, "recipe", "method and populations")


def read_fields(path: Path, kind: str, such: str) -> dict[str, Any]:
    """The plain values of a YAML file of this kind, which must be fields ``such`` as those named.

    Raises ConfigError naming file and line.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no {kind} {path}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line} is not YAML: {error.problem}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold fields such as {such}")
    return values
