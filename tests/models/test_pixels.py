import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from motet.core.rng import generator, seeded
from motet.models.pixels import CNN

NORMS = ("none", "batch", "group", "instance")


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "pixels", *shape))


def build(**options: object) -> CNN:
    with seeded(0):
        return CNN(**{"maps": (4, 6), "side": 8, "width": 5, **options})  # type: ignore[arg-type]


def by_hand(cnn: CNN, x: Tensor) -> Tensor:
    """Convolution, norm, ReLU, pooling, in this order and in torch's usual layout."""
    pooled = [part for part in cnn.layers if isinstance(part, nn.MaxPool2d | nn.AvgPool2d)]
    parts = iter(cnn.layers)
    for pool in pooled:
        x = next(parts)(x)
        for part in parts:
            if isinstance(part, nn.MaxPool2d | nn.AvgPool2d | nn.ReLU):
                next(parts)
                break
            x = part(x)
        x = pool(F.relu(x))
    return cnn.out(x.contiguous().flatten(1))


def slopes(cnn: CNN, out: Tensor, x: Tensor) -> dict[str, Tensor]:
    values = {"x": x, **dict(cnn.named_parameters())}
    found = torch.autograd.grad(out.sin().sum(), list(values.values()))
    return dict(zip(values, found, strict=True))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_convolution_norm_relu_and_pooling(norm: str, pool: str, channels: int) -> None:
    cnn = build(norm=norm, pool=pool, channels=channels)
    x = draw(7, channels, 8, 8).requires_grad_()
    out, expected = cnn(x), by_hand(cnn, x)
    torch.testing.assert_close(out, expected)
    wanted = slopes(cnn, expected, x)
    for name, value in slopes(cnn, out, x).items():
        torch.testing.assert_close(value, wanted[name], msg=name, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_names_of_weights_are_those_of_old_checkpoints(norm: str) -> None:
    step = 3 if norm == "none" else 4
    places = [f"layers.{number}" for number in (0, step)]
    if norm != "none":
        places += [f"layers.{number}" for number in (1, step + 1)]
    expected = {f"{place}.{kind}" for place in (*places, "out") for kind in ("weight", "bias")}
    assert {name for name, _ in build(norm=norm).named_parameters()} == expected


def test_pooling_comes_first_and_gives_and_learns_the_same() -> None:
    # Windows that are negative throughout, that tie, and that have one positive cell.
    x = draw(4, 3, 8, 8)
    x[0] = -x[0].abs()
    x[1] = x[1].round()
    found = []
    for first, second in ((nn.MaxPool2d(2), nn.ReLU()), (nn.ReLU(), nn.MaxPool2d(2))):
        value = x.clone().requires_grad_()
        out = second(first(value))
        out.cos().mul(draw(4, 3, 4, 4)).sum().backward()
        assert value.grad is not None
        found.append((out, value.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    kinds = [type(part) for part in build(norm="group").layers]
    assert kinds == 2 * [nn.Conv2d, nn.GroupNorm, nn.MaxPool2d, nn.ReLU]
    kinds = [type(part) for part in build(pool="mean").layers]
    assert kinds == 2 * [nn.Conv2d, nn.ReLU, nn.AvgPool2d]


class Noting(nn.Conv2d):
    """A convolution that notes whether the channels of its input's cells lie together."""

    together: bool

    def forward(self, x: Tensor) -> Tensor:
        self.together = x.stride(1) == 1
        return super().forward(x)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_the_numbers_of_a_cell_lie_together_but_for_an_instance_norm(
    norm: str, channels: int
) -> None:
    cnn = build(norm=norm, channels=channels)
    convolutions = [part for part in cnn.layers if isinstance(part, nn.Conv2d)]
    for part in convolutions:
        part.__class__ = Noting
    cnn(draw(2, channels, 8, 8))
    assert [part.together for part in convolutions] == 2 * [norm != "instance"]


@pytest.mark.parametrize("channels", [1, 3])
def test_opacus_finds_the_gradients_of_single_rows(channels: int) -> None:
    opacus = pytest.importorskip("opacus.grad_sample")
    cnn = build(channels=channels)
    x = draw(5, channels, 8, 8)
    expected = []
    for row in x:
        out = cnn(row.unsqueeze(0)).sin().sum()
        expected.append(torch.autograd.grad(out, list(cnn.parameters())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        listening = opacus.GradSampleModule(cnn, strict=True, loss_reduction="sum")
        listening(x).sin().sum().backward()
    for value, rows in zip(cnn.parameters(), zip(*expected, strict=True), strict=True):
        found = value.grad_sample
        assert isinstance(found, Tensor)
        torch.testing.assert_close(found, torch.stack(rows), atol=1e-5, rtol=1e-4)
    listening.to_standard_module()
    assert not any(part._forward_hooks for part in cnn.layers)


def test_weights_and_their_gradients_lie_as_ever() -> None:
    cnn = build(channels=3)
    cnn(draw(4, 3, 8, 8)).sum().backward()
    for value in cnn.parameters():
        assert value.is_contiguous()
        assert value.grad is not None
        assert value.grad.is_contiguous()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_several_models_at_once(channels: int, pool: str) -> None:
    cnn = build(channels=channels, pool=pool, norm="group")
    x = draw(3, 4, channels, 8, 8)
    own = {
        name: torch.stack([value.detach() * (1 + i / 4) for i in range(3)])
        for name, value in cnn.named_parameters()
    }
    together = vmap(lambda values, rows: functional_call(cnn, values, (rows,)))(own, x)
    for i in range(3):
        alone = functional_call(cnn, {name: value[i] for name, value in own.items()}, (x[i],))
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=1e-4)


def test_second_derivatives_are_those_of_the_plain_network() -> None:
    cnn = build(channels=3).double()
    found = []
    for network in (cnn, lambda x: by_hand(cnn, x)):
        x = draw(2, 3, 8, 8).double().requires_grad_()
        slope = torch.autograd.grad(network(x).sin().sum(), cnn.layers[0].weight, create_graph=True)
        (second,) = torch.autograd.grad(slope[0].square().sum(), x)
        found.append(second)
    torch.testing.assert_close(found[0], found[1])
    assert found[0].abs().max() > 0
