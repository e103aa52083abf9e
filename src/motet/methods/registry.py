"""Which methods there are, by the name that a recipe writes."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from motet.core.errors import ConfigError

if TYPE_CHECKING:
    from motet.core.method import Method

ENTRY_POINTS = "motet.methods"

# name -> "module:Class"; a module is imported when its method is used.
METHODS = {
    "creamfl": "motet.methods.creamfl:CreamFL",
    "server-only": "motet.methods.alone:ServerOnly",
    "modal-local": "motet.methods.alone:ModalLocal",
    "modal-central": "motet.methods.alone:ModalCentral",
    "modal-fedavg": "motet.methods.modal_fedavg:ModalFedAvg",
    "modal-fedmd": "motet.methods.modal_fedmd:ModalFedMD",
    "fediot": "motet.methods.modal_fedavg:FedIoT",
    "fedet": "motet.methods.fedet:FedET",
    "fedgems": "motet.methods.fedgems:FedGEMS",
    "fedavg": "motet.methods.fedavg:FedAvg",
    "fedpeft": "motet.methods.fedpeft:FedPEFT",
}


def method_names() -> list[str]:
    """All names, Motet's own and those of installed packages, sorted."""
    return sorted({*METHODS, *entry_points(group=ENTRY_POINTS).names})


@cache
def method_class(name: str) -> type[Method]:
    """The method of this name; raises ConfigError that lists the names there are."""
    if name in METHODS:
        module, _, attribute = METHODS[name].partition(":")
        found: type[Method] = getattr(import_module(module), attribute)
        return found
    others = entry_points(group=ENTRY_POINTS)
    if name not in others.names:
        raise ConfigError(f"there is no method {name!r}; write one of {', '.join(method_names())}")
    loaded: type[Method] = others[name].load()
    return loaded
