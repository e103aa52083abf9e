"""What a user may name to be run: a recipe file, a recipe that comes with Motet, a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from motet.core.errors import ConfigError
from motet.core.kinds import Kind
from motet.experiment.explain import nearest
from motet.experiment.recipes import recipe_paths, shipped_recipe
from motet.experiment.runner import RECIPE
from motet.experiment.spec import Experiment, parse_experiment, read_recipe, with_settings
from motet.methods.registry import method_class, method_names


@dataclass(frozen=True)
class Target:
    """The plain values of a recipe, a name for its runs, and the file to blame for errors."""

    name: str
    values: Mapping[str, Any]
    where: str = ""

    def changed(self, settings: Sequence[str] = (), seed: int | None = None) -> Target:
        """The same with "a.b=c" settings and another seed; raises ConfigError for a bad setting.

        "method=NAME" swaps the method and keeps the hyper-parameters that both have.
        """
        values = dict(self.values)
        for setting in settings:
            field, _, text = setting.partition("=")
            if field.strip() == "method" and text.strip() in method_names():
                values = swap_method(values, text.strip())
            else:
                values = with_settings(values, [setting])
        if seed is not None:
            values["seed"] = seed
        return replace(self, values=values)

    def experiment(self) -> Experiment:
        """The checked experiment; raises ConfigError that names file and field."""
        return parse_experiment(self.values, self.where)


def find_target(name: str) -> Target:
    """What this names, in this order: a file, a recipe of Motet's, a method.

    Raises ConfigError that says what there is.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return Target(path.stem, read_recipe(path), name)
    if name in recipe_paths():
        return Target(name, shipped_recipe(name))
    if name in method_names():
        return Target(name, standard_recipe(name))
    recipes, methods = list(recipe_paths()), method_names()
    raise ConfigError(
        f"there is no recipe or method {name!r}; write a file that ends in .yaml, a recipe "
        f"({', '.join(recipes)}) or a method ({', '.join(methods)})"
        f"{nearest(name, [*recipes, *methods])}"
    )


def load_experiment(
    name: str | Path, settings: Sequence[str] = (), seed: int | None = None
) -> Experiment:
    """The experiment of a recipe file, of a recipe of Motet's or of a method.

    settings: changes such as "method.rounds=4". Raises ConfigError.
    """
    return find_target(str(name)).changed(settings, seed).experiment()


def standard_recipe(method: str) -> dict[str, Any]:
    """The setting that this method names, with the method in it."""
    return swap_method(shipped_recipe(method_class(method).setting), method)


def swap_method(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same recipe with another method, given the hyper-parameters that both have by name.

    A method that sends weights can only work among equals: all its sites get the server's
    encoders.
    """
    found = method_class(name)
    given = values.get("method")
    old = given if isinstance(given, Mapping) else {"name": given}
    if old.get("name") == name:
        return dict(values)
    kept = {field: old[field] for field in found.model_fields if field in old}
    title = str(values.get("title") or "")
    was = _title(old.get("name"))
    swapped = {
        **values,
        "title": title.replace(was, found.__name__) if was else title,
        "method": {"name": name, **kept},
    }
    sent = {kind for operation in found.operations().values() for kind in operation.sends.values()}
    return equal_models(swapped) if Kind.WEIGHTS in sent else swapped


def _title(name: object) -> str:
    return method_class(name).__name__ if isinstance(name, str) and name in method_names() else ""


def equal_models(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same recipe whose sites all have the server's encoders of their modalities."""
    server, populations = values.get("server"), values.get("populations")
    if not isinstance(server, Mapping) or not isinstance(populations, list):
        return dict(values)
    shared = {key: server[key] for key in ("width",) if key in server}
    changed = []
    for population in populations:
        wanted = population.get("modalities", ()) if isinstance(population, Mapping) else ()
        if wanted and all(name in server for name in wanted):
            model = {**shared, **{name: server[name] for name in wanted}}
            population = {**population, "models": [model]}
        changed.append(population)
    return {**values, "populations": changed}


def same_recipe(folder: Path, experiment: Experiment) -> bool:
    """Whether this folder holds a run of exactly this experiment, finished or not."""
    try:
        return read_recipe(folder / RECIPE) == experiment.plain()
    except ConfigError:
        return False


def run_folder(name: str, experiment: Experiment, parent: Path = Path("runs")) -> Path:
    """Where a run goes by default: runs/NAME-SEED, with -2, -3 when another recipe is there.

    A folder that holds the same recipe is that run's own, to be taken up.
    """
    number = 1
    while True:
        ending = f"-{number}" if number > 1 else ""
        folder = parent / f"{name}-{experiment.seed}{ending}"
        free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        if free or same_recipe(folder, experiment):
            return folder
        number += 1
