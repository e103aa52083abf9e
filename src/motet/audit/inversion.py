"""Gradient inversion: the pictures behind an upload, sought by whoever runs the hub.

All attacks look for pictures whose gradient matches the one that was sent, know the model and the
defence but not the truth, and have the same budget: gradients of the model's loss that they may
take. What they return is the best that they met by their own matching score.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from motet.audit.generators import Generator
from motet.audit.leaks import infer_labels
from motet.audit.matching import Inversion, Match, on_sphere, project_l1, total_variation
from motet.audit.upload import Upload
from motet.core.errors import ConfigError

AttackName: TypeAlias = Literal["dlg", "idlg", "inverting-gradients", "latent", "gifd"]
ATTACKS: tuple[AttackName, ...] = ("dlg", "idlg", "inverting-gradients", "latent", "gifd")
NOT_TRIED = (
    "GradInversion (batch-norm statistics, agreement of several starts)",
    "GGL (search of the latent code without gradients)",
    "GIAS (search of the generator's weights)",
    "a hub that sends crafted weights",
)
LBFGS_STEPS = 20


@dataclass(frozen=True)
class Settings:
    """How the attacks search.

    lr: largest learning rate of Adam. tv: weight of the pictures' total variation. restarts: equal
    parts of the budget, each from another random start.
    """

    lr: float = 0.1
    tv: float = 1e-3
    restarts: int = 1


def invert(
    upload: Upload,
    attack: AttackName,
    *,
    budget: int,
    rng: torch.Generator,
    generator: Generator | None = None,
    truth: Tensor | None = None,
    labels: Tensor | None = None,
    settings: Settings = Settings(),
) -> Inversion:
    """Attacks an upload with at most ``budget`` gradients of the model's loss.

    Of an upload of several local steps every candidate costs as many gradients. generator: of the
    upload's picture size, for latent and gifd. truth: [B, C, H, W]; only measures the history,
    nothing of it enters the search. labels: int64 [B] where the attacker knows them; else they
    are inferred, by dlg found together with the pictures. Raises ConfigError.

    dlg: Zhu et al., NeurIPS 2019. idlg: Zhao et al., arXiv 2001.02610. inverting-gradients:
    Geiping et al., NeurIPS 2020. gifd: Fang et al., ICCV 2023, latent its first stage alone;
    without the paper's penalty of 1e-6 on the pictures' norm, with a latent code kept at its
    length row by row, and handing over a stage's best candidate in place of its last.
    """
    _check(upload, attack, budget, generator, settings)
    match = Match(upload, budget, "squared" if attack in ("dlg", "idlg") else "cosine", truth)
    if labels is None and attack != "dlg":
        labels = infer_labels(upload)
    if attack in ("dlg", "idlg"):
        _match_squares(match, labels, rng)
    elif attack == "inverting-gradients":
        assert labels is not None
        _search_pixels(match, labels, rng, settings)
    else:
        assert labels is not None
        assert generator is not None
        stages = 1 if attack == "latent" else generator.stages
        _search_generator(match, labels, rng, settings, generator, stages)
    return match.outcome()


@dataclass(frozen=True)
class _Plan:
    """How one descent goes: gradients to take, rate over time 0..1, what holds the value in."""

    steps: int
    rate: Callable[[float], float]
    confine: Callable[[Tensor], Tensor]
    signed: bool = False
    stage: int = 0


def _descend(
    match: Match,
    start: Tensor,
    labels: Tensor,
    draw: Callable[[Tensor], Tensor],
    tv: float,
    plan: _Plan,
) -> Tensor:
    """Adam from ``start`` on distance plus total variation of draw(value); the best value met."""
    value = start.detach().clone().requires_grad_()
    adam = torch.optim.Adam([value])
    best, least = start.detach(), math.inf
    for step in range(plan.steps):
        pictures = draw(value)
        distance = match(pictures, labels, plan.stage)
        if float(distance.detach()) < least:
            best, least = value.detach().clone(), float(distance.detach())
        (slope,) = torch.autograd.grad(distance + tv * total_variation(pictures), value)
        value.grad = slope.sign() if plan.signed else slope
        adam.param_groups[0]["lr"] = plan.rate(step / plan.steps)
        adam.step()
        with torch.no_grad():
            value.copy_(plan.confine(value))
    return best


def _search_pixels(match: Match, labels: Tensor, rng: torch.Generator, settings: Settings) -> None:
    """Signed Adam on the pixels, in a box; the rate falls to a tenth at 3/8, 5/8 and 7/8."""
    low, high = ((end - match.upload.mean) / match.upload.std for end in (0.0, 1.0))

    def rate(time: float) -> float:
        return settings.lr * 0.1 ** sum(time >= at for at in (3 / 8, 5 / 8, 7 / 8))

    for restart in range(settings.restarts):
        steps = match.left // (settings.restarts - restart)
        plan = _Plan(steps, rate, lambda value: value.clamp(low, high), signed=True)
        _descend(match, match.noise(rng), labels, match.pixels, settings.tv, plan)


def _search_generator(
    match: Match,
    labels: Tensor,
    rng: torch.Generator,
    settings: Settings,
    generator: Generator,
    stages: int,
) -> None:
    """Adam on the latent code, then on the features of the first blocks, one after the other."""

    def rate(time: float) -> float:
        falling = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - time) / 0.75))
        return settings.lr * falling * min(1.0, time / 0.05)

    parts = settings.restarts * stages
    for restart in range(settings.restarts):
        value = torch.randn((match.upload.batch, generator.latent), generator=rng)
        for stage in range(stages):
            steps = match.left // (parts - restart * stages - stage)
            confine = _sphere(value) if not stage else _ball(value, generator.radii[stage - 1])
            plan = _Plan(steps, rate, confine, stage=stage)

            def draw(found: Tensor, stage: int = stage) -> Tensor:
                return _fitted(generator.picture(found, stage), match.upload.image)

            value = _descend(match, value, labels, draw, settings.tv, plan)
            if stage + 1 < stages:
                with torch.no_grad():
                    value = generator.advance(value, stage)


def _sphere(start: Tensor) -> Callable[[Tensor], Tensor]:
    lengths = start.norm(dim=1, keepdim=True)
    return lambda value: on_sphere(value, lengths)


def _ball(start: Tensor, radius: float) -> Callable[[Tensor], Tensor]:
    def confine(value: Tensor) -> Tensor:
        return start + project_l1((value - start).flatten(1), radius).view_as(start)

    return confine


def _fitted(pictures: Tensor, image: tuple[int, int, int]) -> Tensor:
    """The generator's pictures in the size that the model is trained on."""
    if pictures.shape[-2:] == image[1:]:
        return pictures
    return F.interpolate(pictures, image[1:], mode="area")


