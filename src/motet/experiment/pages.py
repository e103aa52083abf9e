"""Pages of the documentation that are made from what methods, models and data say of themselves."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from motet.core.about import one_line as one_line
from motet.core.kinds import Kind
from motet.core.method import Method
from motet.core.store import write_atomic
from motet.data.registry import list_data, options_of, reader_of
from motet.experiment.fields import Row, rows_of
from motet.experiment.recipes import recipe_paths
from motet.experiment.spec import read_recipe
from motet.methods.registry import METHODS, method_class
from motet.models.registry import encoder_class, encoder_options, list_encoders

NOTICE = "<!-- Made from the code by `motet docs`; change it there. -->"
# The order in which a method's docstring is told, with the heading of each paragraph.
PARTS = {
    "paper": "Paper",
    "travels": "What travels",
    "use": "Use it when",
    "avoid": "Avoid it when",
    "deviations": "Where it deviates from the paper",
    "notes": "Notes",
}
FAMILIES = {
    Kind.WEIGHTS: "averages weights",
    Kind.REPRESENTATIONS: "exchanges representations",
    Kind.LOGITS: "exchanges scores",
    Kind.VOTES: "exchanges rankings",
    Kind.ACTIVATIONS: "splits the model",
    Kind.SYNTHETIC: "exchanges synthetic data",
}
REFERENCE = "reference"


def write_pages(out: Path) -> list[Path]:
    """Writes methods/index.md, a page per method, models.md and data.md; returns their paths.

    The figures of claims/NAME.md under ``out``, where there is one, go into the method's page.
    """
    pages = {"methods/index.md": methods_page(), "models.md": models_page(), "data.md": data_page()}
    for name in METHODS:
        claim = out / "claims" / f"{name}.md"
        figures = claim.read_text(encoding="utf-8") if claim.is_file() else ""
        pages[f"methods/{name}.md"] = method_page(name, figures)
    for place, text in pages.items():
        write_atomic(out / place, text.encode())
    return [out / place for place in pages]


def travels_table() -> str:
    """What travels, per method, as a Markdown table without a line break at its end."""
    rows = [(f"`{name}`", method_class(name).about().get("travels", "")) for name in METHODS]
    return "\n".join(table(("method", "what travels"), rows))


def methods_page() -> str:
    """The list of all methods."""
    rows = []
    for name in METHODS:
        cls = method_class(name)
        about = cls.about()
        link = f"[{name}]({name}.md)"
        rows.append((link, one_line(about["summary"]), about.get("travels", ""), family_of(cls)))
    heads = ("method", "what it is", "what travels", "family")
    return _page(
        "Methods", ["`motet show NAME` tells the same in a terminal.", "", *table(heads, rows)]
    )


def method_page(name: str, claim: str = "") -> str:
    """One method: its docstring by parts, its algorithm, hyper-parameters and figures.

    claim: the page of its claim, whose tables are taken over; "" for none.
    """
    cls = method_class(name)
    about = cls.about()
    lines = [one_line(about["summary"]), ""]
    for part, heading in PARTS.items():
        if part in about:
            lines += [f"**{heading}:** {about[part]}", ""]
    lines += ["## Run it", "", *_commands(name), ""]
    lines += ["## Hyper-parameters", "", *fields_table(rows_of(cls)), ""]
    if claim:
        lines += ["## Figures", "", *tables_in(claim), ""]
        lines += [f"Everything about them: [the claim](../claims/{name}.md).", ""]
    lines += ["## The algorithm", "", f"From `{source_of(cls)}`, the hub's half:", ""]
    lines += ["```python", textwrap.dedent(inspect.getsource(cls.run)).rstrip(), "```"]
    return _page(cls.__name__, lines)


def _commands(name: str) -> list[str]:
    """How to run a method: in the standard setting, and the recipes that have it."""
    recipes = [recipe for recipe, path in recipe_paths().items() if _method_of(path) == name]
    words = [(name, "in the standard setting"), *((recipe, "its recipe") for recipe in recipes)]
    wide = max(len(word) for word, _ in words)
    return ["```", *(f"motet run {word:{wide}}   # {what}" for word, what in words), "```"]


def _method_of(recipe: Path) -> str:
    method = read_recipe(recipe).get("method")
    return str(method.get("name") if isinstance(method, dict) else method)


def models_page() -> str:
    """All encoders with their options."""
    encoders = [encoder for encoder in list_encoders() if _ours(encoder.target)]
    rows = [(f"[{e.name}](#{e.name})", e.modality, e.about, e.source) for e in encoders]
    lines = [
        "A model is one encoder per modality and a common embedding size; see the recipes.",
        "",
    ]
    lines += table(("encoder", "reads", "what it is", "source"), rows)
    for encoder in encoders:
        lines += ["", f"## {encoder.name}", "", one_line(encoder_class(encoder.name).__doc__), ""]
        lines += fields_table(rows_of(encoder_options(encoder.name)))
    return _page("Models", lines)


def data_page() -> str:
    """All data sets with the options of their readers."""
    known = [data for data in list_data() if _ours(data.target)]
    rows = [(f"[{d.name}](#{d.name})", d.about, d.source, d.licence) for d in known]
    lines = table(("data set", "what it is", "source", "licence"), rows)
    for data in known:
        doc = reader_of(data.name).__doc__
        lines += ["", f"## {data.name}", "", one_line(doc), ""]
        lines += fields_table(rows_of(options_of(data.name), doc))
    return _page("Data", lines)


def _ours(target: str) -> bool:
    """Whether it comes with Motet; what else is installed must not change the pages."""
    return target.startswith("motet.")


def family_of(cls: type[Method]) -> str:
    """In a few words what kind of method it is, by the kinds that its sites send."""
    sent = {kind for operation in cls.operations().values() for kind in operation.sends.values()}
    found = [words for kind, words in FAMILIES.items() if kind in sent]
    return ", ".join(found) or REFERENCE


def source_of(cls: type) -> str:
    """Where the class stands in the source tree, from its top."""
    return f"src/{cls.__module__.replace('.', '/')}.py"


def fields_table(rows: Sequence[Row]) -> list[str]:
    """What may be set, as lines of a Markdown table."""
    if not rows:
        return ["There is nothing to set."]
    cells = [
        (
            f"`{row.name}`",
            row.kind,
            f"`{row.default}`" if row.default else "must be given",
            row.bounds,
            row.about,
        )
        for row in rows
    ]
    return table(("name", "type", "default", "bounds", "what it is"), cells)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; what would break a cell is escaped."""
    lines = [_row(heads), "|" + "---|" * len(heads)]
    return [*lines, *(_row([_cell(text) for text in row]) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    # Docstrings mark code by two backticks, Markdown by one.
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split())).replace("``", "`")


def tables_in(page: str) -> list[str]:
    """The lines of all tables of a Markdown page, with an empty line between tables."""
    lines: list[str] = []
    for line in page.splitlines():
        if line.startswith("|"):
            lines.append(line)
        elif lines and lines[-1]:
            lines.append("")
    return lines[:-1] if lines and not lines[-1] else lines


def _page(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"# {title}", "", NOTICE, "", *lines]).rstrip() + "\n"
