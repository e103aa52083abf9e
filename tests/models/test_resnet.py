import pytest
import torch
from torch import Tensor

from motet.core.rng import generator, seeded
from motet.models.resnet import ResNetGN


def pictures(n: int, side: int = 32) -> Tensor:
    shape = (n, 3, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, *shape))


def build(**options: object) -> ResNetGN:
    with seeded(0):
        return ResNetGN(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [8, 14, 18, 20])
@pytest.mark.parametrize("pie", [False, True])
def test_every_depth_embeds(depth: int, pie: bool) -> None:
    encoder = build(width=24, depth=depth, channels=8, pie=pie)
    out = encoder(encoder.prepare(pictures(3, 40)))
    assert out.shape == (3, 24)
    out.square().sum().backward()
    silent = [name for name, p in encoder.named_parameters() if not p.grad.abs().sum() > 0]  # type: ignore[union-attr]
    assert not silent


def test_depth_counts_the_layers_with_weights() -> None:
    for depth in (8, 14, 18, 20):
        names = dict(build(depth=depth, channels=8).named_parameters())
        weights = [n for n in names if "conv" in n or n in ("trunk.0.weight", "project.weight")]
        assert len(weights) == depth


@pytest.mark.parametrize(
    ("options", "count"),
    [
        # ResNet-20 on CIFAR-10 has 269,722 with short cuts that weigh nothing; ours weigh 2,752.
        # The trunk of ResNet-18 has 11,176,512 with a stem of 7x7 (9,408), ours of 3x3 (1,728).
        ({"depth": 20, "channels": 16, "width": 10}, 269_722 + 2_752),
        ({"depth": 18, "channels": 64, "width": 256}, 11_176_512 - 9_408 + 1_728 + 513 * 256),
    ],
)
def test_sizes_are_those_of_the_papers(options: dict[str, object], count: int) -> None:
    assert sum(p.numel() for p in build(**options).parameters()) == count


@pytest.mark.parametrize(("size", "cells"), [(32, 8), (48, 12), (64, 8)])
def test_large_pictures_meet_a_stride(size: int, cells: int) -> None:
    encoder = build(size=size, channels=8)
    x = encoder.prepare(pictures(2, 50))
    assert x.shape == (2, 3, size, size)
    assert x.dtype == torch.uint8
    assert encoder.trunk(x.float()).shape[-2:] == (cells, cells)
    assert encoder.key == f"pixels-{size}"


def test_a_row_does_not_see_its_batch() -> None:
    encoder = build(channels=8, pie=True)
    x = pictures(4)
    torch.testing.assert_close(encoder(x)[:1], encoder(x[:1]), atol=1e-5, rtol=1e-5)


def test_pie_attends_to_the_last_feature_map() -> None:
    encoder = build(channels=8, pie=True)
    assert encoder.pie is not None
    x = pictures(2)
    cells = encoder.trunk(x.float() / 127.5 - 1)
    positions = torch.stack([cells[:, :, i, j] for i in range(8) for j in range(8)], dim=1)
    whole = encoder.project(cells.mean(dim=(2, 3)))
    torch.testing.assert_close(encoder(x), encoder.pie(whole, positions))


def test_augmentation_is_for_training_alone() -> None:
    encoder = build(channels=8, augment=True)
    x = pictures(4)
    with seeded(1):
        first, second = encoder(x), encoder(x)
    assert not first.equal(second)
    with seeded(1):
        assert encoder(x).equal(first)
    encoder.eval()
    assert encoder(x).equal(encoder(x))
    plain = build(channels=8)
    assert plain(x).equal(plain(x))
