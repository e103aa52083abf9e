"""Attacks against defences: what whoever runs the hub can make of what really arrives.

    python benchmarks/audit.py docs/audit.md

Audits FedSGD and FedAvg on digits and CreamFL on emoji, three seeds each, and writes the tables as
one page, and each audit with its pictures beside it. Some ten minutes on two cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from motet.audit import AuditOptions, AuditResult, audit, markdown, write_audit
from motet.core.store import write_atomic
from motet.experiment.targets import load_experiment

SEEDS = (0, 1, 2)
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fedsgd-digits": ("digits-skew", ("title=FedSGD on digits", "method=fedsgd")),
    "fedavg-digits": ("digits-skew", ("title=FedAvg on digits",)),
    "creamfl-emoji": ("creamfl-emoji", ()),
}
INTRODUCTION = """\
# What an audit finds

    {command}

`motet audit` takes replies off the line as whoever runs the hub receives them and attacks them,
with and without defences. Each table has chance beside it: for pictures the mean public one, for
members a guess, and a control in which the site never saw the rows. Figures are means over seeds
{seeds} and their standard deviation between seeds.

How to read it: gradients and weights are those of a site that holds a single picture, the worst
case; representations are those of the public rows, of which a quarter is taken for unknown to the
hub. Defences are put on what arrived: `noise:A` of A times its length, `clipping:B` to a length of
B, `sparsification:P` sets the smallest P % to 0. Clipping does nothing to rows of unit length.

"""


def main() -> None:
    """Runs the audits, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="the page, such as docs/audit.md")
    parser.add_argument("--out", type=Path, default=Path("runs/audit"), help="where audits go")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--budget", type=int, default=300, help="gradients per inversion")
    parser.add_argument("--pictures", type=int, default=2, help="pictures per seed")
    parser.add_argument("--only", choices=ARMS, action="append", help="these audits alone")
    given = parser.parse_args()
    options = AuditOptions(seeds=tuple(given.seeds), budget=given.budget, pictures=given.pictures)
    parts = [markdown(_audit(name, options, given.out)) for name in given.only or ARMS]
    seeds = ", ".join(map(str, given.seeds))
    head = INTRODUCTION.format(command=f"python benchmarks/audit.py {given.page}", seeds=seeds)
    limits = "\n".join(["## What these figures do not show", "", *_limits()])
    write_atomic(given.page, "\n".join([head + parts[0], *parts[1:], limits, ""]).encode())
    print(given.page)


def _audit(name: str, options: AuditOptions, folder: Path) -> AuditResult:
    recipe, settings = ARMS[name]
    result = audit(load_experiment(recipe, settings), options, tell=print)
    print(write_audit(result, folder / name), f"{result.seconds:.0f} s")
    return result


def _limits() -> list[str]:
    from motet.audit.run import LIMITS

    return [f"- {text}" for text in LIMITS]


if __name__ == "__main__":
    main()
