"""The recipe of an experiment: one schema for YAML files, the command line and Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from motet.core import ConfigError, Method
from motet.data.missing import Missing
from motet.data.partition import Iid, Partition
from motet.engines.clock import ClientProfiles
from motet.engines.faults import FaultSpec
from motet.experiment.explain import explain
from motet.experiment.reading import read_recipe as read_recipe
from motet.methods.registry import method_class
from motet.models.registry import ModelSpec
from motet.protect.attack_spec import AttackSpec
from motet.protect.spec import Protect


class Spec(BaseModel):
    """Base of all parts of a recipe: frozen, and a field that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSpec(Spec):
    """Where rows come from, and how they are shared out between test, public set and sites."""

    name: str = Field("emoji", description="a data set of `motet list data`")
    options: dict[str, Any] = Field(default_factory=dict, description="options of its reader")
    unit: str | None = Field(None, description="rows that share this column stay together")
    test: int = Field(400, ge=1, description="units for testing")
    public: int = Field(300, ge=0, description="units of the public set")
    private: int | None = Field(None, ge=1, description="units of all sites; null for the rest")
    public_rows: Literal["one", "all"] = Field(
        "one", description="rows per unit in public and test set: one at random, or all"
    )
    scrambled: bool = Field(
        False, description="control: permute pairs and labels of private rows within each site"
    )


class Population(Spec):
    """Sites of one kind, among which the private rows are shared out once."""

    name: str = Field(description="prefix of the sites' names", pattern=r"^[a-z][a-z0-9-]*$")
    count: int = Field(ge=1, description="number of sites")
    modalities: tuple[str, ...] = Field(min_length=1, description="what its sites hold")
    rows: Literal["one", "all"] = Field("all", description="rows per unit at a site")
    partition: Partition = Field(Iid(), description="how the rows are shared out")
    where: dict[str, str | tuple[str, ...]] = Field(
        default_factory=dict, description="column -> value(s): only these rows, e.g. style: noto"
    )
    missing: Missing | None = Field(None, description="modalities that single rows lack")
    models: tuple[ModelSpec, ...] = Field(
        min_length=1, description="models of the sites, in turn; all with the same width"
    )
    classify: bool | None = Field(
        None, description="give models a class head; by default only where a modality is alone"
    )
    tests: Literal["all", "own"] = Field(
        "all", description="test rows: all, or those that look like the site's own (where, labels)"
    )
    shift_labels: int = Field(0, ge=0, description="control: labels are this many classes off")

    @model_validator(mode="after")
    def _models_read_what_sites_hold(self) -> Population:
        for number, model in enumerate(self.models):
            for modality in self.modalities:
                if modality not in model.encoders:
                    raise ValueError(
                        f"models.{number} has no encoder for {modality}, which its sites hold; "
                        f"write for instance {modality}: NAME (motet list models)"
                    )
        return self


class EngineSpec(Spec):
    """What carries the messages."""

    name: Literal["serial", "processes", "coalesced", "auto"] = Field(
        "serial",
        description="serial; processes: sites in several processes of this machine; coalesced: "
        "equal fits and evaluations of several sites at once; auto: the same where it is worth it",
    )
    processes: int | None = Field(
        None, ge=1, description="number of processes; null for as many as there are cores"
    )
    strict: bool = Field(False, description="pass every message through the wire format")
    threads: int = Field(1, ge=1, description="torch threads; bits may depend on their number")
    timeout: float | None = Field(
        None, gt=0, description="seconds in which a site must answer; null for as long as it takes"
    )
    retries: int = Field(
        0, ge=0, description="how often a site is asked again, where no whole answer came"
    )
    live: int | None = Field(
        None,
        ge=1,
        description="serial: sites held in memory at a time, others wait on disk; null for 1,000",
    )


