"""``motet list``, ``motet show`` and ``motet claims``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from motet.commands.common import out, table
from motet.core.about import one_line
from motet.core.errors import ConfigError
from motet.data.registry import list_data
from motet.experiment.reading import read_recipe
from motet.experiment.recipes import recipe_paths
from motet.methods.registry import about_method, method_names
from motet.models.known import list_encoders

if TYPE_CHECKING:
    from rich.table import Table

    from motet.experiment.fields import Row


def list_all(what: str | None) -> None:
    """Prints the tables of one kind of thing, or of all kinds."""
    console = out()
    for kind in LISTS if what is None else [what]:
        console.print(LISTS[kind]())


def _methods() -> Table:
    shown = table("Methods", ("name", "what it is", "what travels"))
    for name in method_names():
        about = about_method(name)
        shown.add_row(name, one_line(about["summary"]), about.get("travels", ""))
    return shown


def _data() -> Table:
    shown = table("Data", ("name", "what it is", "licence"))
    for info in list_data():
        shown.add_row(info.name, info.about, info.licence)
    return shown


def _models() -> Table:
    shown = table("Models", ("encoder", "reads", "what it is"))
    for info in list_encoders():
        shown.add_row(info.name, info.modality, info.about)
    return shown


def _recipes() -> Table:
    shown = table("Recipes", ("name", "title", "method"))
    for name, path in recipe_paths().items():
        values = read_recipe(path)
        method = values.get("method")
        named = method.get("name") if isinstance(method, dict) else method
        shown.add_row(name, str(values.get("title", "")), str(named))
    return shown


def _claims() -> Table:
    from motet.claims.registry import claim_title, list_claims

    shown = table("Claims", ("name", "title"))
    for name in list_claims():
        shown.add_row(name, claim_title(name))
    return shown


LISTS: dict[str, Callable[[], Table]] = {
    "methods": _methods,
    "data": _data,
    "models": _models,
    "recipes": _recipes,
    "claims": _claims,
}


def show(name: str) -> None:
    """Prints all that is known of one name; raises ConfigError that names similar ones."""
    from motet.claims import list_claims
    from motet.experiment.explain import nearest

    kinds: tuple[tuple[Sequence[str], Callable[[str], None]], ...] = (
        (method_names(), _show_method),
        ([info.name for info in list_data()], _show_data),
        ([info.name for info in list_encoders()], _show_encoder),
        (list(recipe_paths()), _show_recipe),
        (list_claims(), _show_claim),
    )
    found = [shows for names, shows in kinds if name in names]
    if not found:
        known = [known for names, _ in kinds for known in names]
        raise ConfigError(f"there is no {name!r}; `motet list` names all{nearest(name, known)}")
    for shows in found:
        shows(name)


def _show_method(name: str) -> None:
    from motet.experiment.fields import rows_of
    from motet.experiment.pages import PARTS, source_of
    from motet.methods.registry import method_class

    cls = method_class(name)
    about = cls.about()
    _head(f"{name}: {one_line(about['summary'])}")
    for part, heading in PARTS.items():
        if part in about:
            _paragraph(heading, about[part])
    _paragraph("Source", source_of(cls))
    _fields("Hyper-parameters: --set method.NAME=VALUE", rows_of(cls))


def _show_data(name: str) -> None:
    from motet.data.registry import options_of, reader_of
    from motet.experiment.fields import rows_of

    info = next(info for info in list_data() if info.name == name)
    doc = reader_of(name).__doc__
    _head(f"{name}: {info.about}")
    _paragraph("Source", info.source)
    _paragraph("Licence", info.licence)
    _fields("Options: --set data.options.NAME=VALUE", rows_of(options_of(name), doc))


def _show_encoder(name: str) -> None:
    from motet.experiment.fields import rows_of
    from motet.models.registry import encoder_class, encoder_options

    info = next(info for info in list_encoders() if info.name == name)
    _head(f"{name}: {info.about}")
    _paragraph("Reads", info.modality)
    _paragraph("Source", info.source)
    _paragraph("How", one_line(encoder_class(name).__doc__).replace("``", "`"))
    _fields(
        f"Options, as in {info.modality}: {{name: {name}, ...}}", rows_of(encoder_options(name))
    )


def _show_recipe(name: str) -> None:
    path = recipe_paths()[name]
    _head(f"{name}: {path}")
    out().print(path.read_text(encoding="utf-8"), soft_wrap=True)


def _show_claim(name: str) -> None:
    from motet.claims import claim_named

    claim = claim_named(name)
    _head(f"Claim: {claim.title}")
    _paragraph("Paper", claim.paper)
    _paragraph("Seeds", ", ".join(map(str, claim.seeds)))
    shown = table(f"Must come out, by `motet claim {name}`", ("what", "arm", "against"))
    for item in claim.expectations:
        shown.add_row(item.text, item.arm, item.other)
    out().print(shown)


def _head(text: str) -> None:
    out().print(text, style="bold")
    out().print()


def _paragraph(heading: str, text: str) -> None:
    out().print(f"{heading}: {text}")
    out().print()


def _fields(title: str, rows: Sequence[Row]) -> None:
    shown = table(title, ("name", "default", "type and bounds", "what it is"))
    for row in rows:
        shown.add_row(row.name, row.default or "–", f"{row.kind} {row.bounds}".strip(), row.about)
    out().print(shown)
