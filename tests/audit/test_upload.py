"""An upload is the gradient that a site's optimiser would have taken."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.audit.victims import Net, convolutions, perceptron, pictures
from torch import nn
from torch.nn import functional as F

from motet.audit.upload import (
    Local,
    Upload,
    gradients_of,
    gradients_of_update,
    last_layer,
    logits_of,
    scale_of,
    upload_of,
)
from motet.core import ConfigError, DataError
from motet.models.base import MultimodalModel
from motet.models.hog import HogMLP
from motet.models.pixels import CNN
from motet.models.random_features import RandomFeatures
from motet.models.resnet import ResNetGN

LABELS = torch.tensor([1, 3])


def trained(model: nn.Module, local: Local) -> dict[str, torch.Tensor]:
    """The weights after plain SGD, by torch's own optimiser."""
    model = copy.deepcopy(model)
    sgd = torch.optim.SGD(model.parameters(), lr=local.lr)
    x = pictures(2)
    for step in range(local.steps):
        at = (step * local.batch) % 2
        rows = slice(at, at + local.batch)
        sgd.zero_grad()
        F.cross_entropy(logits_of(model, x[rows]), LABELS[rows]).backward()
        sgd.step()
    return {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("local", [Local(0.1, 1, 2), Local(0.1, 3, 2), Local(0.2, 4, 1)])
def test_steps_are_unrolled_as_the_optimiser_takes_them(local: Local) -> None:
    model = perceptron()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    seen = gradients_of_update(before, trained(model, local), local.lr, local.steps)
    made = gradients_of(model, pictures(2), LABELS, local=local)
    for name, value in seen.items():
        torch.testing.assert_close(made[name], value, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(model.get_parameter(name).detach(), before[name])


def test_an_update_of_one_step_is_its_gradient() -> None:
    model = perceptron()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    after = trained(model, Local(0.1, 1, 2))
    plain = gradients_of(model, pictures(2), LABELS)
    for name, value in gradients_of_update(before, after, 0.1, 1).items():
        torch.testing.assert_close(value, plain[name], atol=1e-6, rtol=1e-4)


def test_an_update_leaves_counters_and_strangers_out() -> None:
    sent = {"a": torch.ones(2), "n": torch.tensor(3), "b": torch.ones(1)}
    made = gradients_of_update(sent, {"a": torch.zeros(2), "n": torch.tensor(4)}, 0.5, 4)
    assert list(made) == ["a"]
    assert made["a"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("lr", "steps"), [(0.0, 1), (0.1, 0)])
def test_an_update_without_a_step_is_refused(lr: float, steps: int) -> None:
    with pytest.raises(DataError, match="positive"):
        gradients_of_update({}, {}, lr, steps)


@pytest.mark.parametrize("local", [None, Local(0.5, 2, 2)])
def test_a_gradient_can_be_differentiated_in_the_pixels(local: Local | None) -> None:
    model = perceptron().double()
    x = pictures(2).double().requires_grad_()

    def size(pixels: torch.Tensor) -> torch.Tensor:
        made = gradients_of(model, pixels, LABELS, local=local, graph=True)
        return torch.stack([value.square().sum() for value in made.values()]).sum()

    assert torch.autograd.gradcheck(size, (x,))


def test_soft_targets_of_one_class_are_its_label() -> None:
    model, x = convolutions(), pictures(2)
    soft = F.one_hot(LABELS, 4).float()
    hard = gradients_of(model, x, LABELS)
    for name, value in gradients_of(model, x, soft).items():
        torch.testing.assert_close(value, hard[name])


def test_pictures_are_standardised_for_the_model() -> None:
    model = convolutions()
    x = pictures(2)
    torch.testing.assert_close(logits_of(model, x, 0.25, 0.5), logits_of(model, (x - 0.25) / 0.5))


def test_the_model_is_as_it_was_and_statistics_are_those_of_eval_mode() -> None:
    net = Net(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 36, 4))
    before = copy.deepcopy(net.state_dict())
    made = upload_of(net, pictures(2), LABELS)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    plain = gradients_of(net.eval(), pictures(2), LABELS)
    assert all(torch.equal(made.gradients[name], value) for name, value in plain.items())
    assert (made.batch, made.image, made.classes) == (2, (1, 8, 8), 4)


def test_a_parameter_that_no_picture_reaches_has_gradient_zero() -> None:
    net = convolutions()
    net.unused = nn.Parameter(torch.ones(2))
    assert gradients_of(net, pictures(2), LABELS)["unused"].tolist() == [0, 0]


@pytest.mark.parametrize("wrong", [{}, {"other": torch.ones(1)}])
def test_gradients_of_another_model_are_refused(wrong: dict[str, torch.Tensor]) -> None:
    with pytest.raises(DataError):
        Upload(wrong, convolutions(), 1, (1, 8, 8), 4)


def test_the_last_layer_is_the_one_with_a_row_per_class() -> None:
    made = upload_of(perceptron(), pictures(2), LABELS)
    assert last_layer(made) == ("layers.3.weight", "layers.3.bias")
    bare = upload_of(convolutions(bias=False), pictures(2), LABELS)
    assert last_layer(bare) == ("layers.5.weight", None)
    kept = {"layers.0.weight": made.model.get_parameter("layers.1.weight").detach()}
    with pytest.raises(DataError, match="last linear layer"):
        last_layer(
            Upload({"layers.1.weight": kept["layers.0.weight"]}, made.model, 1, (1, 8, 8), 4)
        )


@pytest.mark.parametrize("encoder", [CNN(side=16, mean=0.3, std=0.2), ResNetGN(size=16)])
def test_the_scale_takes_pixels_to_what_motets_encoders_prepare(encoder: nn.Module) -> None:
    model = MultimodalModel({"image": encoder}, 3).eval()
    mean, std, channels, side = scale_of(model)
    column = torch.randint(0, 256, (2, channels, side, side), generator=torch.Generator()).byte()
    prepared = encoder.prepare(column)
    with torch.no_grad():
        wanted = model.head(F.gelu(encoder(prepared)))
        made = logits_of(model, column.float() / 255, mean, std)
    torch.testing.assert_close(made, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        convolutions(),
        MultimodalModel({"image": CNN()}),
        MultimodalModel({"image": RandomFeatures()}, 3),
        MultimodalModel({"image": HogMLP()}, 3),
    ],
)
def test_models_without_a_gradient_down_to_the_pixels_are_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigError):
        scale_of(model)


def test_a_model_without_scores_is_refused() -> None:
    model = MultimodalModel({"image": CNN(side=8)})
    with pytest.raises(ConfigError, match="classify: true"):
        logits_of(model, pictures(1))