class Experiment(Spec):
    """Everything that decides a run. Same recipe and seed: same bits."""

    title: str = ""
    seed: int = Field(0, ge=0, lt=2**31, description="seeds everything")
    method: Method = Field(description="the method's name and its hyper-parameters")
    data: DataSpec = DataSpec()
    populations: tuple[Population, ...] = Field(min_length=1)
    server: ModelSpec | None = Field(None, description="the hub's model; None for none")
    classify: bool = Field(False, description="give the hub's model a class head")
    common_start: bool = Field(
        False, description="models of one specification start from the same weights everywhere"
    )
    protect: Protect = Field(Protect(), description="what protects the sites and their messages")
    attack: AttackSpec | None = Field(None, description="dishonest sites; null for none")
    clients: ClientProfiles | None = Field(
        None, description="how fast sites are on a simulated clock; null for no clock"
    )
    faults: FaultSpec | None = Field(
        None, description="what goes wrong on purpose; null for nothing"
    )
    engine: EngineSpec = EngineSpec()

    @model_validator(mode="before")
    @classmethod
    def _find_method(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and not isinstance(values.get("method"), Method):
            given = values.get("method")
            fields = {"name": given} if isinstance(given, str) else given
            if not isinstance(fields, Mapping) or not isinstance(fields.get("name"), str):
                raise ValueError("method: write its name, or a mapping with name and options")
            options = {key: value for key, value in fields.items() if key != "name"}
            try:
                found = method_class(fields["name"])
            except ConfigError as error:
                raise ValueError(f"method: {error}") from None
            method = _validated(found, options, "method")
            return {**values, "method": method}
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Experiment:
        names = [population.name for population in self.populations]
        if len(set(names)) < len(names):
            raise ValueError(f"populations: each needs a name of its own, not {names}")
        widths = {model.width for population in self.populations for model in population.models}
        if self.server is not None:
            widths.add(self.server.width)
        if len(widths) > 1:
            raise ValueError(f"all models must share one width, not {sorted(widths)}")
        return self

    def plain(self) -> dict[str, Any]:
        """The recipe as plain values that ``load_experiment`` reads back."""
        values = self.model_dump(mode="json", exclude={"method"})
        name = method_name(self.method)
        return {**values, "method": {"name": name, **self.method.model_dump(mode="json")}}


def method_name(method: Method) -> str:
    """The registered name of a method."""
    from motet.methods.registry import method_names

    for name in method_names():
        if method_class(name) is type(method):
            return name
    raise ConfigError(f"{type(method).__name__} is not registered under any name")


def _validated(cls: type[BaseModel], values: Any, where: str) -> Any:
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise ValueError(explain(error, where, cls)) from None


def parse_experiment(values: Any, where: str = "") -> Experiment:
    """A checked experiment from plain values; raises ConfigError naming the field.

    where: the file that they come from, for the error.
    """
    try:
        return Experiment.model_validate(values)
    except ValidationError as error:
        prefix = f"{where}: " if where else ""
        raise ConfigError(prefix + explain(error, "", Experiment)) from None


def with_settings(values: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """The values with "a.b.0.c=value" settings applied; values are read as YAML.

    An entry of a list is named by its number from 0, or by its name: populations.image.count=3.
    """
    result: dict[str, Any] = _copy(values)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {setting!r}: write field=value, such as method.rounds=4")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {setting!r}: {text!r} is not a YAML value") from None
        _assign(result, path.strip().split("."), value, setting)
    return result


def _assign(node: Any, path: Sequence[str], value: Any, setting: str) -> None:
    head, rest = path[0], path[1:]
    key: Any = head
    if isinstance(node, list):
        key = _entry(node, head, setting)
    elif not isinstance(node, dict):
        raise ConfigError(f"--set {setting!r}: {head} is inside something that is not a mapping")
    if not rest:
        node[key] = value
        return
    if isinstance(node, dict) and not isinstance(node.get(key), dict | list):
        # A bare name stands for a mapping with that name: method=creamfl, method.rounds=4.
        old = node.get(key)
        node[key] = {"name": old} if isinstance(old, str) else {}
    _assign(node[key], rest, value, setting)


def _entry(entries: list[Any], head: str, setting: str) -> int:
    """Position in a list, given as a number from 0 or as the name of the entry."""
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    if head in names:
        return names.index(head)
    if head.isdigit() and int(head) < len(entries):
        return int(head)
    known = [name for name in names if isinstance(name, str)]
    listed = f" or its name: {', '.join(known)}" if known else ""
    numbers = f"from 0 to {len(entries) - 1}" if entries else "(there are no entries)"
    raise ConfigError(
        f"--set {setting!r}: there is no entry {head!r}; write a number {numbers}{listed}"
    )


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copy(item) for item in value]
    return value
