from __future__ import annotations

import torch

from motet.core.rng import generator
from motet.models.random_features import RandomFeatures
from motet.models.registry import build_model, parse_model

PICTURES = torch.randint(0, 256, (40, 1, 8, 8), generator=generator(0)).to(torch.uint8)


def test_features_are_random_relus_of_the_pixels() -> None:
    encoder = RandomFeatures(width=16, side=8)
    features = encoder.prepare(PICTURES)
    assert features.shape == (40, 16)
    assert float(features.min()) == 0
    assert 0.2 < float((features > 0).float().mean()) < 0.8
    assert torch.equal(encoder(features), features)


def test_public_pictures_standardise_them() -> None:
    encoder = RandomFeatures(width=16, side=8)
    encoder.calibrate(PICTURES)
    found = encoder(encoder.prepare(PICTURES))
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(dim=0, unbiased=False), torch.ones(16))


def test_a_feature_without_spread_stays_finite() -> None:
    encoder = RandomFeatures(width=16, side=8)
    encoder.calibrate(PICTURES[:1])
    assert bool(encoder(encoder.prepare(PICTURES)).isfinite().all())


def test_the_draw_decides_and_not_the_party() -> None:
    first, second = RandomFeatures(width=16, side=8), RandomFeatures(width=16, side=8)
    assert torch.equal(first.prepare(PICTURES), second.prepare(PICTURES))
    assert first.key == second.key
    other = RandomFeatures(width=16, side=8, draw=1)
    assert other.key != first.key
    assert not torch.equal(other.prepare(PICTURES), first.prepare(PICTURES))
    assert RandomFeatures(width=17, side=8).key != first.key


def test_nothing_of_it_is_trained_or_travels() -> None:
    from motet.core import weights_of

    spec = parse_model({"width": 16, "image": {"name": "random-features", "side": 8}})
    model = build_model(spec, None, 3, generator(0))
    assert sorted(weights_of(model)) == ["head.bias", "head.weight"]
    assert not model.encoders["image"].training
