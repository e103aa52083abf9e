"""An audit's attacks on representations and class scores of public rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.audit.against_updates import described, note_membership
from motet.audit.context import Context, last_reply, named
from motet.audit.exchanges import (
    Copy,
    copy_of,
    copy_scores,
    defended_rows,
    features_of,
    rows_sent,
    split_rows,
)
from motet.audit.options import DefenceChoice
from motet.audit.outcome import NONE
from motet.audit.representations import (
    mean_picture,
    nearest_pictures,
    nearest_texts,
    overlap,
    pictures_from,
    ranks_among,
)
from motet.audit.scores import psnr, ssim
from motet.audit.tap import Seen, Tap
from motet.audit.updates import NotTriedError
from motet.core.batch import Dataset
from motet.core.kinds import Kind

MOST_SIDE = 32
Choice = DefenceChoice | None


def read_rows(context: Context, site: str, op: str, key: str, kind: Kind) -> None:
    """Makes pictures, or recognises texts, from what a site sent for rows held to be unknown."""
    modality = modality_of(context, site, key)
    attack = "retrieval" if modality == "text" else "decoder"
    if not context.options.wants(attack):  # type: ignore[arg-type]
        return
    seen = last_reply(context.main, site, op, key)
    if seen is None:
        raise NotTriedError(f"{site} sent no {key!r} in the rounds that were watched")
    values, public = rows_sent(seen, key, context.parties.public)
    known, unknown = split_rows(len(values), context.rng(site, key, "known"))
    context.tell(f"reads {kind} of {site}")
    context.ledger.note(described(seen, key, f"for {len(values)} public rows"))
    on = f"{named(kind, site)}, public {modality}s taken for unknown"
    for choice in _choices(context):
        sent = _sent(context, values, choice, key)
        if modality == "text":
            _recognise(context, site, on, sent, public, known, unknown, choice)
        else:
            _draw(context, on, sent, public, known, unknown, choice)


def modality_of(context: Context, site: str, key: str) -> str:
    """Of which modality a key's rows are: the one of its name, or the only one of the site."""
    held = context.spec(site).data.modalities
    if key in held:
        return key
    if len(held) > 1 or held[0] not in ("image", "text"):
        raise NotTriedError(f"{key!r} is of no modality that could be drawn or read")
    return held[0]


def _choices(context: Context) -> Sequence[Choice]:
    """No defence, and all that are meant for what is sent for rows."""
    return (None, *(item for item in context.options.defences if item.name != "soteria"))


def _sent(context: Context, values: Tensor, choice: Choice, key: str) -> Tensor:
    if choice is None:
        return values
    return defended_rows(values, choice.name, choice.amount, context.rng(key, choice.text))


def _draw(
    context: Context,
    on: str,
    sent: Tensor,
    public: Dataset,
    known: Tensor,
    unknown: Tensor,
    choice: Choice,
) -> None:
    pictures = small_pictures(public)
    truth = pictures[unknown]
    made = {
        "decoder": pictures_from(sent[known], pictures[known], sent[unknown]),
        "nearest known picture": nearest_pictures(sent[known], pictures[known], sent[unknown]),
    }
    guess = mean_picture(pictures[known], len(truth))
    defence = NONE if choice is None else choice.text
    for attack, found in made.items():
        for figure, score in (("psnr", psnr), ("ssim", ssim)):
            values, chance = score(found, truth).tolist(), score(guess, truth).tolist()
            context.ledger.add(attack, on, figure, values, chance, defence=defence)
    shown = zip(truth, made["decoder"], psnr(made["decoder"], truth).tolist(), strict=True)
    for original, picture, value in list(shown)[: context.options.pictures]:
        context.ledger.show("decoder", on, defence, original, picture, value)


def small_pictures(data: Dataset) -> Tensor:
    """A data set's pictures in 0..1, at most 32 pixels wide and high: [n, c, h, w]."""
    column = data.columns["image"]
    if not isinstance(column, Tensor):
        raise NotTriedError("these pictures are no tensors")
    pictures = column.float() / 255 if column.dtype == torch.uint8 else column.float()
    side = max(pictures.shape[-2:])
    if side > MOST_SIDE:
        pictures = F.interpolate(pictures, scale_factor=MOST_SIDE / side, mode="area")
    return pictures


