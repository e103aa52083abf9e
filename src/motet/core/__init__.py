"""The core: one contract between hub and sites. Torch, numpy, pydantic and safetensors only."""

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
