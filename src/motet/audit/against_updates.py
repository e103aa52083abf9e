"""An audit's attacks on gradients and weights, with and without every defence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from motet.audit.context import Context, last_reply, named
from motet.audit.generators import Generator, GeneratorSpec, trained_generator
from motet.audit.inversion import invert
from motet.audit.leaks import analytic_picture, infer_labels
from motet.audit.membership import figures, judge
from motet.audit.options import DefenceChoice
from motet.audit.outcome import NONE
from motet.audit.scores import label_recovery, matched, psnr, ssim
from motet.audit.tap import Seen, Tap
from motet.audit.updates import (
    Build,
    NotTriedError,
    Step,
    check_whole,
    defended,
    membership_scores,
    model_with,
    moved,
    pixels_of,
    step_of,
    upload_from,
)
from motet.audit.upload import Upload, scale_of
from motet.audit.watch import watch
from motet.core.batch import Dataset
from motet.core.errors import MotetError
from motet.core.kinds import Kind
from motet.core.tree import leaves

GRADIENT_ATTACKS = ("analytic", "dlg", "idlg", "inverting-gradients", "latent", "gifd")
SEARCHED = ("dlg", "idlg", "inverting-gradients", "latent", "gifd")
GUESSES = 200
Choice: TypeAlias = DefenceChoice | None


def invert_updates(context: Context, site: str, op: str, key: str, kind: Kind) -> None:
    """Seeks the pictures behind uploads of a site that holds a few pictures at a time."""
    wanted = [name for name in GRADIENT_ATTACKS if context.options.wants(name)]  # type: ignore[arg-type]
    if not wanted:
        return
    rows = context.options.rows
    on = f"{named(kind, site)}, {rows} picture{'s' if rows > 1 else ''} behind an upload"
    build = _builder(context)
    generator = _generator(context, build(), wanted)
    for number, data in enumerate(victims(context, site, rows)):
        context.tell(f"inverts {kind} of {site}, upload {number + 1} of {context.options.pictures}")
        tap = watch(context.experiment, context.parties, (site,), rounds=1, holding={site: data})
        seen = last_reply(tap, site, op, key)
        if seen is None:
            raise NotTriedError(f"{site} sent no {key!r} in the first round in which it was asked")
        upload = upload_from(
            step_of(seen, key, build(), context.experiment.method, len(data)), build, len(data)
        )
        truth = pixels_of(upload.model, data)
        if not number:
            context.ledger.note(described(seen, key, f"with {rows} of its pictures"))
        for choice in (None, *context.options.defences):
            _invert(context, upload, truth, data, wanted, choice, generator, on, number)


def _builder(context: Context) -> Build:
    if context.parties.build_server is None:
        raise NotTriedError("the hub has no model of its own, whose gradient it could work out")
    return context.parties.build_server


def victims(context: Context, site: str, count: int) -> Iterator[Dataset]:
    """Some of the site's labelled pictures, so many at a time."""
    data = context.spec(site).data
    if "image" not in data.columns or data.labels is None:
        raise NotTriedError(f"{site} has no labelled pictures, and texts are not inverted here")
    there = (data.present["image"] & (data.labels >= 0)).nonzero().flatten()
    order = there[torch.randperm(len(there), generator=context.rng(site, "victims"))]
    for part in order.split(count)[: context.options.pictures]:
        if len(part) == count:
            yield data.take(part)


def _generator(context: Context, model: nn.Module, wanted: list[str]) -> Generator | None:
    """A generator trained on public pictures; None where it is not wanted, or cannot be."""
    if not {"latent", "gifd"} & set(wanted):
        return None
    public = context.parties.public
    if public is None or "image" not in public.columns:
        context.ledger.miss("latent, gifd", "there are no public pictures to train a generator on")
        return None
    _, _, channels, side = scale_of(model)
    context.tell("trains a generator on the public pictures")
    spec = GeneratorSpec(side=side, channels=channels)
    return trained_generator(pixels_of(model, public), spec, context.experiment.seed)


def _invert(
    context: Context,
    upload: Upload,
    truth: Tensor,
    data: Dataset,
    wanted: list[str],
    choice: Choice,
    generator: Generator | None,
    on: str,
    number: int,
) -> None:
    """All attacks on one upload under one defence."""
    name = NONE if choice is None else choice.text
    seen = upload
    if choice is not None:
        rng = context.rng("defence", name, number)
        seen = defended(upload, choice.name, choice.amount, rng, truth)
    labels = data.labels
    assert labels is not None
    guess = _guess(context, upload.model, truth)
    found = label_recovery(infer_labels(seen), labels)
    common = float(torch.bincount(labels).max()) / len(labels) if len(labels) > 1 else 0.0
    context.ledger.add(
        "label inference", on, "labels", [100 * found],
        [100 * max(common, 1 / upload.classes)], defence=name,
    )  # fmt: skip
    for attack in wanted:
        if attack in ("latent", "gifd") and generator is None:
            continue
        try:
            made = _made(context, seen, attack, generator, (name, number))
        except MotetError as error:
            context.ledger.miss(attack, str(error))
            continue
        made = made[matched(made, truth)] if len(made) == len(truth) else made.expand_as(truth)
        _score(context, attack, on, name, truth, made, guess)