def _recognise(
    context: Context,
    site: str,
    on: str,
    sent: Tensor,
    public: Dataset,
    known: Tensor,
    unknown: Tensor,
    choice: Choice,
) -> None:
    texts = public.columns["text"]
    assert isinstance(texts, tuple)
    model = _model(context, site)
    features = features_of(model, public, "text")
    others = features_of(model, context.parties.test, "text")
    candidates = torch.cat([features[unknown], others])
    if choice is None:
        context.ledger.note(f"{site}: each text sought among {len(candidates)}")
    ranks = ranks_among(sent[known], features[known], sent[unknown], candidates)
    defence = NONE if choice is None else choice.text
    found = (100.0 * (ranks == 1)).tolist()
    context.ledger.add(
        "retrieval", on, "found", found,
        [100 / len(candidates)], defence=defence,
    )  # fmt: skip
    known_texts, truth = [texts[i] for i in known.tolist()], [texts[i] for i in unknown.tolist()]
    near = nearest_texts(sent[known], known_texts, sent[unknown])
    drawn = torch.randint(len(known), (len(unknown),), generator=context.rng("guess"))
    guess = [known_texts[i] for i in drawn.tolist()]
    context.ledger.add(
        "nearest known text", on, "overlap",
        [100 * overlap(a, b) for a, b in zip(near, truth, strict=True)],
        [100 * overlap(a, b) for a, b in zip(guess, truth, strict=True)], defence=defence,
    )  # fmt: skip


def members_of_rows(context: Context, site: str, op: str, keys: Sequence[str], kind: Kind) -> None:
    """Tells a site's private rows from others by a copy of its model, learnt from public rows."""
    if not context.options.wants("membership"):
        return
    if site not in context.split:
        raise NotTriedError(f"{site} has too few rows to be halved, or those of one graph")
    on = f"{named(kind, site)}, private rows of a site"
    context.tell(f"looks for members in {kind} of {site}")
    for choice in _choices(context):
        scores = _row_scores(context, context.main, site, op, keys, kind, choice)
        note_membership(context, site, on, scores, NONE if choice is None else choice.text)
    scores = _row_scores(context, context.control, site, op, keys, kind, None)
    note_membership(context, site, on, scores, NONE, control=True)


def _row_scores(
    context: Context,
    tap: Tap,
    site: str,
    op: str,
    keys: Sequence[str],
    kind: Kind,
    choice: Choice,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Attack -> scores of members, and of others."""
    seen = last_reply(tap, site, op, keys[0])
    if seen is None:
        raise NotTriedError(f"{site} sent no {keys[0]!r} in the rounds that were watched")
    names = {key: modality_of(context, site, key) for key in keys if key in seen.reply}
    target = _copy(context, site, seen, names, kind, choice)
    strangers = context.strangers_to(site)
    others = [
        _copy(context, other.site, other, names, kind, choice)
        for other in tap.seen
        if (other.op, other.tag) == (op, seen.tag)
        and other.site in strangers
        and set(names) <= set(other.reply)
    ]
    found: list[dict[str, Tensor]] = []
    for rows in context.tested(site):
        model = _model(context, site)
        features = {key: features_of(model, rows, modality) for key, modality in names.items()}
        found.append(copy_scores(target, others, features, rows.labels))
    return found[0], found[1]


def _copy(
    context: Context, site: str, seen: Seen, names: dict[str, str], kind: Kind, choice: Choice
) -> Copy:
    sent, features = {}, {}
    model = _model(context, site)
    for key, modality in names.items():
        values, public = rows_sent(seen, key, context.parties.public)
        sent[key] = (_sent(context, values, choice, f"{seen.site} {key}"), public)
        features[key] = features_of(model, public, modality)
    return copy_of(sent, features, kind == Kind.LOGITS)


def _model(context: Context, site: str) -> nn.Module:
    build = context.spec(site).build
    if build is None:
        raise NotTriedError(f"{site} has no model")
    return build()