class _OverflowError(Exception):
    """A candidate whose distance is no number: L-BFGS cannot go on from it."""


def _match_squares(match: Match, labels: Tensor | None, rng: torch.Generator) -> None:
    """L-BFGS on the pixels, without known labels on these as well; a new start when it stalls."""
    while match.left:
        inputs = match.noise(rng).requires_grad_()
        leaves = [inputs]
        if labels is None:
            shape = (match.upload.batch, match.upload.classes)
            leaves.append(torch.randn(shape, generator=rng).requires_grad_())
        _go_down(match, leaves, labels)


def _go_down(match: Match, leaves: list[Tensor], labels: Tensor | None) -> None:
    """L-BFGS from one start, until a whole step of it brings nothing, or the budget is spent."""
    least = math.inf

    def closure() -> Tensor:
        nonlocal least
        targets = leaves[1].softmax(dim=1) if labels is None else labels
        distance = match(match.pixels(leaves[0]), targets)
        if not math.isfinite(float(distance.detach())):
            raise _OverflowError
        least = min(least, float(distance.detach()))
        slopes = torch.autograd.grad(distance, leaves)
        for leaf, slope in zip(leaves, slopes, strict=True):
            leaf.grad = slope
        return distance

    lbfgs = torch.optim.LBFGS(leaves, lr=1.0)
    before = math.inf
    while match.left:
        # Without a line search a step takes exactly as many gradients as iterations.
        lbfgs.param_groups[0]["max_iter"] = min(LBFGS_STEPS, match.left)
        try:
            lbfgs.step(closure)
        except _OverflowError:
            return
        if least >= before:
            return
        before = least


def _check(
    upload: Upload,
    attack: AttackName,
    budget: int,
    generator: Generator | None,
    settings: Settings,
) -> None:
    if attack not in ATTACKS:
        raise ConfigError(f"there is no attack {attack!r}; write one of {', '.join(ATTACKS)}")
    cost = 1 if upload.local is None else upload.local.steps
    parts = settings.restarts * (generator.stages if attack == "gifd" and generator else 1)
    if settings.restarts < 1 or budget < cost * parts:
        raise ConfigError(
            f"a budget of {budget} gradients is too small for {attack}; write at least "
            f"{cost * max(parts, 1)}"
        )
    if attack in ("latent", "gifd"):
        if generator is None:
            raise ConfigError(f"the attack {attack} searches a generator, and none was given")
        if generator.channels != upload.image[0]:
            raise ConfigError(
                f"the generator makes pictures of {generator.channels} channel(s), and the "
                f"upload is of {upload.image[0]}; train one of generator.channels="
                f"{upload.image[0]}"
            )
