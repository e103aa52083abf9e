"""Data sets: readers, partitions over sites, missing modalities, public sets."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from motet.data.flower import from_flwr
    from motet.data.missing import Missing, assign_modalities, drop_rows, parse_missing, without
    from motet.data.partition import (
        Partition,
        by_size,
        by_unit,
        dirichlet,
        iid,
        natural,
        parse_partition,
        pathological,
    )
    from motet.data.public import check_public, one_per_unit, split_concepts, subset
    from motet.data.registry import DatasetInfo, list_data, load_data

_MODULES = {
    "flower": ("from_flwr",),
    "missing": ("Missing", "assign_modalities", "drop_rows", "parse_missing", "without"),
    "partition": (
        "Partition",
        "by_size",
        "by_unit",
        "dirichlet",
        "iid",
        "natural",
        "parse_partition",
        "pathological",
    ),
    "public": ("check_public", "one_per_unit", "split_concepts", "subset"),
    "registry": ("DatasetInfo", "list_data", "load_data"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "DatasetInfo",
    "Missing",
    "Partition",
    "assign_modalities",
    "by_size",
    "by_unit",
    "check_public",
    "dirichlet",
    "drop_rows",
    "from_flwr",
    "iid",
    "list_data",
    "load_data",
    "natural",
    "one_per_unit",
    "parse_missing",
    "parse_partition",
    "pathological",
    "split_concepts",
    "subset",
    "without",
]


def __getattr__(name: str) -> object:
    # The list of data sets alone must not cost an import of torch: the command line shows it.
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
