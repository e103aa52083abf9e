import numpy as np
import pytest
import torch
from torch import Tensor, nn

from motet.core.rng import generator
from motet.nn.layers import PIE, ReLU, ResidualBlock, group_norm, masked_mean, mlp


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "layers", *shape))


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def pie_by_hand(pie: PIE, whole: Tensor, local: Tensor, mask: Tensor) -> np.ndarray:
    """The card's formula in numpy, one row and one position at a time."""
    rows = []
    for u, x, m in zip(array(whole), array(local), mask.numpy(), strict=True):
        scores = [(array(pie.w2.weight) @ np.tanh(array(pie.w1.weight) @ xp))[0] for xp in x]
        weights = np.where(m, np.exp(scores), 0)
        found = (weights / weights.sum()) @ x
        linear = array(pie.project.weight) @ found + array(pie.project.bias)
        v = u + 1 / (1 + np.exp(-linear))
        v = (v - v.mean()) / np.sqrt(v.var() + pie.norm.eps)
        rows.append(array(pie.norm.weight) * v + array(pie.norm.bias))
    return np.stack(rows)


@pytest.mark.parametrize("padded", [False, True])
def test_pie_is_the_formula(padded: bool) -> None:
    pie = PIE(inputs=10, width=6)
    nn.init.normal_(pie.norm.weight, generator=generator(1))
    nn.init.normal_(pie.norm.bias, generator=generator(2))
    whole, local = draw(4, 6), draw(4, 7, 10)
    mask = torch.ones(4, 7, dtype=torch.bool)
    if padded:
        mask = torch.arange(7) < torch.tensor([[1], [3], [7], [5]])
    out = pie(whole, local, mask if padded else None)
    np.testing.assert_allclose(array(out), pie_by_hand(pie, whole, local, mask), atol=1e-5)


def test_pie_has_one_head_with_half_as_many_hidden_units_and_no_bias_before_the_softmax() -> None:
    pie = PIE(inputs=512, width=256)
    shapes = {name: tuple(value.shape) for name, value in pie.named_parameters()}
    assert shapes == {
        "w1.weight": (256, 512),
        "w2.weight": (1, 256),
        "project.weight": (256, 512),
        "project.bias": (256,),
        "norm.weight": (256,),
        "norm.bias": (256,),
    }


def test_pads_get_neither_weight_nor_gradient() -> None:
    pie = PIE(inputs=4, width=6)
    local = draw(2, 5, 4).requires_grad_()
    mask = torch.arange(5) < torch.tensor([[2], [4]])
    pie(draw(2, 6), local, mask).square().sum().backward()
    assert local.grad is not None
    assert (local.grad.abs().sum(dim=2) > 0).equal(mask)


def test_mlp_drops_hidden_units_in_training_alone() -> None:
    layers = mlp(3, 50, 2, dropout=0.5)
    x = draw(4, 3)
    layers.eval()
    assert layers(x).shape == (4, 2)
    assert layers(x).equal(layers(x))
    layers.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not layers(x).equal(layers(x))


@pytest.mark.parametrize(
    ("channels", "out", "stride", "side"), [(8, 8, 1, 9), (8, 16, 2, 5), (8, 16, 1, 9)]
)
def test_residual_block_shapes(channels: int, out: int, stride: int, side: int) -> None:
    block = ResidualBlock(channels, out, stride)
    assert block(draw(2, channels, 9, 9)).shape == (2, out, side, side)


def test_residual_block_is_its_short_cut_where_the_second_norm_is_zero() -> None:
    block = ResidualBlock(8, 8)
    nn.init.zeros_(block.norm2.weight)
    x = draw(2, 8, 4, 4)
    torch.testing.assert_close(block(x), x.relu())


def test_a_row_does_not_see_its_batch() -> None:
    block = ResidualBlock(8, 16, 2)
    x = draw(3, 8, 6, 6)
    torch.testing.assert_close(block(x)[:1], block(x[:1]))


@pytest.mark.parametrize(("channels", "groups"), [(8, 8), (64, 8), (12, 4), (7, 1)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    assert group_norm(channels).num_groups == groups


def test_masked_mean_counts_what_is_there() -> None:
    local = torch.tensor([[[1.0], [3.0], [99.0]], [[5.0], [99.0], [99.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(local, mask).tolist() == [[2.0], [5.0]]


def test_a_residual_network_is_the_same_for_hooks_that_look_on() -> None:
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3), group_norm(8), ReLU(), ResidualBlock(8, 16, 2))
    x = draw(2, 3, 9, 9).requires_grad_()
    trunk(x).square().sum().backward()
    wanted = [value.grad for value in trunk.parameters()]
    trunk.zero_grad()
    seen: list[Tensor] = []
    for part in trunk.modules():
        part.register_forward_hook(lambda part, given, found: seen.append(found.detach().clone()))
        part.register_full_backward_hook(lambda part, down, up: None)
    trunk(x).square().sum().backward()
    for value, gradient in zip(trunk.parameters(), wanted, strict=True):
        assert value.grad is not None
        assert torch.equal(value.grad, gradient)
    assert float(seen[1].min()) < 0 == float(seen[2].min())


def test_relu_leaves_another_tensors_memory_alone() -> None:
    x = draw(2, 4)
    before = x.clone()
    torch.testing.assert_close(ReLU()(x[:1]), before[:1].relu())
    assert torch.equal(x, before)
    assert ReLU()(x) is x
