"""The generator: its stages compose, it learns, and it is made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.audit.victims import pictures, rng

from motet.audit import generators
from motet.audit.generators import (
    Generator,
    GeneratorSpec,
    train_generator,
    trained_generator,
    untrained_generator,
)
from motet.core import ConfigError

SPEC = GeneratorSpec(side=8, latent=4, maps=(8, 6, 4), epochs=2, batch=16)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOTET_CACHE", str(tmp_path))
    return tmp_path / "generators"


def test_the_stages_are_those_of_the_card() -> None:
    made = untrained_generator(GeneratorSpec(), 0)
    z = torch.randn((2, 16), generator=rng())
    first = made.advance(z, 0)
    second = made.advance(first, 1)
    assert (made.stages, first.shape, second.shape) == (3, (2, 64, 4, 4), (2, 32, 8, 8))
    whole = made(z)
    assert whole.shape == (2, 1, 16, 16)
    for stage, value in enumerate((z, first, second)):
        torch.testing.assert_close(made.picture(value, stage), whole)
    assert float(whole.min()) >= 0
    assert float(whole.max()) <= 1


@pytest.mark.parametrize(("side", "channels"), [(8, 3), (14, 1), (5, 1)])
def test_pictures_of_any_size(side: int, channels: int) -> None:
    spec = GeneratorSpec(side=side, channels=channels, latent=2, maps=(4, 4, 4), epochs=1)
    public = torch.rand((6, channels, side, side), generator=rng())
    made = trained_generator(public, spec, 0)
    assert made(torch.zeros(2, 2)).shape == (2, channels, side, side)


def test_training_brings_the_loss_down() -> None:
    public = pictures(64)
    once = GeneratorSpec(**{**SPEC.model_dump(), "epochs": 1})
    long = GeneratorSpec(**{**SPEC.model_dump(), "epochs": 20})
    first = train_generator(untrained_generator(SPEC, 0), public, once, 0)
    assert train_generator(untrained_generator(SPEC, 0), public, long, 0) < 0.9 * first


@pytest.mark.usefixtures("rng_untouched")
def test_the_same_pictures_and_settings_give_the_same_generator_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trained_generator(pictures(32), SPEC, 0)
    (path,) = cache.iterdir()
    content = path.read_bytes()
    path.unlink()
    trained_generator(pictures(32), SPEC, 0)
    assert path.read_bytes() == content

    def never(*given: object) -> float:
        raise AssertionError("trained again")

    monkeypatch.setattr(generators, "train_generator", never)
    again = trained_generator(pictures(32), SPEC, 0)
    z = torch.ones(1, 4)
    assert torch.equal(again(z), made(z))
    assert not again.training
    assert not any(value.requires_grad for value in again.parameters())
    # How it is searched is not what it is.
    trained_generator(pictures(32), SPEC.model_copy(update={"radii": (1.0,)}), 0)
    for other in (
        lambda: trained_generator(pictures(31), SPEC, 0),
        lambda: trained_generator(pictures(32, seed=1), SPEC, 0),
        lambda: trained_generator(pictures(32), SPEC, 1),
        lambda: trained_generator(pictures(32), SPEC.model_copy(update={"epochs": 3}), 0),
    ):
        with pytest.raises(AssertionError, match="trained again"):
            other()


def test_a_damaged_file_is_made_again(cache: Path) -> None:
    made = trained_generator(pictures(32), SPEC, 0)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:50])
    again = trained_generator(pictures(32), SPEC, 0)
    assert torch.equal(again(torch.ones(1, 4)), made(torch.ones(1, 4)))
    assert len(path.read_bytes()) > 50


def test_an_untrained_one_depends_on_its_seed_alone() -> None:
    z = torch.ones(1, 4)
    first, again, other = (untrained_generator(SPEC, seed)(z) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"generator\.side"):
        trained_generator(pictures(4, side=16), SPEC, 0)
    with pytest.raises(ConfigError, match=r"generator\.side"):
        trained_generator(pictures(4)[:0], SPEC, 0)


def test_more_stages_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"generator\.radii"):
        Generator(GeneratorSpec(radii=(1.0, 1.0, 1.0, 1.0)))
