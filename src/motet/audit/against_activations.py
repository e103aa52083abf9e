"""An audit's attack on activations: the way back, learnt from a pretended site's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from motet.audit.against_rows import small_pictures
from motet.audit.against_updates import described, victims
from motet.audit.context import Context, named
from motet.audit.exchanges import defended_rows
from motet.audit.outcome import NONE
from motet.audit.representations import mean_picture, pictures_from
from motet.audit.scores import psnr, ssim
from motet.audit.tap import Seen, Tap
from motet.audit.updates import NotTriedError, visible
from motet.audit.watch import watch
from motet.core.batch import Dataset
from motet.core.kinds import Kind
from motet.core.messages import Request
from motet.core.middleware import pack_all
from motet.core.site import SiteSpec
from motet.engines.serial import Serial
from motet.experiment.runner import protection_of

MOST_AUXILIARY = 200


def read_activations(context: Context, site: str, op: str, key: str, kind: Kind) -> None:
    """Draws the one picture that a site holds from the first activations that it sends.

    Whoever runs the hub knows what it sent the site, and asks the same of a site that it plays
    itself, with pictures of its own: from what those give it learns the way back.
    """
    if not context.options.wants("decoder"):
        return
    auxiliary, whose = _auxiliary(context)
    pictures = small_pictures(auxiliary)
    on = f"{named(kind, site)}, 1 picture of a site, learnt from {len(auxiliary)} {whose}"
    for number, data in enumerate(victims(context, site, 1)):
        context.tell(f"draws from {kind} of {site}, picture {number + 1}")
        tap = watch(context.experiment, context.parties, (site,), rounds=1, holding={site: data})
        history = _until(tap.of(site), op, key)
        seen = history[-1]
        if not number:
            context.ledger.note(described(seen, key, "with one of its pictures"))
        known = _played(context, site, history, key, auxiliary)
        sent = _flat(visible(seen, key))
        if sent.shape[1] != known.shape[1]:
            raise NotTriedError("activations of different pictures differ in size")
        truth = small_pictures(data)
        guess = mean_picture(pictures, 1)
        for choice in (None, *context.options.defences):
            defence = NONE if choice is None else choice.text
            if choice is None:
                ours, theirs = known, sent
            elif choice.name == "soteria":
                continue
            else:
                rng = context.rng("activations", choice.text, number)
                ours = defended_rows(known, choice.name, choice.amount, rng)
                theirs = defended_rows(sent, choice.name, choice.amount, rng)
            made = pictures_from(ours, pictures, theirs)
            for figure, score in (("psnr", psnr), ("ssim", ssim)):
                values, chance = score(made, truth).tolist(), score(guess, truth).tolist()
                context.ledger.add("decoder", on, figure, values, chance, defence=defence)
            shown = float(psnr(made, truth)[0])
            context.ledger.show("decoder", on, defence, truth[0], made[0], shown)


def _auxiliary(context: Context) -> tuple[Dataset, str]:
    """Pictures that the hub has anyway, or else those that nobody trains on."""
    public, test = context.parties.public, context.parties.test
    data, whose = (test, "test pictures") if public is None else (public, "public pictures")
    if "image" not in data.columns:
        raise NotTriedError("the hub has no pictures to learn the way back from")
    order = torch.randperm(len(data), generator=context.rng("auxiliary"))
    return data.take(order[:MOST_AUXILIARY]), whose


def _until(found: Sequence[Seen], op: str, key: str) -> list[Seen]:
    """All that passed up to the first reply of this operation with this key."""
    for number, item in enumerate(found):
        if item.op == op and key in item.reply:
            return list(found[: number + 1])
    raise NotTriedError(f"no {key!r} was sent in the round that was watched")


def _played(
    context: Context, site: str, history: Sequence[Seen], key: str, auxiliary: Dataset
) -> Tensor:
    """What a site that is played by the hub gives for each of these rows: [n, d]."""
    spec = context.spec(site)
    data = auxiliary.only(spec.data.modalities)
    rows = [
        _flat(_answer(context, SiteSpec(site, data.take([i]), None, spec.build), history, key))
        for i in range(len(data))
    ]
    return torch.cat(rows)


def _answer(context: Context, spec: SiteSpec, history: Sequence[Seen], key: str) -> Tensor:
    experiment = context.experiment
    method, protection = experiment.method, protection_of(experiment, context.parties)
    engine = Serial(
        [spec], method, seed=experiment.seed, public=context.parties.public, protection=protection
    )
    tap = Tap(engine, method, protection=protection)
    operations = method.operations()
    for item in history:
        packed = pack_all(protection.middleware, item.sent, operations[item.op].takes)
        tap.send([Request(spec.name, item.op, item.tag, item.round, packed)])
        reply = tap.recv()
        if reply is None or reply.error is not None:
            reason = "no answer" if reply is None else reply.error
            raise NotTriedError(f"a site that the hub plays itself fails: {reason}")
    value: Tensor = visible(tap.seen[-1], key)
    return value


def _flat(value: Tensor) -> Tensor:
    if value.ndim < 2 or len(value) != 1:
        raise NotTriedError("the activations are not those of the one picture alone")
    return value.float().flatten(1)
