"""Options that several commands have; nothing heavy is imported here."""

from __future__ import annotations

from typing import Annotated

import typer

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Change a field of the recipe, such as method.rounds=4 or "
        "populations.image.count=3; method=NAME swaps the method. May be repeated.",
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seeds everything.")]
Seeds = Annotated[
    str | None, typer.Option("--seeds", metavar="LIST", help="Seeds, such as 1,2,3 or 1-3.")
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", metavar="N", min=1, help="Runs at a time; all cores by default."),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but failures and the report's path.")
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE_OR_METHOD",
        help="A recipe file (.yaml), a recipe of `motet list recipes`, or a method, which then "
        "runs in the standard setting.",
    ),
]
Open = Annotated[bool, typer.Option("--open", help="Open the report in the browser.")]
