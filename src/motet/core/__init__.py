"""The core: one contract between hub and sites. Torch, numpy, pydantic and safetensors only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from motet.core.batch import Batch, Dataset, Output
    from motet.core.errors import (
        ConfigError,
        DataError,
        MotetError,
        SiteError,
        StoreError,
        WireError,
    )
    from motet.core.events import Events, read_events
    from motet.core.federation import Federation
    from motet.core.group import Group
    from motet.core.groups import freeze
    from motet.core.kinds import Kind
    from motet.core.messages import Engine, Reply, Request, Traits
    from motet.core.method import Facts, Method, at_site
    from motet.core.optim import SGD, Adam
    from motet.core.replies import Replies
    from motet.core.site import Site, SiteSpec
    from motet.core.tree import (
        Tree,
        load,
        mean,
        minus,
        parameters_of,
        plus,
        scaled,
        weights_of,
        zeros,
    )

_MODULES = {
    "batch": ("Batch", "Dataset", "Output"),
    "errors": ("ConfigError", "DataError", "MotetError", "SiteError", "StoreError", "WireError"),
    "events": ("Events", "read_events"),
    "federation": ("Federation",),
    "group": ("Group",),
    "groups": ("freeze",),
    "kinds": ("Kind",),
    "messages": ("Engine", "Reply", "Request", "Traits"),
    "method": ("Facts", "Method", "at_site"),
    "optim": ("SGD", "Adam"),
    "replies": ("Replies",),
    "site": ("Site", "SiteSpec"),
    "tree": (
        "Tree",
        "load",
        "mean",
        "minus",
        "parameters_of",
        "plus",
        "scaled",
        "weights_of",
        "zeros",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "SGD",
    "Adam",
    "Batch",
    "ConfigError",
    "DataError",
    "Dataset",
    "Engine",
    "Events",
    "Facts",
    "Federation",
    "Group",
    "Kind",
    "Method",
    "MotetError",
    "Output",
    "Replies",
    "Reply",
    "Request",
    "Site",
    "SiteError",
    "SiteSpec",
    "StoreError",
    "Traits",
    "Tree",
    "WireError",
    "at_site",
    "freeze",
    "load",
    "mean",
    "minus",
    "parameters_of",
    "plus",
    "read_events",
    "scaled",
    "weights_of",
    "zeros",
]


def __getattr__(name: str) -> object:
    # Errors and kinds must not cost an import of torch: the command line uses them.
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
