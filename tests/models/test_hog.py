import time

import pytest
import torch
from torch import Tensor

from motet.core.errors import DataError
from motet.core.rng import generator, seeded
from motet.models.hog import BLOCKS, FEATURES, HogMLP, histograms, picture_features


def pictures(n: int, side: int = 64, seed: int = 0) -> Tensor:
    shape = (n, 3, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed, "pictures"))


def stripes(angle: float) -> Tensor:
    """Waves [1, 3, 32, 32] whose brightness changes along this angle (degrees)."""
    at = torch.arange(32.0)
    radians = torch.tensor(angle).deg2rad()
    wave = (at * radians.cos() + at[:, None] * radians.sin()).mul(0.4).sin()
    return (0.5 + 0.5 * wave).expand(1, 3, 32, 32)


@pytest.mark.parametrize("side", [17, 32, 64])
def test_features_are_368_numbers_whatever_the_size(side: int) -> None:
    features = HogMLP().prepare(pictures(5, side))
    assert features.shape == (5, FEATURES) == (5, 368)
    assert features.dtype == torch.float32
    assert features.isfinite().all()


def test_no_pictures_no_rows() -> None:
    assert HogMLP().prepare(pictures(0)).shape == (0, 368)


@pytest.mark.parametrize("bin_", range(8))
def test_orientation_falls_into_its_bin(bin_: int) -> None:
    counts = histograms(stripes(22.5 * bin_)).square().view(8, 16).sum(dim=1)
    assert counts.argmax() == bin_
    assert counts[bin_] > 0.8 * counts.sum()


def test_orientation_between_two_bins_is_shared() -> None:
    counts = histograms(stripes(22.5 * 2.5)).square().view(8, 16).sum(dim=1)
    assert counts.topk(2).indices.sort().values.tolist() == [2, 3]
    assert counts[2] / counts[3] == pytest.approx(1, abs=0.3)


def test_orientation_is_unsigned() -> None:
    waves = stripes(30)
    torch.testing.assert_close(histograms(waves), histograms(1 - waves))


def test_histograms_have_unit_norm_and_a_blank_picture_none() -> None:
    norms = histograms(torch.cat([stripes(10), torch.full((1, 3, 32, 32), 0.3)])).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0, 0.0]))


def test_blocks_have_their_places() -> None:
    picture = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    picture[:, 0, :8, :8] = 255
    features = picture_features(picture)[0]
    hog, coarse, fine = features.split(BLOCKS)
    assert hog.norm().item() == pytest.approx(1)
    assert coarse.view(3, 4, 4)[0, 0, 0].item() == pytest.approx(0.25)
    assert coarse.count_nonzero() == 1
    assert fine.view(3, 8, 8)[0, 0, 0].item() == pytest.approx(1)
    assert fine.count_nonzero() == 1


def test_blocks_have_their_weights() -> None:
    weights = [block.unique().tolist() for block in HogMLP().scale.split(BLOCKS)]
    assert weights == [[2.0], [1.0], [0.5]]


def test_a_row_does_not_see_its_neighbours() -> None:
    # More rows than one pass takes.
    many = pictures(600, 16)
    features = HogMLP().prepare(many)
    torch.testing.assert_close(features[[3, 555]], HogMLP().prepare(many[[3, 555]]))


def test_calibration_standardises_public_features_and_weights_the_blocks() -> None:
    encoder = HogMLP()
    public = pictures(40, seed=1)
    encoder.calibrate(public)
    seen = (encoder.prepare(public) - encoder.mean) * encoder.scale
    torch.testing.assert_close(seen.mean(dim=0), torch.zeros(368), atol=1e-5, rtol=0)
    spreads = seen.std(dim=0, correction=0).split(BLOCKS)
    for spread, weight in zip(spreads, (2.0, 1.0, 0.5), strict=True):
        torch.testing.assert_close(spread, torch.full_like(spread, weight), atol=1e-3, rtol=0)


def test_the_calibration_is_stored_but_not_trained() -> None:
    encoder = HogMLP()
    assert {"mean", "scale"} <= set(encoder.state_dict())
    assert {"mean", "scale"}.isdisjoint(dict(encoder.named_parameters()))
    encoder.calibrate(pictures(40, seed=1))
    twin = HogMLP()
    twin.load_state_dict(encoder.state_dict())
    x = encoder.prepare(pictures(3))
    assert twin(x).equal(encoder(x))


def test_forward_reads_the_calibration() -> None:
    encoder = HogMLP()
    x = encoder.prepare(pictures(3))
    before = encoder(x)
    encoder.calibrate(pictures(40, seed=1))
    torch.testing.assert_close(encoder(x), encoder.layers((x - encoder.mean) * encoder.scale))
    assert not torch.allclose(before, encoder(x))


def test_a_corner_almost_blank_in_public_does_not_blow_up() -> None:
    public = pictures(40, seed=1)
    public[:, :, :32, :32] = 255
    public[:, :, 3, 3] = 254
    public[0, :, 3, 3] = 255
    encoder = HogMLP()
    encoder.calibrate(public)
    seen = (encoder.prepare(pictures(40)) - encoder.mean) * encoder.scale
    assert seen.isfinite().all()
    # Ten times the weight of a feature that spreads as wide as its block.
    for scale in encoder.scale.split(BLOCKS):
        assert scale.max() < 15 * scale.median()


def test_one_public_picture_leaves_the_scale_alone() -> None:
    encoder = HogMLP()
    encoder.calibrate(pictures(1))
    assert encoder.scale.equal(HogMLP().scale)
    assert encoder(encoder.prepare(pictures(4))).isfinite().all()


def test_equal_keys_mean_equal_preparation() -> None:
    small, large = HogMLP(width=8, hidden=16), HogMLP(width=64, hidden=256, dropout=0.5)
    large.calibrate(pictures(9))
    assert small.key == large.key
    assert small.prepare(pictures(4)).equal(large.prepare(pictures(4)))


def test_dropout_is_for_training_alone() -> None:
    encoder = HogMLP(dropout=0.5)
    x = encoder.prepare(pictures(4))
    with seeded(0):
        assert not encoder(x).equal(encoder(x))
    encoder.eval()
    assert encoder(x).equal(encoder(x))


@pytest.mark.parametrize(
    "wrong", [("a text",), torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, 3, dtype=torch.uint8)]
)
def test_what_is_no_picture_is_refused(wrong: Tensor | tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"uint8 of shape \[n, 3, H, W\]"):
        HogMLP().prepare(wrong)


def test_a_thousand_pictures_take_well_under_a_second() -> None:
    many = pictures(1000)
    start = time.perf_counter()
    HogMLP().prepare(many)
    # About 0.15 s alone; the rest is for a busy machine.
    assert time.perf_counter() - start < 1.5
