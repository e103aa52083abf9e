"""Data sets by name, with options checked before anything is read."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

import motet.data
from motet.core import ConfigError, Dataset
from motet.data import list_data, load_data
from motet.data.registry import check_options, options_of, reader_of

# Data sets that are read from the user's own files, and those that come with a package.
OWN_FILES = ("folder", "coco", "flickr30k", "cifar10", "cifar100", "agnews", "huggingface")
INSTALLED = ("emoji", "digits", "mnist5k", "fashion-mnist", "communities")


def little(count: int = 2, words: tuple[str, ...] = ("a",)) -> Dataset:
    """What a package of somebody else offers."""
    return Dataset(columns={"text": words * count})


not_a_reader = 3


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    entries = EntryPoints(
        [
            EntryPoint("little", f"{__name__}:little", "motet.datasets"),
            EntryPoint("odd", f"{__name__}:not_a_reader", "motet.datasets"),
            EntryPoint("gone", "no_such_package:load", "motet.datasets"),
            EntryPoint("folder", f"{__name__}:little", "motet.datasets"),
        ]
    )
    monkeypatch.setattr("motet.data.registry.entry_points", lambda group: entries)
    reader_of.cache_clear()
    options_of.cache_clear()
    yield
    reader_of.cache_clear()
    options_of.cache_clear()


def test_all_names_are_listed_with_source_and_licence() -> None:
    infos = {info.name: info for info in list_data()}
    assert list(infos) == sorted(infos)
    assert set(infos) == {*OWN_FILES, *INSTALLED}
    for info in infos.values():
        assert info.about
        assert info.source
        assert info.licence


@pytest.mark.parametrize("name", OWN_FILES)
def test_every_reader_says_what_may_be_set(name: str) -> None:
    fields = options_of(name).model_fields
    assert fields["path"].is_required()
    with pytest.raises(ConfigError, match=f"{name}.path: is missing"):
        check_options(name, {})


@pytest.mark.parametrize("name", INSTALLED)
def test_what_an_installed_package_brings_needs_no_option(name: str) -> None:
    assert not any(field.is_required() for field in options_of(name).model_fields.values())


def test_options_are_converted_and_defaults_left_to_the_reader() -> None:
    assert check_options("folder", {"path": "pictures", "size": "32"}) == {
        "path": Path("pictures"),
        "size": 32,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"path": "x", "sise": 3},
            r"folder.sise: there is no such option \(options of folder: pat",
        ),
        ({"path": "x", "size": "big"}, r"folder.size: .*valid integer.*, not 'big' \(options of"),
        (
            {"path": "x", "on_error": "ignore"},
            r"folder.on_error: .*'raise' or 'skip', not 'ignore'",
        ),
        ({"path": 3}, r"folder.path: .*, not 3"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_data("folder", **options)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no data set 'emojis'; write one of agnews, cifar10"):
        load_data("emojis")


@pytest.mark.usefixtures("installed")
def test_installed_packages_add_data_sets() -> None:
    assert load_data("little", count=3, words=["x", "y"]).columns["text"] == ("x", "y") * 3
    assert {"little", "odd", "gone"} < {info.name for info in list_data()}
    assert [info.target for info in list_data() if info.name == "folder"] == [
        "motet.data.readers.folder:load_folder"
    ]
    with pytest.raises(ConfigError, match=r"little.size: there is no such option .*: count, words"):
        load_data("little", size=3)
    with pytest.raises(ConfigError, match=r"'odd' \(.*not_a_reader\) is not a function"):
        load_data("odd")
    with pytest.raises(ConfigError, match=r"'gone' \(no_such_package:load\) cannot be loaded"):
        load_data("gone")
    with pytest.raises(ConfigError, match=r"write one of .*, gone, huggingface, little, .*odd"):
        load_data("none")


def test_the_public_names_are_there() -> None:
    assert sorted(motet.data.__all__) == motet.data.__all__
    for name in motet.data.__all__:
        assert getattr(motet.data, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        motet.data.nothing  # noqa: B018
