"""The command line; whatever a command needs is imported when it runs."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from motet.commands import apart
from motet.commands.options import Jobs, Open, Quiet, Seed, Seeds, Settings, Target

EPILOG = "Start with `motet demo`, or `motet list` and `motet run creamfl`."


class _Commands(TyperGroup):
    """Tells errors of Motet in one line, and leaves all others their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # What never imported the errors did not raise one of them.
            errors = sys.modules.get("motet.core.errors")
            if errors is None or not isinstance(error, errors.MotetError):
                raise
            message = " ".join(str(error).split())
            typer.secho(f"motet: {message}", fg="red", err=True)
            mistake = isinstance(error, errors.ConfigError | errors.DataError)
            raise typer.Exit(2 if mistake else 1) from None


app = typer.Typer(
    cls=_Commands,
    name="motet",
    help="Multimodal federated learning: sites with their own data, modalities and models.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Listed(StrEnum):
    """What `motet list` can list."""

    methods = "methods"
    data = "data"
    models = "models"
    recipes = "recipes"
    claims = "claims"


def _version(wanted: bool) -> None:
    if wanted:
        import motet

        typer.echo(motet.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options that come before a command."""


@app.command()
def run(
    target: Target,
    settings: Settings = None,
    seed: Seed = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="The run's folder; runs/NAME-SEED otherwise."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Run a recipe or a method, and write its report.

    A run of the same recipe that was stopped is taken up where it stopped.
    """
    from motet.commands.run import run_target

    run_target(target, settings or [], seed, out, quiet)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    quiet: Quiet = False,
) -> None:
    """Take up a run where it stopped.

    The result is the same, to the bit, as if it had never been stopped.
    """
    from motet.commands.run import resume_run

    resume_run(folder, quiet)


@app.command()
def report(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="The folder of a run; the newest in runs otherwise."),
    ] = None,
    show: Open = False,
) -> None:
    """Write the report of a run, finished or not."""
    from motet.commands.run import report_run

    report_run(folder, show)


@app.command("list")
def list_(
    what: Annotated[Listed | None, typer.Argument(metavar="[KIND]", help="One kind alone.")] = None,
) -> None:
    """List methods, data sets, models, recipes and claims."""
    from motet.commands.show import list_all

    list_all(None if what is None else what.value)


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A method, data set, model, recipe or claim.")
    ],
) -> None:
    """Show all that is known of one name.

    Of a method: paper, what travels, when to use it, deviations, hyper-parameters and claim.
    """
    from motet.commands.show import show as show_name

    show_name(name)


@app.command()
def data(
    name: Annotated[
        str,
        typer.Argument(
            metavar="DATA_OR_RECIPE",
            help="A recipe or method as in `motet run`, or a data set, which is then shared out as "
            "in the standard setting.",
        ),
    ],
    settings: Settings = None,
    seed: Seed = None,
    about: Annotated[
        str | None,
        typer.Option("--about", metavar="COLUMN", help="Count this column, not the labels."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where picture and figures go."),
    ] = None,
) -> None:
    """Preview what every site would get.

    Rows, modalities and labels as a table and a picture; nothing is trained.
    """
    from motet.commands.data import preview_target

    preview_target(name, settings or [], seed, about, out)


@app.command()
def compare(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE_OR_METHOD...", help="The arms, as in `motet run`."),
    ],
    arms: Annotated[
        list[str] | None,
        typer.Option(
            "--arm",
            metavar="NAME:FIELD=VALUE",
            help="A further arm: the first one with a change. Repeat it, with the same name for "
            "several changes in one arm.",
        ),
    ] = None,
    settings: Settings = None,
    seeds: Seeds = "0,1,2",
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="ARM", help="What others are measured against."),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="Show this metric. May be repeated."),
    ] = None,
    jobs: Jobs = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where results go; runs/compare-NAME."),
    ] = None,
) -> None:
    """Compare recipes, methods or changes over seeds.

    Prints means, spreads and differences paired by seed: all arms of a seed have the same split.
    Results that are there are not computed again.
    """
    from motet.commands.common import seeds_of
    from motet.commands.compare import compare_targets

    numbers = seeds_of(seeds or "")
    compare_targets(
        targets, arms or [], settings or [], numbers, reference, metrics or [], jobs, out
    )


@app.command()
def claim(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A claim of `motet list claims`.")],
    seeds: Seeds = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="ARM", help="Run this arm alone. May be repeated."),
    ] = None,
    jobs: Jobs = None,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write", metavar="FOLDER", help="Also write claims/NAME.md and claims.md there."
        ),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Show what was tried on the calibration seeds.")
    ] = False,
) -> None:
    """Check the claim of a method.

    Leaves with 1 when something that must come out did not.
    """
    from motet.commands.claims import calibrate_claim, check_claim
    from motet.commands.common import seeds_of

    if calibrate:
        calibrate_claim(name, jobs)
    else:
        check_claim(name, seeds_of(seeds) if seeds else None, only or [], jobs, write)


@app.command()
def claims(
    jobs: Jobs = None,
    write: Annotated[
        Path | None,
        typer.Option(
            "--write", metavar="FOLDER", help="Also write claims.md and a page for each there."
        ),
    ] = None,
) -> None:
    """Check all claims.

    Goes on where it was stopped; leaves with 1 when something that must come out did not.
    """
    from motet.commands.claims import check_all

    check_all(jobs, write)


@app.command()
def audit(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_RECIPE", help="The folder of a run, or a recipe or method as in `run`."
        ),
    ],
    settings: Settings = None,
    seeds: Seeds = None,
    site: Annotated[
        str | None, typer.Option("--site", metavar="NAME", help="Attack what this site sends.")
    ] = None,
    attacks: Annotated[
        list[str] | None,
        typer.Option("--attack", metavar="NAME", help="Try this attack alone. May be repeated."),
    ] = None,
    defences: Annotated[
        list[str] | None,
        typer.Option(
            "--defence",
            metavar="NAME[:SIZE]",
            help="Try this defence, such as noise:0.5 or none. May be repeated.",
        ),
    ] = None,
    pictures: Annotated[
        int | None, typer.Option("--pictures", metavar="N", help="Private pictures to go for.")
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option("--budget", metavar="N", help="Gradient evaluations of every attack."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--write", metavar="FOLDER", help="Where page and figures go.")
    ] = None,
) -> None:
    """Attack what the server really receives, and measure what it gives away.

    Says what was tried, on which message, what chance would give, and what was not tried.
    """
    from motet.commands.audit import audit_target
    from motet.commands.common import seeds_of

    audit_target(
        target,
        settings or [],
        seeds_of(seeds) if seeds else [],
        site=site,
        attacks=attacks or [],
        defences=defences or [],
        pictures=pictures,
        budget=budget,
        folder=out,
    )


@app.command()
def demo(
    jobs: Jobs = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="runs/demo otherwise.")
    ] = None,
    show: Open = False,
) -> None:
    """Run CreamFL beside baselines and controls.

    On real pictures and captions; takes some minutes and ends in a report.
    """
    from motet.commands.compare import run_the_demo

    run_the_demo(out, jobs, show)


@app.command()
def docs(
    out: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where pages go.")] = Path("docs"),
) -> None:
    """Write the pages that are made from the code."""
    from motet.experiment.pages import write_pages

    for path in write_pages(out):
        typer.echo(path)


app.add_typer(apart.app)


def main() -> None:
    """Runs the command line."""
    app()
