import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core import ConfigError, freeze
from motet.core.rng import generator, seeded
from motet.nn.layers import ResidualBlock
from motet.nn.norm_free import (
    GAMMA,
    NormFreeBlock,
    WSConv2d,
    adaptive_clip,
    clip_units,
    folded,
    norm_free,
    standardise,
)


@pytest.fixture(autouse=True)
def _keyed() -> Iterator[None]:
    with seeded(0, "norm-free tests"):
        yield


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "norm-free", *shape))


def by_hand(weight: Tensor, gamma: float) -> Tensor:
    """The card's formula, one output channel at a time, in double precision."""
    rows = []
    for row in weight.double():
        n = row.numel()
        mean = row.sum() / n
        variance = sum(float((value - mean) ** 2) for value in row.flatten()) / n
        rows.append(gamma * (row - mean) / math.sqrt(max(n * variance, 1e-4)))
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [(6, 3, 5, 5), (4, 1, 3, 3), (5, 8, 1, 1)])
def test_standardised_rows_are_the_formula(shape: tuple[int, ...]) -> None:
    weight = 3 * draw(*shape) + 2
    torch.testing.assert_close(
        standardise(weight, 1.7).double(), by_hand(weight, 1.7), atol=1e-5, rtol=1e-5
    )


def test_rows_have_mean_0_and_norm_gamma_times_the_gain() -> None:
    weight, gain = draw(6, 3, 5, 5), torch.linspace(0.5, 2, 6)
    made = standardise(weight, GAMMA["relu"]).flatten(1)
    assert float((made.norm(dim=1) - 1.7129).abs().max()) < 1e-4
    assert float(made.mean(dim=1).abs().max()) < 1e-6
    scaled = standardise(weight, GAMMA["relu"], gain).flatten(1)
    torch.testing.assert_close(scaled.norm(dim=1), GAMMA["relu"] * gain)


def test_a_row_without_spread_is_not_blown_up() -> None:
    made = standardise(torch.full((2, 1, 1, 1), 3.0), 1.7)
    assert torch.equal(made, torch.zeros(2, 1, 1, 1))
    tiny = 1e-4 * draw(2, 3, 3, 3)
    expected = 100 * (tiny - tiny.mean(dim=(1, 2, 3), keepdim=True))
    torch.testing.assert_close(standardise(tiny), expected)


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "tanh", "identity"])
def test_gamma_is_one_over_the_spread_of_the_activation(name: str) -> None:
    act = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}.get(name)
    x = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2)
    density /= density.sum()
    y = x if act is None else act(x)
    spread = ((density * y.square()).sum() - (density * y).sum() ** 2).sqrt()
    assert GAMMA[name] == pytest.approx(1 / float(spread), abs=1e-6)  # type: ignore[index]


def test_output_knows_neither_scale_nor_shift_of_a_row() -> None:
    conv = WSConv2d(nn.Conv2d(3, 4, 3, padding=1))
    x = draw(2, 3, 6, 6)
    before = conv(x)
    with torch.no_grad():
        conv.weight.mul_(10)
        torch.testing.assert_close(conv(x), before, atol=1e-5, rtol=1e-5)
        conv.weight[2].add_(0.7)
    torch.testing.assert_close(conv(x), before, atol=1e-5, rtol=1e-5)


def test_the_convolution_keeps_weight_and_settings_and_gets_a_bias() -> None:
    plain = nn.Conv2d(4, 6, (3, 1), (2, 1), (1, 0), groups=2, bias=False, padding_mode="reflect")
    conv = WSConv2d(plain, gamma=1.3, gain=True)
    assert torch.equal(conv.weight, plain.weight)
    assert conv.weight is not plain.weight
    assert sorted(dict(conv.named_parameters())) == ["bias", "gain", "weight"]
    assert torch.equal(conv.bias, torch.zeros(6))
    with torch.no_grad():
        conv.bias.copy_(draw(6))
        conv.gain.copy_(draw(6))
        plain.weight.copy_(standardise(conv.weight, 1.3, conv.gain))
    x = draw(2, 4, 7, 5)
    torch.testing.assert_close(conv(x), plain(x) + conv.bias.view(1, -1, 1, 1))
    biased = nn.Conv2d(1, 2, 3)
    assert torch.equal(WSConv2d(biased).bias, biased.bias)


def test_gradients_flow_through_the_standardisation() -> None:
    conv = WSConv2d(nn.Conv2d(1, 2, 3))
    conv(draw(3, 1, 5, 5)).square().sum().backward()
    slope = conv.weight.grad.flatten(1)
    # Neither the mean nor the length of a row matters: the gradient is at right angles to both.
    rows = conv.weight.detach().flatten(1)
    centred = rows - rows.mean(dim=1, keepdim=True)
    assert float(slope.abs().max()) > 1e-3
    assert float(slope.sum(dim=1).abs().max()) < 1e-4
    assert float((slope * centred).sum(dim=1).abs().max()) < 1e-4


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(64, 8),
        nn.LayerNorm(8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 3),
    )


