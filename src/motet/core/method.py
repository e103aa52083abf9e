"""A federated method: one frozen pydantic model, its hub half and its site halves side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, model_validator
from torch import nn

from motet.core.about import paragraphs
from motet.core.errors import ConfigError
from motet.core.kinds import Kind
from motet.core.tree import Tree, load

if TYPE_CHECKING:
    from motet.core.federation import Federation
    from motet.core.site import Site

Keeps: TypeAlias = Literal["nothing", "model"]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Operation:
    """What a site function declares: kinds it sends and takes, and whether its model is kept."""

    sends: Mapping[str, Kind] = field(default_factory=dict)
    takes: Mapping[str, Kind] = field(default_factory=dict)
    keeps: Keeps = "nothing"
    optional: frozenset[str] = frozenset()
    varies: frozenset[str] = frozenset()


def at_site(
    *,
    sends: Mapping[str, Kind] | None = None,
    takes: Mapping[str, Kind] | None = None,
    keeps: Keeps = "nothing",
    optional: Collection[str] = (),
    varies: Collection[str] = (),
) -> Callable[[F], F]:
    """Marks a method's function as one that runs at a site.

    sends: top-level key of its reply -> kind. Only declared keys may hold tensors.
    takes: key of its payload -> kind, where it differs from ``sends``.
    keeps: "model" when the site's model and optimisers persist from one call to the next;
        "nothing" when the model starts from its initial weights every time.
    optional: declared keys that a reply may lack, such as those of absent modalities.
    varies: declared keys whose parts or shapes are a site's own; those of all others must agree
        among the sites that answer one question.
    """
    names = dict(sends or {})
    operation = Operation(
        names, {**names, **(takes or {})}, keeps, frozenset(optional), frozenset(varies)
    )
    strangers = sorted((operation.optional | operation.varies) - set(names))
    if strangers:
        raise ConfigError(f"{strangers[0]!r} is optional or varies, and sends does not declare it")
    if Kind.RAW in operation.sends.values():
        raise ConfigError("raw data cannot be sent from a site; send what a model makes of them")
    if keeps not in get_args(Keeps):
        raise ConfigError(f"keeps={keeps!r}: write one of {', '.join(get_args(Keeps))}")

    def mark(function: F) -> F:
        function.__motet_operation__ = operation  # type: ignore[attr-defined]
        return function

    return mark


@dataclass(frozen=True)
class Facts:
    """What is known of a federation before its first round, for ``Method.check``.

    encoders: (party, modality) -> name and options of its encoder. heads: party -> number of
    classes that its model tells apart, 0 without a head; only parties with a model.
    common_start: whether models of one specification start from the same weights.
    """

    public: int
    public_modalities: tuple[str, ...]
    hub_modalities: tuple[str, ...]
    sites: Mapping[str, tuple[str, ...]]
    hub_rows: int = 0
    classes: int = 0
    encoders: Mapping[tuple[str, str], str] = field(default_factory=dict)
    heads: Mapping[str, int] = field(default_factory=dict)
    common_start: bool = False


def _filled_in(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values, in which every group that is given in part has the rest from its default."""
    filled = dict(values)
    for name, default in defaults.items():
        if isinstance(default, BaseModel) and isinstance(values.get(name), Mapping):
            own = {field: getattr(default, field) for field in type(default).model_fields}
            filled[name] = {**own, **_filled_in(values[name], own)}
    return filled


class Method(BaseModel):
    """Base of all methods: fields are hyper-parameters, and there is no other state.

    The docstring's paragraphs that begin with "Paper:", "Travels:", "Use:", "Avoid:" and
    "Deviations:" are the method's public metadata.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # The recipe of Motet's in which `motet run METHOD` runs it.
    setting: ClassVar[str] = "creamfl-emoji"
    needs_public: ClassVar[bool] = False
    needs_hub_model: ClassVar[bool] = False
    pools_private_rows: ClassVar[bool] = False
    # Whether it collects answers in the order in which they come; a simulation of it needs a clock.
    asynchronous: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _keep_own_defaults(cls, values: Any) -> Any:
        """Fields of a group that are not given keep what THIS method has for them.

        Otherwise ``local: {lr: 0.05}`` would give FedDyn another method's weight decay and clip.
        """
        defaults = {name: info.default for name, info in cls.model_fields.items()}
        return _filled_in(values, defaults) if isinstance(values, Mapping) else values

    def run(self, fed: Federation) -> None:
        """The hub's half: ordinary Python that asks sites and reports."""
        raise TypeError(f"{type(self).__name__} has no run(fed)")

    def transform(self, model: nn.Module) -> nn.Module:
        """What this method makes of every freshly built model, the hub's and the sites'.

        By default nothing. It may freeze parts, put layers in place of others or add some; new
        weights come from torch's default generator, which is keyed as the model's own weights are.
        """
        return model

    def check(self, facts: Facts) -> None:
        """Refuses, before the first round, a federation that this method cannot work with."""
        if self.needs_public and facts.public < 2:
            raise ConfigError(
                f"{type(self).__name__} needs a public set of at least 2 rows, and "
                f"data.public gives {facts.public}"
            )
        if self.needs_hub_model and not facts.hub_modalities:
            raise ConfigError(
                f"{type(self).__name__} trains a model at the hub; give the recipe one: server"
            )

    def work(self, op: str, rows: int) -> float:
        """Rows that a call of ``op`` goes through at a site of so many, for simulated times.

        By default its own rows once.
        """
        return rows

    @at_site(sends={"metrics": Kind.METRIC}, keeps="model")
    def evaluate(self, site: Site, weights: Tree | None = None) -> Tree:
        """The site's own model (with ``weights`` where given) on the site's test rows."""
        if weights is not None:
            load(site.model, weights)
        return {"metrics": site.evaluate()}

    @classmethod
    def operations(cls) -> dict[str, Operation]:
        """The functions that may be called at a site, by name."""
        return dict(_operations(cls))

    @classmethod
    def about(cls) -> dict[str, str]:
        """The docstring by paragraph: "summary" and each "Word:" paragraph, lower case."""
        return paragraphs(cls.__doc__)


# Every site asks for them when it is first visited.
@cache
def _operations(method: type) -> Mapping[str, Operation]:
    found: dict[str, Operation] = {}
    for base in reversed(method.__mro__):
        for name, value in vars(base).items():
            operation = getattr(value, "__motet_operation__", None)
            if operation is not None:
                found[name] = operation
    return found
