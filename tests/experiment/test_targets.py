from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from motet.core import ConfigError
from motet.experiment.recipes import recipe_paths, shipped_recipe
from motet.experiment.spec import Experiment, method_name, parse_experiment
from motet.experiment.targets import (
    find_target,
    load_experiment,
    run_folder,
    same_recipe,
    standard_recipe,
    swap_method,
)
from motet.methods.registry import METHODS, method_class


def save(folder: Path, experiment: Experiment) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(experiment.plain()))
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_standard_recipe(name: str) -> None:
    values = standard_recipe(name)
    experiment = parse_experiment(values)
    assert method_name(experiment.method) == name
    base = shipped_recipe(method_class(name).setting)
    known = method_class(name).model_fields
    kept = {field: base["method"][field] for field in base["method"] if field in known}
    assert values["method"] == {"name": name, **kept}
    assert experiment.method.rounds == base["method"]["rounds"]  # type: ignore[attr-defined]
    first = method_class(base["method"]["name"]).__name__
    assert experiment.title == base["title"].replace(first, method_class(name).__name__)


def test_methods_that_send_weights_get_equal_models_and_others_keep_theirs() -> None:
    base = shipped_recipe("creamfl-emoji")
    server = base["server"]
    values = standard_recipe("modal-fedavg")
    assert [population["models"] for population in values["populations"]] == [
        [{"width": 64, "image": server["image"]}],
        [{"width": 64, "text": server["text"]}],
        [{"width": 64, "image": server["image"], "text": server["text"]}],
    ]
    assert standard_recipe("modal-fedmd")["populations"] == base["populations"]


def test_swapping_a_method_for_itself_changes_nothing() -> None:
    base = shipped_recipe("creamfl-emoji")
    assert swap_method(base, "creamfl") == base
    assert swap_method({"method": "creamfl"}, "modal-fedmd") == {
        "method": {"name": "modal-fedmd"},
        "title": "",
    }


def test_files_recipes_and_methods_are_found(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: creamfl\npopulations: []")
    found = find_target(str(path))
    assert (found.name, found.where) == ("mine", str(path))
    assert found.values == {"method": "creamfl", "populations": []}
    with pytest.raises(ConfigError, match=r"mine\.yaml: populations = \[\]: write at least 1"):
        found.experiment()
    for name in recipe_paths():
        assert find_target(name).experiment().title
    assert find_target("modal-fedmd").values["method"]["name"] == "modal-fedmd"


def test_what_is_not_found_is_answered_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"there is no recipe .*nowhere\.yaml"):
        find_target("nowhere.yaml")
    with pytest.raises(ConfigError, match=r"a recipe \(.*creamfl-emoji.*did you mean 'modal-"):
        find_target("modal-fedmdd")


def test_settings_are_applied_in_order_and_the_method_is_swapped() -> None:
    settings = ["method.rounds=4", "method=modal-fedmd", "method.digest.epochs=7", "data.test=50"]
    experiment = load_experiment("creamfl-emoji", settings, seed=9)
    assert experiment.seed == 9
    assert experiment.data.test == 50
    method = experiment.method.model_dump()
    assert (method["rounds"], method["digest"]["epochs"]) == (4, 7)
    assert method["distil"]["epochs"] == 20
    assert load_experiment("creamfl", ["seed=3"]).seed == 3


def test_folders_are_named_after_recipe_and_seed(tmp_path: Path) -> None:
    mine, other = load_experiment("creamfl", seed=5), load_experiment("modal-fedmd", seed=5)
    assert run_folder("a", mine, tmp_path) == tmp_path / "a-5"
    (tmp_path / "a-5").mkdir()
    assert run_folder("a", mine, tmp_path) == tmp_path / "a-5", "an empty folder is free"
    (tmp_path / "a-5").rmdir()
    save(tmp_path / "a-5", other)
    assert run_folder("a", mine, tmp_path) == tmp_path / "a-5-2"
    (tmp_path / "a-5-2").write_text("a file")
    assert run_folder("a", mine, tmp_path) == tmp_path / "a-5-3"
    save(tmp_path / "a-5-3", mine)
    assert run_folder("a", mine, tmp_path) == tmp_path / "a-5-3", "its own folder was not found"


def test_a_recipe_is_told_from_another(tmp_path: Path) -> None:
    mine = load_experiment("creamfl", seed=5)
    folder = save(tmp_path / "run", mine)
    assert same_recipe(folder, mine)
    assert not same_recipe(folder, load_experiment("creamfl", seed=6))
    assert not same_recipe(tmp_path, mine)
    (folder / "recipe.yaml").write_text("[")
    assert not same_recipe(folder, mine)
