import pytest
import torch
from torch import Tensor

from motet.core.rng import generator
from motet.nn.augment import CHANGES, Augmentation, draw_augmentation

SIDE = (8, 8)


def pictures(n: int, channels: int = 1, side: int = 8) -> Tensor:
    return torch.rand(n, channels, side, side, generator=generator(0, "pictures", n, channels))


def drawn(*changes: str, classes: int = 40, seed: int = 0) -> Augmentation:
    return draw_augmentation(classes, SIDE, changes, generator(seed, "change"))  # type: ignore[arg-type]


def test_no_change_is_none() -> None:
    x = pictures(3)
    torch.testing.assert_close(drawn()(x, torch.tensor([0, 1, 2])), x)


@pytest.mark.parametrize("change", CHANGES)
def test_pictures_of_a_class_change_alike_and_others_differently(change: str) -> None:
    one = pictures(1, channels=3)
    made = drawn(change)(one.expand(80, -1, -1, -1), torch.arange(40).repeat(2))
    assert torch.equal(made[:40], made[40:])
    assert not all(torch.equal(made[0], other) for other in made[1:])


@pytest.mark.parametrize("change", CHANGES)
def test_gradient_reaches_the_pictures(change: str) -> None:
    x = pictures(5, channels=3).requires_grad_()
    (drawn(change)(x, torch.arange(5)) * pictures(5, channels=3).sin()).sum().backward()
    assert float(x.grad.abs().amin(dim=(0, 2, 3)).min()) >= 0
    assert float(x.grad.abs().sum()) > 1


def test_a_flip_mirrors_half_of_the_classes_exactly() -> None:
    x = pictures(40)
    made = drawn("flip")(x, torch.arange(40))
    mirrored = [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(made, x, strict=True)]
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(made, x, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 8 < sum(mirrored) < 32


def test_a_shift_is_by_whole_pixels_and_repeats_the_edge() -> None:
    x = pictures(40)
    made = drawn("shift")(x, torch.arange(40))
    at = torch.arange(8)
    options = [
        x[:, :, (at + dy).clamp(0, 7)][:, :, :, (at + dx).clamp(0, 7)]
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    hits = torch.stack([(made - option).abs().flatten(1).amax(dim=1) < 1e-4 for option in options])
    assert bool(hits.any(dim=0).all())
    assert int(hits.any(dim=1).sum()) > 4


def test_colours_change_as_they_should() -> None:
    x, classes = pictures(40, channels=3), torch.arange(40)
    lighter = drawn("brightness")(x, classes) - x
    assert float(lighter.flatten(1).std(dim=1).max()) < 1e-5
    assert float(lighter.abs().max()) <= 0.5
    sharper = drawn("contrast")(x, classes)
    torch.testing.assert_close(sharper.mean(dim=(1, 2, 3)), x.mean(dim=(1, 2, 3)))
    ratio = sharper.flatten(1).std(dim=1) / x.flatten(1).std(dim=1)
    assert 0.5 <= float(ratio.min()) < 0.7 < 1.3 < float(ratio.max()) <= 1.5
    coloured = drawn("saturation")(x, classes)
    torch.testing.assert_close(coloured.mean(dim=1), x.mean(dim=1))
    grey = pictures(40)
    torch.testing.assert_close(drawn("saturation")(grey, classes), grey)


def test_a_cutout_is_a_square_of_half_the_side() -> None:
    made = drawn("cutout")(torch.ones(40, 1, 8, 8), torch.arange(40))
    assert bool(((made == 0).flatten(1).sum(dim=1) == 16).all())
    assert bool(((made == 0).any(dim=3).sum(dim=2) == 4).all())
    assert len({tuple(row.flatten().tolist()) for row in made}) > 5


def test_a_turn_keeps_the_middle_and_a_scale_is_up_to_a_fifth() -> None:
    change = drawn("rotate")
    matrix = change.affine[:, :, :2]
    eye = torch.eye(2).expand(40, -1, -1)
    torch.testing.assert_close(matrix @ matrix.transpose(1, 2), eye)
    assert float(matrix[:, 0, 0].min()) >= 0.9659
    assert float(change.affine[:, :, 2].abs().max()) == 0
    factors = drawn("scale").affine.diagonal(dim1=1, dim2=2)
    assert 1 / 1.2 <= float(factors.min()) < 0.9 < 1.1 < float(factors.max()) <= 1.2


def test_a_kind_more_leaves_the_others_as_they_are() -> None:
    few, more = drawn("brightness"), drawn("brightness", "flip", "cutout")
    assert torch.equal(few.brightness, more.brightness)
    assert few.affine is None
    assert few.cutout is None
