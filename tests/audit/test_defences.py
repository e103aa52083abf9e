"""Defences change what they say, by as much as they say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.audit.victims import Net, convolutions, perceptron, pictures, rng, upload
from torch import Tensor, nn

from motet.audit.defences import add_noise, clip, mirrored, soteria, sparsify
from motet.audit.upload import Upload, gradients_of, logits_of
from motet.core import ConfigError


def flat(made: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in made.values()])


def test_noise_is_relative_to_the_gradients_length() -> None:
    seen = upload(convolutions(16), side=16)
    made = add_noise(seen, 0.5, rng())
    drawn = flat(made.gradients) - flat(seen.gradients)
    size = flat(seen.gradients).norm()
    assert float(drawn.norm() / size) == pytest.approx(0.5, rel=0.05)
    assert float(drawn.std()) == pytest.approx(0.5 * float(size) / math.sqrt(len(drawn)), rel=0.05)
    assert torch.equal(flat(add_noise(seen, 0.5, rng()).gradients), flat(made.gradients))
    assert not torch.equal(flat(add_noise(seen, 0.5, rng(1)).gradients), flat(made.gradients))


def test_clipping_shortens_the_whole_vector_and_no_short_one() -> None:
    seen = upload()
    length = float(flat(seen.gradients).norm())
    shorter = flat(clip(seen, length / 4).gradients)
    torch.testing.assert_close(shorter, flat(seen.gradients) / 4)
    assert torch.equal(flat(clip(seen, 2 * length).gradients), flat(seen.gradients))


@pytest.mark.parametrize("percentile", [0, 50, 90])
def test_sparsification_keeps_the_largest_of_every_tensor(percentile: float) -> None:
    seen = upload()
    made = sparsify(seen, percentile).gradients
    for name, value in seen.gradients.items():
        kept = made[name] != 0
        assert torch.equal(made[name][kept], value[kept])
        filled = int((value != 0).sum())
        assert int(kept.sum()) <= math.ceil(value.numel() * (1 - percentile / 100)) + 1
        if percentile == 0:
            assert int(kept.sum()) == filled
        gone = ~kept & (value != 0)
        if bool(gone.any()):
            assert float(value[gone].abs().max()) <= float(value[kept].abs().min())


class Leaky(nn.Module):
    """Four units that tell more or less of the first pixel x: x + 9, x + 1, x, x^2 + 1."""

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, :1]
        return torch.cat([first + 9, first + 1, first, first.square() + 1], dim=1)


def test_soteria_drops_the_columns_of_units_that_tell_least() -> None:
    model = Net(Leaky(), nn.Linear(4, 4))
    x = torch.full((1, 1, 2, 2), 0.5)
    plain = gradients_of(model, x, torch.tensor([1]))
    seen = Upload(plain, model, 1, (1, 2, 2), 4)
    # Scores: 1 / 9.5, 1 / 1.5, 1 / 0.5, 1 / 1.25.
    made = soteria(seen, 50, x).gradients["layers.1.weight"]
    assert (made != 0).any(dim=0).tolist() == [False, False, True, True]
    assert torch.equal(made[:, 2:], plain["layers.1.weight"][:, 2:])
    assert torch.equal(soteria(seen, 50, x).gradients["layers.1.bias"], plain["layers.1.bias"])


def test_soteria_sums_each_pictures_own_share() -> None:
    model = Net(Leaky(), nn.Linear(4, 4))
    x = torch.tensor([0.01, 4.0]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2)
    seen = Upload(gradients_of(model, x, torch.tensor([1, 2])), model, 2, (1, 2, 2), 4)
    # By pictures about 0.19, 1.2, 100, 0.5; of the whole batch at once 0.06, 0.24, 0.35, 0.44.
    made = soteria(seen, 75, x).gradients["layers.1.weight"]
    assert (made != 0).any(dim=0).tolist() == [False, False, True, False]


def test_the_attacker_knows_which_defences_in_which_order() -> None:
    made = sparsify(clip(upload(), 0.5), 50)
    assert made.defence is not None
    assert (made.defence.name, made.defence.amount) == ("sparsification", 50)
    assert made.defence.before is not None
    assert (made.defence.before.name, made.defence.before.amount) == ("clipping", 0.5)


@pytest.mark.parametrize("defend", [lambda u: clip(u, 0.2), lambda u: sparsify(u, 80)])
def test_the_truths_gradient_mirrored_is_what_was_seen(defend: object) -> None:
    seen = upload()
    made = defend(seen)  # type: ignore[operator]
    again = mirrored(made.defence, seen.gradients, made.gradients)
    torch.testing.assert_close(flat(again), flat(made.gradients))


def test_the_truths_gradient_mirrored_under_soteria_is_what_was_seen() -> None:
    seen = upload(perceptron())
    # Units without activation rank lowest, and their columns are 0 anyway.
    made = soteria(seen, 90, pictures(1))
    assert not torch.equal(flat(made.gradients), flat(seen.gradients))
    again = mirrored(made.defence, seen.gradients, made.gradients)
    assert torch.equal(flat(again), flat(made.gradients))
    # Only the last layer's columns are masked, whatever else happens to be 0.
    dummy = {name: torch.ones_like(value) for name, value in seen.gradients.items()}
    masked = mirrored(made.defence, dummy, made.gradients)
    assert masked["layers.1.weight"].min() == 1
    assert masked["layers.3.weight"].min() == 0


def test_noise_is_not_mirrored_and_nothing_is_nothing() -> None:
    seen = upload()
    noisy = add_noise(seen, 1.0, rng())
    for defence in (noisy.defence, None):
        made = mirrored(defence, seen.gradients, noisy.gradients)
        assert torch.equal(flat(made), flat(seen.gradients))


def test_the_upload_itself_is_left_alone() -> None:
    seen = upload(perceptron())
    before = flat(seen.gradients).clone()
    logits = logits_of(seen.model, pictures(1)).detach()
    add_noise(seen, 1.0, rng())
    clip(seen, 0.1)
    sparsify(seen, 90)
    soteria(seen, 50, pictures(1))
    assert torch.equal(flat(seen.gradients), before)
    assert torch.equal(logits_of(seen.model, pictures(1)), logits)
    assert replace(seen).defence is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda u: add_noise(u, -1, rng()),
        lambda u: clip(u, 0),
        lambda u: sparsify(u, 101),
        lambda u: soteria(u, -1, pictures(1)),
        lambda u: clip(u, math.inf),
    ],
)
def test_impossible_strengths_are_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match="the defence"):
        wrong(upload())  # type: ignore[operator]
