"""The commands of parties that are apart; whatever one needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from motet.commands.options import Settings, Target

app = typer.Typer()


@app.command()
def site(
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="What the site is.")
    ] = Path("site.yaml"),
    yes: Annotated[
        str | None, typer.Option("--yes", metavar="ID", help="Let this waiting question through.")
    ] = None,
    no: Annotated[
        str | None, typer.Option("--no", metavar="ID", help="Refuse this waiting question.")
    ] = None,
    stop: Annotated[
        bool, typer.Option("--stop", help="Stop the agent that runs, after what it is doing.")
    ] = False,
) -> None:
    """Run a site's agent beside its data, until it is stopped.

    It answers the recipe's operations and nothing else, and writes down all that leaves.
    """
    from motet.commands.site import serve_site

    serve_site(config, yes, no, stop)


@app.command()
def status(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILES]",
            help="site.yaml, hub.yaml, their folders, or sockets; those here otherwise.",
        ),
    ] = None,
) -> None:
    """Say who is there, what they do, since when, and what they wait for.

    Leaves with 1 when somebody does not answer.
    """
    from motet.commands.status import show_status

    show_status(files or [])


@app.command()
def hub(
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="What the hub runs.")
    ] = Path("hub.yaml"),
) -> None:
    """Run, or go on with, a recipe whose sites are elsewhere.

    Through Flower or NVFlare, as its folder was made for; shows rounds, and who is waited for.
    """
    from motet.commands.hub import hub as run_the_hub

    run_the_hub(config)


deploy = typer.Typer(
    help="Write what every party of a deployment needs, and check it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(deploy, name="deploy")
Hub = Annotated[
    str,
    typer.Option(
        "--hub", metavar="HOST[:PORT]", help="Where sites reach the hub; its certificate says so."
    ),
]
Parties = Annotated[
    Path, typer.Option("--out", metavar="FOLDER", help="Gets a folder for every party.")
]
Sites = Annotated[
    list[str] | None,
    typer.Option("--site", metavar="NAME", help="Check that the recipe has these and no others."),
]
Days = Annotated[
    int, typer.Option("--days", metavar="N", min=1, help="How long certificates are valid.")
]


@deploy.command("flower")
def deploy_flower(
    recipe: Target,
    hub: Hub,
    out: Parties,
    sites: Sites = None,
    settings: Settings = None,
    days: Days = 365,
) -> None:
    """Write a folder for every party, with Flower as the courier."""
    from motet.commands.deploy import deploy as write

    write("flower", recipe, hub, out, sites=sites or [], settings=settings or [], days=days)


@deploy.command("nvflare")
def deploy_nvflare(
    recipe: Target,
    hub: Hub,
    out: Parties,
    sites: Sites = None,
    settings: Settings = None,
    days: Days = 365,
) -> None:
    """Write a folder for every party, with NVFlare as the courier."""
    from motet.commands.deploy import deploy as write

    write("nvflare", recipe, hub, out, sites=sites or [], settings=settings or [], days=days)


@deploy.command("check")
def deploy_check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A party's folder.")],
) -> None:
    """Look at a party's folder before the start.

    Keys, certificates, versions, ports, clocks, and whether the hub is reached; says what to do.
    """
    from motet.commands.deploy import check_folder

    check_folder(folder)
