"""`motet audit`: attacks on what whoever runs the hub really receives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from motet.audit.options import ATTACKS, AuditOptions
from motet.audit.outcome import NONE, AuditResult
from motet.audit.report import by_target, sentences, write_audit
from motet.audit.run import audit
from motet.commands.common import RUNS, notes, out, result, say, table
from motet.core.errors import ConfigError
from motet.experiment.explain import explain
from motet.experiment.runner import RECIPE
from motet.experiment.spec import read_recipe
from motet.experiment.targets import Target, find_target


def audit_target(
    target: str,
    settings: Sequence[str],
    seeds: Sequence[int],
    *,
    site: str | None,
    attacks: Sequence[str],
    defences: Sequence[str],
    pictures: int | None,
    budget: int | None,
    folder: Path | None,
) -> None:
    """Audits a run's folder, a recipe or a method; prints tables and writes page and figures.

    seeds: none for the recipe's own. Values that are None take the defaults of ``AuditOptions``.
    """
    found, run_folder = named(target)
    experiment = found.changed(settings).experiment()
    options = audit_options(site, attacks, defences, pictures, budget, seeds)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=notes(),
        transient=True,
    ) as progress:
        task = progress.add_task(f"audits {found.name}", total=None)
        outcome = audit(
            experiment, options, tell=lambda text: progress.update(task, description=text)
        )
    print_audit(outcome)
    where = folder or run_folder or RUNS / f"{found.name}-{experiment.seed}-audit"
    result(f"report: {write_audit(outcome, where)}")


def named(target: str) -> tuple[Target, Path | None]:
    """The recipe of a run's folder, with the folder, or whatever `motet run` would take."""
    folder = Path(target)
    if folder.is_dir():
        path = folder / RECIPE
        if not path.exists():
            raise ConfigError(f"there is no run in {folder}: it has no {RECIPE}")
        return Target(folder.name, read_recipe(path), str(path)), folder
    return find_target(target), None


def audit_options(
    site: str | None,
    attacks: Sequence[str],
    defences: Sequence[str],
    pictures: int | None,
    budget: int | None,
    seeds: Sequence[int],
) -> AuditOptions:
    """The options; raises ConfigError that names the one which does not fit.

    defences: "none" for no defence at all.
    """
    strange = [name for name in attacks if name not in ATTACKS]
    if strange:
        raise ConfigError(
            f"--attack {strange[0]!r}: there is no such attack; write one of {', '.join(ATTACKS)}"
        )
    values: dict[str, object] = {"site": site, "attacks": tuple(attacks), "seeds": tuple(seeds)}
    if defences:
        values["defences"] = tuple(name for name in defences if name != NONE)
    for name, number in (("pictures", pictures), ("budget", budget)):
        if number is not None:
            values[name] = number
    try:
        return AuditOptions.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, "", AuditOptions)) from None


def print_audit(outcome: AuditResult) -> None:
    """Prints tables, then what was not tried."""
    defences = (NONE, *outcome.defences)
    numbers = ("chance", "no defence", *outcome.defences)
    for on, rows in by_target(outcome):
        shown = table(on[:1].upper() + on[1:], ("attack", "figure", *numbers), right=numbers)
        last = ""
        for row in rows:
            name = f"{row.attack} (control)" if row.control else row.attack
            cells = [row.told(defence) for defence in defences]
            shown.add_row("" if name == last else name, row.name, row.guess, *cells)
            last = name
        out().print(shown)
    for text in sentences(outcome):
        result(text)
    missing = table("Not tried", ("what", "why"))
    for gap in outcome.gaps:
        missing.add_row(gap.what, gap.why)
    out().print(missing)
    for text in outcome.limits:
        say(text)
