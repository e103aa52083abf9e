"""site.yaml: a real site made of its own rows, with errors that say what to write."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.conformance.tiny import Case, data, experiment

from motet.agent.host import Host
from motet.agent.messages import ask, read_question
from motet.agent.protocol import recipe_digest
from motet.core import ConfigError, DataError, Dataset, Request, Tree, weights_of, wire
from motet.experiment import build, site_file
from motet.experiment.build import build_parties
from motet.experiment.site_file import (
    OwnData,
    SiteFile,
    bound_memory,
    held_out,
    host_of,
    like_classes,
    opened,
    read_site,
)

EXPERIMENT = experiment(Case("creamfl"))
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _tiny_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, **options: Any) -> Dataset:
        return data(40) if name == "digits" else data()

    monkeypatch.setattr(build, "load_data", load)
    monkeypatch.setattr(site_file, "load_data", load)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a site file with these fields beside the recipe."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(EXPERIMENT.plain()))

    def written(**fields: Any) -> Path:
        values = {"name": "pair-1", "recipe": "recipe.yaml", "data": "from recipe", **fields}
        path = tmp_path / "site.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v != "missing"}))
        return path

    return written


def made(path: Path) -> Host:
    host = host_of(read_site(path))
    host.close()
    return host


def test_paths_are_those_beside_the_file(write: Write, tmp_path: Path) -> None:
    site = read_site(write())
    assert site.recipe == tmp_path / "recipe.yaml"
    assert site.state == tmp_path / "state"
    assert site.at == tmp_path / "state" / "agent.sock"
    assert read_site(write(socket="/run/motet.sock")).at == Path("/run/motet.sock")


def test_options_that_are_paths_are_beside_the_file_too(write: Write, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    options = {"path": "pictures", "captions": "inside.csv", "label_column": "pictures"}
    site = read_site(write(data={"name": "folder", "options": options}))
    assert site.data is not None
    assert site.data.options == {**options, "path": str(tmp_path / "pictures")}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"nam": "x"}, "nam: there is no such field; did you mean 'name'"),
        ({"name": "missing"}, "name: is missing; it says the site's name in the recipe"),
        ({"data": "missing"}, "data: is missing"),
        ({"data": "digits"}, "data = 'digits': write a mapping .* or 'from recipe'"),
        ({"data": 3}, "data = 3: write a mapping"),
        ({"data": None}, "data = None: write a mapping"),
        ({"data": {"options": {}}}, "data.name: is missing"),
        ({"data": {"name": "digits", "test": 1.5}}, "data.test = 1.5: write a value below 1"),
        ({"data": {"name": "digits", "tests": 0.5}}, "data.tests: .* did you mean 'test'"),
        ({"policy": {"kinds": ["weight"]}}, "policy.kinds.0 = 'weight': .* did you mean 'weights'"),
        ({"policy": {"approve": "yes"}}, "policy.approve = 'yes': write one of none, first, every"),
        ({"policy": {"reply_mb": 0}}, "policy.reply_mb = 0: write a value above 0"),
        ({"limits": {"seconds": "long"}}, "limits.seconds = 'long': write a number"),
        ({"limits": {"second": 3}}, "limits.second: .* did you mean 'seconds'"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(
    write: Write, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=rf"site.yaml: {told}"):
        read_site(write(**fields))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "site.yaml, line 2 is not YAML"),
        ("- a", "must hold fields such as name"),
        ("\0", "YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "site.yaml").write_text(text + "\n")
    with pytest.raises(ConfigError, match=told):
        read_site(tmp_path / "site.yaml")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no site file .*nothing.yaml"):
        read_site(tmp_path / "nothing.yaml")


def test_a_site_may_have_its_share_of_the_recipe(write: Write) -> None:
    """The same rows, model and seed as in the simulation."""
    host = made(write())
    parties = build_parties(EXPERIMENT)
    (spec,) = (site for site in parties.sites if site.name == "pair-1")
    site = host.door.site
    assert torch.equal(site.data.rows, spec.data.rows)
    assert spec.build is not None
    assert wire.digest(weights_of(site.model)) == wire.digest(weights_of(spec.build()))
    assert host.recipe == recipe_digest(EXPERIMENT.plain())
    assert host.method == "creamfl"
    assert not host.door.candid
    assert host.careful
    assert len(host.traits.public) == 16


def test_a_site_may_read_its_own_rows(write: Write) -> None:
    host = made(write(name="pair-2", data={"name": "digits", "where": {"task": "1"}}))
    site = host.door.site
    assert site.name == "pair-2"
    kept = data(40)
    assert isinstance(kept.about["task"], torch.Tensor)
    assert len(site.data) == int((kept.about["task"] == 1).sum()) == host.traits.rows
    assert site.data.modalities == ("image", "text")
    parties = build_parties(EXPERIMENT)
    assert site.test is not None
    assert torch.equal(site.test.rows, parties.test.rows)
    (spec,) = (other for other in parties.sites if other.name == "pair-2")
    assert spec.build is not None
    assert wire.digest(weights_of(site.model)) == wire.digest(weights_of(spec.build()))


def test_a_site_has_the_modalities_of_its_population_alone(write: Write) -> None:
    host = made(write(name="text-2", data={"name": "digits"}))
    assert host.door.site.data.modalities == ("text",)
    assert host.door.site.test is not None
    assert host.door.site.test.modalities == ("text",)


def test_columns_may_have_other_names(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = data(40)
    renamed = replace(
        rows,
        columns={"scan": rows.columns["image"], "report": rows.columns["text"]},
        present={},
    )
    monkeypatch.setattr(site_file, "load_data", lambda name, **options: renamed)
    with pytest.raises(ConfigError, match="recipe has image at pair-1, and digits gives report, s"):
        made(write(data={"name": "digits"}))
    columns = {"image": "scan", "text": "report"}
    host = made(write(data={"name": "digits", "columns": columns}))
    assert host.door.site.data.columns["image"] is rows.columns["image"]


def test_a_site_may_keep_rows_for_tests(write: Write) -> None:
    host = made(write(data={"name": "digits", "test": 0.25}))
    site = host.door.site
    assert site.test is not None
    assert (len(site.data), len(site.test)) == (30, 10)
    assert not set(site.data.rows.tolist()) & set(site.test.rows.tolist())
    again = made(write(data={"name": "digits", "test": 0.25})).door.site
    assert torch.equal(again.data.rows, site.data.rows)


def test_rows_kept_for_tests_are_at_least_one_and_not_all() -> None:
    rows = data(40)
    assert [len(part) for part in held_out(rows.take([0, 1]), 0.01, 0, "a")] == [1, 1]
    assert [len(part) for part in held_out(rows.take([0, 1]), 0.99, 0, "a")] == [1, 1]
    with pytest.raises(DataError, match="site a has 1 rows, too few to keep some for tests"):
        held_out(rows.take([0]), 0.5, 0, "a")


def test_labels_become_the_recipes_classes() -> None:
    rows = Dataset(
        {"text": ("a", "b", "c")}, labels=torch.tensor([0, 1, -100]), classes=("sun", "cat")
    )
    found = like_classes(rows, ("cat", "dog", "sun"), "ada")
    assert found.labels is not None
    assert found.labels.tolist() == [2, 0, -100]
    assert found.classes == ("cat", "dog", "sun")
    assert like_classes(found, ("cat", "dog", "sun"), "ada") is found
    with pytest.raises(DataError, match="site ada has rows of the class 'sun', and the recipe"):
        like_classes(rows, ("cat", "dog"), "ada")


def test_a_column_that_is_not_there_is_told(write: Write) -> None:
    with pytest.raises(
        ConfigError, match=r"data.where names 'style', and the rows have \['task'\]"
    ):
        made(write(data={"name": "digits", "where": {"style": "x"}}))
    with pytest.raises(DataError, match="site pair-1 has no rows"):
        made(write(data={"name": "digits", "where": {"task": "9"}}))


@pytest.mark.parametrize("name", ["pair-3", "pair-0", "pair", "pair-01", "other-1"])
def test_a_site_that_the_recipe_lacks_is_told(write: Write, name: str) -> None:
    told = f"the recipe has no site '{name}'; it has image-1 to image-2, text-1 to text-2, pair-1"
    with pytest.raises(ConfigError, match=told):
        made(write(name=name))


def test_what_belongs_to_another_recipe_is_no_state_of_this_one(
    write: Write, tmp_path: Path
) -> None:
    def tell(host: Host) -> Tree:
        op = next(op for op in host.door.operations if op == "evaluate")
        question = read_question(ask(Request("pair-1", op, "0.0.1", 0), host.recipe))
        frame = host.answer(host.admit(question, lambda seconds: True), question)
        return wire.decode(frame)

    first = host_of(read_site(write()))
    tell(first)
    first.close()
    assert made(write()).memory.tag == "0.0.1"
    other = experiment(Case("creamfl"), "seed=5").plain()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(other))
    assert made(write()).memory.tag == ""


def test_an_open_site_keeps_others_out(write: Write) -> None:
    site = read_site(write())
    twice = pytest.raises(ConfigError, match="another agent is at work in")
    with opened(site) as server:
        assert list(server.hosts) == ["pair-1"]
        with twice, opened(site):
            pass
        server._listener.close()
        server.hosts["pair-1"].close()


def test_memory_is_bounded() -> None:
    """In a process of its own, since a limit cannot be taken back."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            bound_memory(None)
            bound_memory(3000)
            code = int(resource.getrlimit(resource.RLIMIT_DATA)[0] != 3_000_000_000)
            torch.zeros(10**9).fill_(1)
            code = 2
        except RuntimeError:
            pass
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_every_field_says_what_it_is() -> None:
    for model in (SiteFile, OwnData, type(SiteFile.model_fields["limits"].default)):
        for name, field in model.model_fields.items():
            assert field.description, name
