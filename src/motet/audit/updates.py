"""Attacks on uploaded gradients and weights: pictures sought behind them, members told by loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from motet.audit.defences import add_noise, clip, soteria, sparsify
from motet.audit.membership import (
    calibrated_scores,
    likelihood_scores,
    losses,
    threshold_scores,
)
from motet.audit.tap import Seen
from motet.audit.upload import DefenceName, Local, Upload, gradients_of_update, scale_of
from motet.core.batch import Dataset
from motet.core.errors import MotetError
from motet.core.kinds import Kind
from motet.core.method import Method
from motet.core.tree import load
from motet.methods.local import LocalSGD

UPDATES = frozenset({Kind.GRADIENTS, Kind.WEIGHTS})
Build: TypeAlias = Callable[[], nn.Module]


class NotTriedError(MotetError):
    """An attack that does not apply to this upload; the message says why."""


@dataclass(frozen=True)
class Step:
    """From the weights that a site was sent to those that it sent: one vector, and how it came.

    sent: weights by name. gradients: parameter name -> mean gradient, so that the site's weights
    are sent - rate * gradients. buffers: what else of the model the site sent, such as statistics.
    local: how several steps were taken; None for a single one.
    """

    sent: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    rate: float
    buffers: Mapping[str, Tensor]
    local: Local | None = None


def step_of(seen: Seen, key: str, model: nn.Module, method: Method, rows: int) -> Step:
    """What the hub learns from this reply; raises NotTriedError for one that is no update."""
    value = visible(seen, key)
    known = dict(model.named_parameters())
    sent = sent_weights(seen, known)
    named = {name: item for name, item in value.items() if name in known}
    if not named or any(item.shape != known[name].shape for name, item in named.items()):
        raise NotTriedError(f"{key!r} holds no weights of the model that the hub itself has")
    if seen.sends[key] == Kind.GRADIENTS:
        # A hub that takes the step itself has a rate of its own.
        return Step(sent, named, float(getattr(method, "lr", 0.1)), {})
    local = getattr(method, "local", None)
    if not isinstance(local, LocalSGD):
        raise NotTriedError(
            f"{type(method).__name__} does not train by plain SGD, whose steps these attacks "
            "imitate"
        )
    rate, steps = local.rate(seen.round), local.count(rows)
    if steps < 1:
        raise NotTriedError("the site takes no local step, and its update is 0")
    gradients = gradients_of_update(sent, named, rate, steps)
    buffers = {name: item for name, item in value.items() if name not in known}
    taken = Local(rate, steps, min(local.batch, rows)) if steps > 1 else None
    return Step(sent, gradients, rate * steps, buffers, taken)


def visible(seen: Seen, key: str) -> Any:
    """The value under this key; raises NotTriedError where the hub cannot read it by itself."""
    kind = seen.sends.get(key, "")
    if seen.problem:
        raise NotTriedError(f"the reply could not be read: {seen.problem}")
    if key not in seen.reply or seen.masked(key):
        raise NotTriedError(
            f"no individual upload of {kind} is visible to the server: what a site sends is "
            "masked, and only the sum over sites can be read"
        )
    value = seen.reply[key]
    if not isinstance(value, dict | Tensor):
        raise NotTriedError(f"{key!r} is neither a tensor nor named ones")
    return value


def sent_weights(seen: Seen, known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's weights as the site was sent them: the part of the question that names them."""
    for value in seen.sent.values():
        if isinstance(value, dict) and any(name in known for name in value):
            return {name: item for name, item in value.items() if isinstance(item, Tensor)}
    raise NotTriedError("the hub sends no weights along, so that no gradient can be worked out")


def upload_from(step: Step, build: Build, rows: int) -> Upload:
    """The step as the inversion attacks take it, of a site with so many labelled pictures."""
    model = model_with(build, step.sent)
    mean, std, channels, side = scale_of(model)
    head: Any = model.head
    image = (channels, side, side)
    return Upload(
        step.gradients, model, rows, image, head.out_features, None, mean, std, step.local
    )  # fmt: skip


def model_with(build: Build, weights: Mapping[str, Tensor]) -> nn.Module:
    """A fresh model with these weights, in eval mode."""
    model = build()
    load(model, dict(weights), partial=True)
    return model.eval()


def pixels_of(model: nn.Module, data: Dataset) -> Tensor:
    """The pictures as the model reads them, in 0..1: [n, C, H, W]."""
    mean, std, _, _ = scale_of(model)
    prepare: Any = model.prepare
    pixels: Tensor = prepare(data.only(["image"])).columns["image"]
    return (pixels * std + mean).clamp(0, 1)


def defended(
    upload: Upload,
    name: DefenceName,
    amount: float,
    rng: torch.Generator,
    pixels: Tensor | None = None,
) -> Upload:
    """The upload as it would have arrived from a site with this defence."""
    if name == "noise":
        return add_noise(upload, amount, rng)
    if name == "clipping":
        return clip(upload, amount)
    if name == "sparsification":
        return sparsify(upload, amount)
    if pixels is None:
        raise NotTriedError("Soteria is a defence of pictures, and these are none")
    return soteria(upload, amount, pixels)


def moved(
    step: Step, build: Build, defence: tuple[DefenceName, float] | None, rng: torch.Generator
) -> nn.Module:
    """The site's model as the hub can work it out from the upload, defended or not."""
    gradients: Mapping[str, Tensor] = step.gradients
    if defence is not None:
        # Only names and shapes count here: a membership test has no pictures to look for.
        bare = Upload(gradients, model_with(build, step.sent), 1, (1, 1, 1), 1)
        gradients = defended(bare, *defence, rng).gradients
    weights = {
        name: value - step.rate * gradients[name] if name in gradients else value
        for name, value in step.sent.items()
    }
    return model_with(build, {**weights, **step.buffers})


def membership_scores(
    target: nn.Module, before: nn.Module, others: Sequence[nn.Module], data: Dataset
) -> dict[str, Tensor]:
    """Attack -> scores [n] of these rows, the higher, the likelier the site trained on them.

    before: the model that the site was sent. others: those that other sites made of it.
    """
    loss = losses(target, data)
    scores = {
        "loss": threshold_scores(loss),
        "calibrated loss": calibrated_scores(loss, losses(before, data).unsqueeze(0)),
    }
    if len(others) > 1:
        references = torch.stack([losses(model, data) for model in others])
        scores["likelihood ratio"] = likelihood_scores(loss, references)
    return scores


def check_whole(step: Step, model: nn.Module) -> None:
    """Raises NotTriedError where the upload lacks a part of the model without which it is none."""
    lacking = [name for name, _ in model.named_parameters() if name not in step.sent]
    if lacking:
        raise NotTriedError(
            f"a part of the model stays at the site ({', '.join(lacking[:3])}), and the rest alone "
            "gives no loss"
        )
