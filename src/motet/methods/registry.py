"""Which methods there are, by the name that a recipe writes."""

from __future__ import annotations

import ast
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from motet.core.about import paragraphs
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
    "local-only": "motet.methods.local_only:LocalOnly",
    "central": "motet.methods.local_only:Central",
    "fedavg": "motet.methods.fedavg:FedAvg",
    "fedsgd": "motet.methods.fedsgd:FedSGD",
    "fedbuff": "motet.methods.fedbuff:FedBuff",
    "fedprox": "motet.methods.fedprox:FedProx",
    "scaffold": "motet.methods.scaffold:Scaffold",
    "fednova": "motet.methods.fednova:FedNova",
    "feddyn": "motet.methods.feddyn:FedDyn",
    "fedspeed": "motet.methods.fedspeed:FedSpeed",
    "fedavgm": "motet.methods.fedopt:FedAvgM",
    "fedadagrad": "motet.methods.fedopt:FedAdagrad",
    "fedadam": "motet.methods.fedopt:FedAdam",
    "fedyogi": "motet.methods.fedopt:FedYogi",
    "moon": "motet.methods.moon:Moon",
    "fedwon": "motet.methods.fedwon:FedWon",
    "fot": "motet.methods.fot:FOT",
    "fedpeft": "motet.methods.fedpeft:FedPEFT",
    "frl": "motet.methods.frl:FRL",
    "fedlgd": "motet.methods.fedlgd:FedLGD",
    "split-tuning": "motet.methods.split_tuning:SplitTuning",
    "sfprompt": "motet.methods.sfprompt:SFPrompt",
    "fedbn": "motet.methods.fedbn:FedBN",
    "fedper": "motet.methods.fedper:FedPer",
    "fedrep": "motet.methods.fedrep:FedRep",
    "ditto": "motet.methods.ditto:Ditto",
    "pfedme": "motet.methods.pfedme:PFedMe",
    "per-fedavg": "motet.methods.per_fedavg:PerFedAvg",
    "fedcac": "motet.methods.fedcac:FedCAC",
    "fedpub": "motet.methods.fedpub:FedPub",
    "fedproto": "motet.methods.fedproto:FedProto",
    "fedmd": "motet.methods.fedmd:FedMD",
    "knfu": "motet.methods.knfu:KnFu",
    "bristle": "motet.methods.bristle:Bristle",
    "gossip": "motet.methods.gossip:Gossip",
    "rffl": "motet.methods.rffl:RFFL",
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


def about_method(name: str) -> dict[str, str]:
    """The ``about()`` of a method; one of Motet's own is read and not imported, for the list."""
    module, _, attribute = METHODS.get(name, "").partition(":")
    spec = find_spec(module) if module else None
    if spec is None or spec.origin is None:
        return method_class(name).about()
    tree = ast.parse(Path(spec.origin).read_bytes())
    found = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == attribute]
    return paragraphs(ast.get_docstring(found[0])) if found else method_class(name).about()