def test_all_norms_go_and_all_convolutions_change_but_linear_layers_do_not() -> None:
    model = small()
    linear, raw = model[5].weight, model[0].weight
    assert norm_free(model, gain=True) == 2
    kinds = [type(part).__name__ for part in model.modules()]
    assert not [kind for kind in kinds if "Norm" in kind]
    assert kinds.count("WSConv2d") == 2
    assert model[5].weight is linear
    assert torch.equal(model[0].weight, raw)
    assert not list(model.buffers())
    # A model that has been through it stays as it is.
    assert norm_free(model) == 0


def test_gamma_follows_the_activation() -> None:
    model = small()
    norm_free(model, activation="tanh")
    assert model[0].gamma == model[3][0].gamma == GAMMA["tanh"]


def test_frozen_parts_keep_their_norms() -> None:
    model = nn.Sequential(freeze(small()), small())
    assert norm_free(model) == 2
    assert isinstance(model[0][1], nn.BatchNorm2d)
    assert type(model[0][0]) is nn.Conv2d


def test_attention_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs its norms"):
        norm_free(nn.Sequential(nn.TransformerEncoderLayer(8, 2)))


def test_folding_changes_no_output_and_leaves_the_model_alone() -> None:
    model = nn.Sequential(small(), nn.Flatten())
    norm_free(model, gain=True)
    x = draw(5, 1, 8, 8)
    plain = folded(model)
    torch.testing.assert_close(plain(x), model(x))
    assert type(plain[0][0]) is nn.Conv2d
    assert isinstance(model[0][0], WSConv2d)
    both = folded(WSConv2d(nn.Conv2d(1, 2, 3)))
    assert isinstance(both, nn.Module)


def residual() -> nn.Sequential:
    return nn.Sequential(ResidualBlock(4, 4), ResidualBlock(4, 8, 2), ResidualBlock(8, 8))


def test_residual_branches_start_at_0_and_know_the_variance_of_their_depth() -> None:
    model = residual()
    norm_free(model, alpha=0.5)
    betas = [block.beta for block in model]
    assert betas == pytest.approx([1.0, math.sqrt(1.25), math.sqrt(1.25)])
    first, second, _ = model
    assert isinstance(first, NormFreeBlock)
    x = draw(2, 4, 6, 6).relu()
    assert torch.equal(first(x), x)
    torch.testing.assert_close(second(x), second.shortcut(x / second.beta).relu())


def test_a_residual_block_is_the_formula() -> None:
    model = residual()
    norm_free(model, alpha=0.5)
    block = model[1]
    with torch.no_grad():
        block.branch.fill_(1.5)
    x = draw(2, 4, 6, 6).relu() / block.beta
    y = block.conv2(block.conv1(x).relu())
    expected = (block.shortcut(x) + 0.5 * 1.5 * y).relu()
    torch.testing.assert_close(block(x * block.beta), expected)


def test_clipping_is_per_row_and_spares_what_is_short() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3.0, 4.0]])
    gradient = torch.tensor([[6.0, 8.0], [3.0, 4.0], [0.3, 0.4]])
    clipped = adaptive_clip(weight, gradient, limit=0.2)
    # Limits: 0.2 * 5 = 1; 0.2 * 0.001, for a row of zeros; 1, which the last does not reach.
    expected = torch.tensor([[0.6, 0.8], [0.6 * 2e-4, 0.8 * 2e-4], [0.3, 0.4]])
    torch.testing.assert_close(clipped, expected)


def test_a_vector_is_one_unit_and_a_kernel_row_spans_its_channels() -> None:
    bias, slope = torch.tensor([3.0, 4.0]), torch.tensor([30.0, 40.0])
    torch.testing.assert_close(adaptive_clip(bias, slope, 0.1), torch.tensor([0.3, 0.4]))
    kernel, slopes = draw(4, 3, 2, 2), 9 * draw(4, 3, 2, 2) + 1
    clipped = adaptive_clip(kernel, slopes, 0.1)
    torch.testing.assert_close(clipped.flatten(1).norm(dim=1), 0.1 * kernel.flatten(1).norm(dim=1))
    torch.testing.assert_close(F.normalize(clipped.flatten(1)), F.normalize(slopes.flatten(1)))
    zero = adaptive_clip(kernel, torch.zeros_like(kernel), 0.1)
    assert torch.equal(zero, torch.zeros_like(kernel))


def test_clipping_a_model_spares_the_names_it_is_told() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    (100 * model(draw(5, 3))).square().sum().backward()
    before = {name: value.grad.clone() for name, value in model.named_parameters()}
    clip_units(model, 0.01, spared={"1.weight", "1.bias"})
    for name, value in model.named_parameters():
        if name.startswith("1."):
            assert torch.equal(value.grad, before[name])
        else:
            expected = adaptive_clip(value.detach(), before[name], 0.01)
            assert torch.equal(value.grad, expected)
            assert not torch.equal(value.grad, before[name])
