import pytest
import torch
from torch import Tensor

from motet.core.rng import generator, seeded
from motet.models.pictures import augment, erase, resize, shift_and_mirror, to_unit


def pictures(n: int, height: int, width: int) -> Tensor:
    shape = (n, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, *shape))


def test_resize_leaves_the_right_size_alone() -> None:
    same = pictures(2, 32, 32)
    assert resize(same, 32) is same


@pytest.mark.parametrize(("height", "width"), [(64, 64), (20, 50), (7, 7)])
def test_resize_keeps_bytes_and_brightness(height: int, width: int) -> None:
    before = pictures(3, height, width)
    after = resize(before, 32)
    assert after.shape == (3, 3, 32, 32)
    assert after.dtype == torch.uint8
    means = before.float().mean(dim=(2, 3)), after.float().mean(dim=(2, 3))
    torch.testing.assert_close(*means, atol=6, rtol=0)


def test_resize_smooths_where_it_shrinks() -> None:
    # Every fourth column is bright; picking single columns would see none of them.
    lines = 255 * (torch.arange(64) % 4 == 0)
    small = resize(lines.to(torch.uint8).expand(1, 3, 64, 64), 16)[..., 2:-2, 2:-2]
    assert (small.float() - 255 / 4).abs().max() < 6


def test_resize_treats_each_row_alike() -> None:
    many = pictures(600, 9, 9)
    assert resize(many, 16)[[5, 590]].equal(resize(many[[5, 590]], 16))


def test_unit_range() -> None:
    ends = torch.tensor([0, 255], dtype=torch.uint8)
    assert to_unit(ends).tolist() == [-1, 1]


def test_augmentation_is_as_random_as_its_seed() -> None:
    x = to_unit(pictures(16, 32, 32))
    with seeded(0):
        first = augment(x)
    with seeded(0):
        again = augment(x)
    with seeded(1):
        other = augment(x)
    assert first.equal(again)
    assert not first.equal(other)
    assert first.shape == x.shape


def test_shift_and_mirror_only_do_that() -> None:
    # Each pixel knows its place, so a moved picture tells how it was moved.
    place = torch.stack(torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij"))
    x = torch.cat([place, place[:1]]).float().expand(200, 3, 9, 9)
    with seeded(0):
        moved = shift_and_mirror(x)
    down = moved[:, 0, 4, 4] - 4
    across = moved[:, 1, 4, 4] - 4
    step = moved[:, 1, 4, 4] - moved[:, 1, 4, 3]
    assert set(down.tolist()) == set(across.tolist()) == {-2, -1, 0, 1, 2}
    assert step.abs().eq(1).all()
    assert 60 < (step < 0).sum() < 140
    # A row stays a row, and a column a column.
    assert moved[:, 0].eq(moved[:, 0, :, :1]).all()
    assert moved[:, 1].eq(moved[:, 1, :1]).all()


def test_a_fifth_loses_one_rectangle() -> None:
    x = torch.ones(2000, 3, 32, 32)
    with seeded(0):
        erased = erase(x)
    holes = erased[:, 0] == 0
    hit = holes.any(dim=2).any(dim=1)
    assert 300 < hit.sum() < 500
    assert erased[~hit].eq(1).all()
    share = holes[hit].float().mean(dim=(1, 2))
    assert share.min() > 0.01
    assert share.max() < 0.36
    rows, columns = holes.any(dim=2), holes.any(dim=1)
    assert (rows.sum(dim=1) * columns.sum(dim=1)).equal(holes.sum(dim=(1, 2)))
    assert erased[:, 0].equal(erased[:, 2])
