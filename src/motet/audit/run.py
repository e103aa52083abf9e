"""The audit of a recipe or of a run: what whoever runs the hub can make of what really arrives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from motet.audit.against_activations import read_activations
from motet.audit.against_rows import members_of_rows, read_rows
from motet.audit.against_updates import invert_updates, members_of_updates
from motet.audit.context import Context, Tell
from motet.audit.exchanges import ROWS
from motet.audit.inversion import NOT_TRIED
from motet.audit.options import ATTACKS, AuditOptions, Ledger
from motet.audit.outcome import AuditResult, joined
from motet.audit.tap import REAL
from motet.audit.updates import UPDATES
from motet.audit.watch import audited_sites
from motet.core.errors import ConfigError, MotetError
from motet.core.kinds import Kind
from motet.experiment.build import build_parties
from motet.experiment.runner import RECIPE
from motet.experiment.spec import Experiment, method_name, parse_experiment, read_recipe

# What is sent in numbers, and not attacked here.
WITHOUT = {
    Kind.VOTES: "no attack on votes exists here",
    Kind.SKETCH: "no attack on sketches exists here",
    Kind.SYNTHETIC: "no attack on synthetic rows exists here",
    Kind.CONTROL: "no attack on control values exists here",
    Kind.LABELS: "they are told openly, and need no attack",
}
LIMITS = (
    "An attack that fails shows that this attack fails with this budget, and no more: a first "
    "layer with a bias gives a single picture away exactly, whatever a search comes to.",
    "Budgets are small, pictures and models are small; larger ones are attacked with more time.",
    "The attacks know of the defences in the table, but not of the recipe's own protection: one "
    "made for it may do better.",
    "The one who attacks reads honestly what arrives and follows the protocol: a hub that sends "
    "crafted weights, or sites that read the hub's model, were not tried.",
    "A defence of this table is put on what arrived, as if the site had used it in this round "
    "alone; its price in accuracy is not measured here, and no epsilon follows from these figures.",
    "Membership is tested on a random half of a site's rows, so that the site holds half of its "
    "rows in these runs; with fewer rows it remembers them rather better.",
)


def audit(
    target: Experiment | Path | str,
    options: AuditOptions | None = None,
    *,
    tell: Tell = lambda text: None,
) -> AuditResult:
    """Attacks what the hub of this recipe really receives, with and without defences.

    target: an experiment, or the folder of a run, whose recipe is then run again; nothing in the
    folder changes. tell: called with a line about every step. Raises ConfigError.
    """
    wanted = options or AuditOptions()
    experiment = target if isinstance(target, Experiment) else recipe_of(Path(target))
    results = []
    for seed in wanted.seeds or (experiment.seed,):
        again = experiment.model_copy(update={"seed": seed})

        def told(text: str, seed: int = seed) -> None:
            tell(f"seed {seed}: {text}")

        results.append(_audit(again, wanted, told))
    return joined(results)


def recipe_of(folder: Path) -> Experiment:
    """The experiment of the run in this folder; raises ConfigError when there is none."""
    path = folder / RECIPE
    if not path.exists():
        raise ConfigError(f"there is no run in {folder}: it has no {RECIPE}; write a run's folder")
    return parse_experiment(read_recipe(path), str(path))


def _audit(experiment: Experiment, options: AuditOptions, tell: Tell) -> AuditResult:
    started = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(experiment.engine.threads)
    try:
        tell("sets the parties up")
        parties = build_parties(experiment)
        experiment.method.check(parties.facts)
        sites = audited_sites(experiment, parties, options.site)
        context = Context(experiment, parties, options, sites, Ledger(experiment.seed), tell)
        _attack(context)
    finally:
        torch.set_num_threads(threads)
    return _result(context, time.perf_counter() - started)


def _attack(context: Context) -> None:
    """Every attack that fits on every key that a site of each population sends."""
    for site in context.sites:
        for op, keys, kind in _sent(context):
            if kind in UPDATES:
                for key in keys:
                    _try(context, site, f"pictures behind {kind}", invert_updates, op, key, kind)
                    _try(context, site, f"members in {kind}", members_of_updates, op, key, kind)
            elif kind in ROWS:
                held = [key for key in keys if _of(context, site, key)]
                for key in held:
                    _try(context, site, f"rows behind {kind} {key!r}", read_rows, op, key, kind)
                if held:
                    _try(context, site, f"members in {kind}", members_of_rows, op, held, kind)
            elif kind == Kind.ACTIVATIONS:
                for key in keys:
                    _try(context, site, f"pictures behind {kind}", read_activations, op, key, kind)
            elif kind in WITHOUT:
                context.ledger.miss(f"{kind} ({', '.join(keys)})", WITHOUT[kind])
    if not any(kind in REAL | WITHOUT.keys() for _, _, kind in _sent(context)):
        name = type(context.experiment.method).__name__
        context.ledger.miss("everything", f"nothing but metrics leaves a site of {name}")


def _sent(context: Context) -> Iterator[tuple[str, list[str], Kind]]:
    """(operation, keys of one kind, that kind), for all that sites send."""
    for op, operation in context.experiment.method.operations().items():
        for kind in dict.fromkeys(operation.sends.values()):
            yield op, [key for key, of in operation.sends.items() if of == kind], kind


def _of(context: Context, site: str, key: str) -> bool:
    """Whether a key that is named after a modality can come from this site."""
    return key not in ("image", "text") or key in context.spec(site).data.modalities


def _try(
    context: Context, site: str, what: str, attack: Callable[..., None], *arguments: Any
) -> None:
    """One attack; what does not apply, or breaks down, is noted with its reason."""
    try:
        attack(context, site, *arguments)
    except MotetError as error:
        op, key, _ = arguments
        named = key if isinstance(key, str) else ", ".join(key)
        context.ledger.miss(f"{what} ({op}: {named})", str(error))


def _result(context: Context, seconds: float) -> AuditResult:
    experiment, options, ledger = context.experiment, context.options, context.ledger
    kinds = {kind for _, _, kind in _sent(context)}
    for name in NOT_TRIED if kinds & UPDATES else ():
        ledger.miss(name, "there is no code for it here")
    left_out = [name for name in ATTACKS if not options.wants(name)]
    if left_out:
        ledger.miss(", ".join(left_out), "left out by the options of this audit")
    texts = any("text" in context.spec(site).data.columns for site in context.sites)
    if texts and kinds & UPDATES:
        ledger.miss("texts behind gradients", "pictures alone are inverted here")
    return AuditResult(
        title=experiment.title or type(experiment.method).__name__,
        method=method_name(experiment.method),
        seeds=(experiment.seed,),
        protection=protection_of(experiment),
        defences=tuple(choice.text for choice in options.defences),
        seen=tuple(f"seed {experiment.seed}: {text}" for text in ledger.seen),
        cells=tuple(ledger.cells.values()),
        shots=tuple(ledger.shots),
        gaps=tuple(ledger.gaps),
        limits=LIMITS,
        options=options.model_dump(mode="json"),
        seconds=seconds,
    )


def protection_of(experiment: Experiment) -> tuple[str, ...]:
    """What the recipe itself puts between sites and hub, and whom that does not keep out."""
    set_to = experiment.protect.model_dump(mode="json", exclude_defaults=True)
    told = [f"protect.{name}: {_words(value)}" for name, value in set_to.items()]
    privacy = experiment.protect.privacy
    if privacy is not None and privacy.mode == "central" and experiment.protect.secure_sum is None:
        told.append(
            "central noise is added at the hub and trusts it: whoever runs the hub reads each "
            "answer without that noise, and so did this audit"
        )
    return tuple(told)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items()) or "on"
    return str(value)
