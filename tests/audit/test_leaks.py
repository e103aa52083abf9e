"""Labels and inputs that a gradient gives away, exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.audit.victims import convolutions, perceptron, pictures, rng, upload

from motet.audit.leaks import analytic, analytic_picture, infer_labels
from motet.audit.scores import psnr
from motet.audit.upload import upload_of
from motet.core import DataError


@pytest.mark.parametrize("label", range(4))
@pytest.mark.parametrize("bias", [True, False])
def test_the_label_of_one_picture_is_always_found(label: int, bias: bool) -> None:
    seen = upload_of(convolutions(bias=bias), pictures(1), torch.tensor([label]))
    assert infer_labels(seen).tolist() == [label]


@pytest.mark.parametrize("labels", [[0, 3], [1, 1, 1], [0, 2, 2, 3], [3, 3, 0, 0, 1, 3]])
def test_a_bias_tells_how_often_each_label_occurs(labels: list[int]) -> None:
    seen = upload_of(convolutions(), pictures(len(labels)), torch.tensor(labels))
    assert infer_labels(seen).tolist() == sorted(labels)


def test_row_sums_tell_distinct_labels() -> None:
    seen = upload_of(convolutions(bias=False), pictures(3), torch.tensor([3, 0, 1]))
    assert infer_labels(seen).tolist() == [0, 1, 3]


def test_more_pictures_than_classes_without_a_bias_still_have_a_label_each() -> None:
    seen = upload_of(convolutions(bias=False), pictures(6), torch.arange(6) % 4)
    assert len(infer_labels(seen)) == 6


def test_a_first_layer_with_bias_leaks_its_input_exactly() -> None:
    seen = upload(perceptron())
    found = analytic(seen.gradients).reshape(1, 1, 8, 8)
    assert float(psnr(found, pictures(1))) > 60
    assert torch.equal(analytic(seen.gradients, "layers.1.weight"), found.flatten())


def test_the_leak_is_given_in_pixels() -> None:
    seen = upload_of(perceptron(), pictures(1), torch.tensor([1]), mean=0.3, std=0.2)
    found = analytic_picture(seen)
    assert found is not None
    assert float(psnr(found, pictures(1))) > 60


def test_another_layer_leaks_its_own_input() -> None:
    model = perceptron()
    found = analytic(upload(model).gradients, "layers.3.weight")
    with torch.no_grad():
        hidden = model.layers[:3](pictures(1))
    torch.testing.assert_close(found, hidden[0], atol=1e-5, rtol=1e-4)


def test_convolutions_leak_no_picture_at_once() -> None:
    assert analytic_picture(upload()) is None


def test_the_row_that_says_most_is_read() -> None:
    weight = torch.tensor([[0.0, 0.0], [0.2, 0.4], [0.3, 0.7]])
    gradients = {"a.weight": weight, "a.bias": torch.tensor([0.0, -2.0, 1e-6])}
    torch.testing.assert_close(analytic(gradients), torch.tensor([-0.1, -0.2]))


def test_noise_ends_the_leak() -> None:
    seen = upload(perceptron())
    noisy = {
        name: value + 0.1 * torch.randn(value.shape, generator=rng())
        for name, value in seen.gradients.items()
    }
    found = analytic_picture(replace(seen, gradients=noisy))
    assert found is not None
    assert float(psnr(found, pictures(1))) < 20


def test_a_gradient_of_zero_gives_nothing_away() -> None:
    seen = upload(perceptron())
    zero = {name: torch.zeros_like(value) for name, value in seen.gradients.items()}
    assert analytic_picture(replace(seen, gradients=zero)) is None
    with pytest.raises(DataError, match="is 0"):
        analytic(zero)


def test_a_model_without_such_a_layer_is_refused() -> None:
    with pytest.raises(DataError, match="linear layer with a bias"):
        analytic(upload(convolutions(bias=False)).gradients)