def _made(
    context: Context,
    upload: Upload,
    attack: str,
    generator: Generator | None,
    key: tuple[str, int],
) -> Tensor:
    if attack == "analytic":
        found = analytic_picture(upload)
        if found is None:
            raise NotTriedError("the model's first layer is no fully connected one with a bias")
        return found
    needs = attack in ("latent", "gifd")
    return invert(
        upload,
        attack,  # type: ignore[arg-type]
        budget=context.options.budget,
        rng=context.rng(attack, *key),
        generator=generator if needs else None,
    ).pictures


def _guess(context: Context, model: nn.Module, truth: Tensor) -> Tensor:
    """The mean public picture, or a grey one without any: one per true picture."""
    public = context.parties.public
    if public is None or "image" not in public.columns:
        return torch.full_like(truth, 0.5)
    return pixels_of(model, public).mean(dim=0, keepdim=True).expand_as(truth)


def _score(
    context: Context,
    attack: str,
    on: str,
    defence: str,
    truth: Tensor,
    made: Tensor,
    guess: Tensor,
) -> None:
    ledger = context.ledger
    values = psnr(made, truth)
    pairs: list[tuple[str, Tensor, Tensor]] = [("psnr", values, psnr(guess, truth))]
    if min(truth.shape[-2:]) > 1:
        pairs.append(("ssim", ssim(made, truth), ssim(guess, truth)))
    for figure, got, chance in pairs:
        ledger.add(attack, on, figure, got.tolist(), chance.tolist(), defence=defence)
    for picture, original, value in zip(made, truth, values.tolist(), strict=True):
        ledger.show(attack, on, defence, original, picture, value)


def members_of_updates(context: Context, site: str, op: str, key: str, kind: Kind) -> None:
    """Tells rows that a site trained on from rows that it did not, by its upload."""
    if not context.options.wants("membership"):
        return
    if site not in context.split:
        raise NotTriedError(f"{site} has too few rows to be halved, or those of one graph")
    build = _builder(context)
    on = f"{named(kind, site)}, rows of a site"
    scores = _update_scores(context, context.main, site, op, key, build)
    for choice in (None, *context.options.defences):
        if choice is None or choice.name != "soteria":
            text = NONE if choice is None else choice.text
            note_membership(context, site, on, scores(choice), text)
    control = _update_scores(context, context.control, site, op, key, build)
    note_membership(context, site, on, control(None), NONE, control=True)


def _update_scores(
    context: Context, tap: Tap, site: str, op: str, key: str, build: Build
) -> Callable[[Choice], tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """A function from a defence to the scores of members and of others."""
    seen = last_reply(tap, site, op, key)
    if seen is None:
        raise NotTriedError(f"{site} sent no {key!r} in the rounds that were watched")
    method, rows = context.experiment.method, len(context.split[site][0])
    step = step_of(seen, key, build(), method, rows)
    check_whole(step, build())
    if tap is context.main:
        context.ledger.note(described(seen, key, f"with {rows} rows"))
    known = [
        step_of(other, key, build(), method, len(context.spec(other.site).data))
        for other in tap.seen
        if (other.op, other.tag) == (op, seen.tag)
        and other.site in context.strangers_to(site)
        and key in other.reply
    ]
    mine, theirs = context.tested(site)

    def scores(choice: Choice) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        chosen = None if choice is None else (choice.name, choice.amount)
        target = moved(step, build, chosen, context.rng(site, "defence of an update"))
        others = [_other(context, item, build, choice, i) for i, item in enumerate(known)]
        before = model_with(build, step.sent)
        both = [membership_scores(target, before, others, rows) for rows in (mine, theirs)]
        return both[0], both[1]

    return scores


def _other(context: Context, step: Step, build: Build, choice: Choice, number: int) -> nn.Module:
    chosen = None if choice is None else (choice.name, choice.amount)
    return moved(step, build, chosen, context.rng("defence of another update", number))


def note_membership(
    context: Context,
    site: str,
    on: str,
    scores: tuple[dict[str, Tensor], dict[str, Tensor]],
    defence: str,
    *,
    control: bool = False,
) -> None:
    """Notes what membership scores of members and of others come to, beside chance."""
    members, others = scores
    count = len(next(iter(members.values())))
    if not control and defence == NONE:
        context.ledger.note(f"{site}: {count} members and as many others, by its {on.split()[0]}")
    for attack, mine in members.items():
        theirs = others[attack]
        found = judge(mine, theirs, context.rng(site, attack, "bootstrap"))
        chance = guessed(found.rows, context.rng(site, "guess"))
        for figure in ("auc", "advantage", "hits"):
            context.ledger.add(
                attack, on, figure,
                [getattr(found, figure)], [chance[figure]],
                defence=defence, control=control, interval=found.intervals[figure],
            )  # fmt: skip


def guessed(rows: int, rng: torch.Generator) -> dict[str, float]:
    """What random scores of so many members and others come to on average."""
    found: list[dict[str, float]] = []
    for _ in range(GUESSES):
        found.append(figures(torch.rand(rows, generator=rng), torch.rand(rows, generator=rng)))
    mean = {name: sum(item[name] for item in found) / GUESSES for name in found[0]}
    return {**mean, "auc": 0.5}


def described(seen: Seen, key: str, holding: str) -> str:
    """One reply in words: whose, which, how much."""
    value: Any = seen.reply[key]
    sizes = [leaf.numel() for _, leaf in leaves({key: value}) if isinstance(leaf, Tensor)]
    kind = seen.sends.get(key, "")
    return (
        f"{seen.site} {holding}: its answer to {seen.op!r} in round {seen.round}, {kind} of "
        f"{sum(sizes):,} numbers, as they arrived"
    )
