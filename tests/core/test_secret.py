"""Noise from a secret: the same for the same question and values, unknown to all others."""

from __future__ import annotations

import pytest
import torch

from motet.core.rng import generator
from motet.core.secret import Concealed, Secret
from motet.nn.private import noised, randomised

ONE, OTHER = Secret(bytes(range(32))), Secret(bytes(32))
KEY = ("ada", "guard", "local", "train", "1.1")
VALUES = torch.arange(5.0)


def drawn(secret: Secret = ONE, seed: int = 7, values: torch.Tensor = VALUES) -> torch.Tensor:
    return secret.generator(seed, *KEY).normal(values)


def test_the_same_secret_question_and_values_give_the_same_noise() -> None:
    assert torch.equal(drawn(), drawn())
    rng = ONE.generator(7, *KEY)
    assert torch.equal(rng.normal(VALUES), rng.normal(VALUES))


@pytest.mark.parametrize(
    "other",
    [
        drawn(OTHER),
        drawn(seed=8),
        drawn(values=VALUES + 1e-6),
        ONE.generator(7, *KEY, "more").normal(VALUES),
        torch.randn(5, generator=generator(7, *KEY)),
    ],
)
def test_anything_else_gives_another(other: torch.Tensor) -> None:
    assert not (drawn() - other.double()).abs().lt(1e-3).any()


def test_normal_numbers_are_normal_and_uniform_ones_uniform() -> None:
    rng = ONE.generator(0)
    many = rng.normal(torch.zeros(200_001))
    assert many.shape == (200_001,)
    assert many.isfinite().all()
    assert abs(float(many.mean())) < 0.01
    assert abs(float(many.std()) - 1) < 0.01
    within = [float((many.abs() < bound).double().mean()) for bound in (0.6745, 1.96)]
    assert within == pytest.approx([0.5, 0.95], abs=0.005)
    # Neighbours, and the two numbers of a pair, have nothing to do with each other.
    half = many[:200_000]
    for a, b in ((half[:-1], half[1:]), (half[:100_000], half[100_000:])):
        assert abs(float((a * b).mean())) < 0.01
    flat = rng.uniform(torch.zeros(100_000))
    assert flat.min() >= 0
    assert flat.max() < 1
    assert torch.histc(flat.float(), 10, 0, 1).sub(10_000).abs().max() < 400


def test_numbers_of_two_uses_are_not_the_same() -> None:
    rng = ONE.generator(0)
    assert not torch.equal(rng.uniform(VALUES, "a"), rng.uniform(VALUES, "b"))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3)])
def test_any_shape_and_type_can_be_hidden(shape: tuple[int, ...]) -> None:
    rng = ONE.generator(0)
    for dtype in (torch.float16, torch.float32, torch.float64, torch.int64):
        hidden = torch.zeros(shape, dtype=dtype)
        assert rng.normal(hidden).shape == rng.uniform(hidden).shape == shape


def test_mechanisms_draw_from_it_and_not_from_torch() -> None:
    rng = ONE.generator(0)
    noisy = noised(VALUES, 2.0, rng)
    assert torch.allclose(noisy - VALUES, 2 * rng.normal(VALUES).float())
    assert noisy.dtype == VALUES.dtype
    votes = torch.arange(10_000) % 3
    found = randomised(votes, 3, 0.5, rng)
    assert torch.equal(found, randomised(votes, 3, 0.5, ONE.generator(0)))
    assert not torch.equal(found, randomised(votes, 3, 0.5, OTHER.generator(0)))
    # e^0.5 / (e^0.5 + 2) of them are true.
    assert float((found == votes).double().mean()) == pytest.approx(0.4518, abs=0.02)


def test_as_a_generator_of_torch_it_hangs_on_the_secret_too() -> None:
    numbers = [torch.rand(3, generator=s.generator(7, "x")) for s in (ONE, ONE, OTHER)]
    assert torch.equal(numbers[0], numbers[1])
    assert not torch.equal(numbers[0], numbers[2])
    assert isinstance(ONE.generator(7), Concealed)


def test_it_does_not_show_itself() -> None:
    assert repr(ONE) == "Secret(...)"
    with pytest.raises(ValueError, match="has 32 bytes, and these are 3"):
        Secret(b"abc")
