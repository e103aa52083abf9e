from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from motet.core import Batch, ConfigError, Output, freeze
from motet.core.rng import generator
from motet.nn import subspace
from motet.nn.subspace import Sketch, grown, projected, rank_for, threshold, without


def randn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=generator(seed))


def basis_of(d: int, r: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(randn(d, r, seed=seed).double()).Q.float()


class Net(nn.Module):
    """A convolution and a linear layer with dropout between them; one layer is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.body = freeze(nn.Conv2d(1, 2, 1))
        self.conv = nn.Conv2d(2, 3, 3, padding=1, stride=2)
        self.drop = nn.Dropout(0.9)
        self.head = nn.Linear(12, 4)

    def forward(self, batch: Batch) -> Output:
        x = torch.relu(self.conv(self.body(batch.inputs["image"])))
        return Output(self.head(self.drop(x.flatten(1))))


def batches(n: int = 10) -> list[Batch]:
    pictures = randn(n, 1, 4, 4, seed=3)
    return [Batch({"image": part}, {}, None, torch.arange(len(part))) for part in pictures.split(4)]


def test_columns_of_a_linear_layer_are_its_inputs() -> None:
    x = randn(5, 3)
    assert torch.equal(subspace.columns_of(nn.Linear(3, 2), x), x.T)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_flat_weight_times_the_columns_is_the_convolution(groups: int) -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups, bias=False)
    x = randn(5, 4, 7, 6)
    columns = subspace.columns_of(conv, x)
    assert columns.shape == (4 // groups * 9, 5 * groups * 4 * 3)
    flat = conv.weight.flatten(1).split(6 // groups)
    parts = columns.view(len(columns), 5, groups, 12).unbind(2)
    found = torch.cat(
        [torch.einsum("od,dnl->nol", w, part) for w, part in zip(flat, parts, strict=True)], dim=1
    )
    torch.testing.assert_close(found, conv(x).flatten(2), atol=1e-5, rtol=1e-5)


def test_padding_in_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="padding with zeros, in numbers"):
        subspace.columns_of(nn.Conv2d(1, 1, 3, padding="same"), randn(1, 1, 4, 4))


def test_the_trained_layers_are_named_by_their_weights() -> None:
    assert list(subspace.layers_of(Net())) == ["conv.weight", "head.weight"]
    assert list(subspace.layers_of(nn.Linear(2, 2))) == ["weight"]


def test_a_projected_update_does_nothing_to_old_inputs_and_all_to_others() -> None:
    basis = basis_of(6, 2)
    update = randn(3, 6, seed=1)
    found = projected(update, basis)
    old = basis @ randn(2, 9, seed=2)
    other = without(basis, randn(6, 9, seed=4))
    torch.testing.assert_close(found @ old, torch.zeros(3, 9), atol=1e-5, rtol=0)
    torch.testing.assert_close(found @ other, update @ other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(projected(found, basis), found, atol=1e-6, rtol=1e-6)


def test_of_a_convolution_the_flat_rows_are_projected() -> None:
    basis = basis_of(18, 5)
    update = randn(4, 2, 3, 3, seed=1)
    found = projected(update, basis)
    eye = torch.eye(18)
    expected = (update.flatten(1) @ (eye - basis @ basis.T)).view(4, 2, 3, 3)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert projected(update, None) is update


@pytest.mark.parametrize(("draw", "variance"), [("normal", 1.0), ("uniform", 1 / 3)])
def test_a_sketch_is_the_rest_times_a_random_matrix(draw: subspace.Draw, variance: float) -> None:
    """Recovered from columns that are the identity: the sketch is then G itself."""
    sketch = Sketch(torch.zeros(40, 50), None, generator(7), draw)
    sketch.add(torch.eye(40))
    assert float(sketch.total.mean()) == pytest.approx(0, abs=0.05)
    assert float(sketch.total.var()) == pytest.approx(variance, rel=0.1)
    assert (float(sketch.total.abs().max()) <= 1) == (draw == "uniform")


def test_sketches_add_up_over_batches_and_draw_afresh() -> None:
    whole = Sketch(torch.zeros(6, 6), None, generator(1))
    columns = randn(6, 4)
    whole.add(columns)
    first = whole.total.clone()
    whole.add(columns)
    second = whole.total - first
    assert float((second - first).abs().max()) > 0.1


def test_the_ratio_is_not_squared() -> None:
    basis = torch.eye(4)[:, :1]
    sketch = Sketch(torch.zeros(4, 4), basis, generator(0))
    sketch.add(torch.tensor([[3.0], [4.0], [0.0], [0.0]]))
    sketch.add(torch.tensor([[0.0], [0.0], [0.0], [0.0]]))
    assert sketch.ratio == pytest.approx(0.8)
    assert float(sketch.total[0].abs().max()) == 0
    assert Sketch(torch.zeros(4, 4), None, generator(0)).ratio == 1.0
    assert Sketch(torch.zeros(4, 4), basis, generator(0)).ratio == 1.0


def test_the_inputs_are_those_of_eval_mode_and_the_mode_comes_back() -> None:
    model = Net().train()
    found = subspace.sketch_inputs(model, batches(), {}, generator(0))
    assert model.training
    assert not model.conv._forward_pre_hooks
    assert {name: sketch.total.shape for name, sketch in found.items()} == {
        "conv.weight": (18, 18),
        "head.weight": (12, 12),
    }
    x = torch.cat([batch.inputs["image"] for batch in batches()])
    with torch.no_grad():
        read = torch.relu(model.conv(model.body(x))).flatten(1)
    assert found["head.weight"].whole == pytest.approx(float(read.double().square().sum()))


def test_a_sketch_spans_what_the_layer_read() -> None:
    """Inputs of rank 2 in 12 dimensions: so is the sketch, and in the same plane."""
    model = nn.Linear(12, 3)
    plane = basis_of(12, 2)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = model

        def forward(self, batch: Batch) -> Output:
            return Output(self.layer(batch.inputs["x"]))

    x = randn(30, 2, seed=5) @ plane.T
    batch = Batch({"x": x}, {}, None, torch.arange(30))
    sketch = subspace.sketch_inputs(Wrapped(), [batch], {}, generator(0))["layer.weight"]
    torch.testing.assert_close(without(plane, sketch.total), torch.zeros(12, 12), atol=1e-4, rtol=0)
    basis = grown(None, sketch.total, sketch.ratio, 0.999)
    assert basis.shape == (12, 2)
    torch.testing.assert_close(plane, basis @ basis.T @ plane, atol=1e-5, rtol=0)
    # And once it is known, nothing of it is left to send.
    again = subspace.sketch_inputs(Wrapped(), [batch], {"layer.weight": basis}, generator(1))
    assert again["layer.weight"].ratio < 1e-5
    assert float(again["layer.weight"].total.abs().max()) < 1e-4


def test_a_smaller_sketch_is_smaller() -> None:
    found = subspace.sketch_inputs(Net(), batches(), {}, generator(0), size=0.5)
    assert found["head.weight"].total.shape == (12, 6)
    wide = subspace.sketch_inputs(Net(), batches(), {}, generator(0), size=5)
    assert wide["head.weight"].total.shape == (12, 60)


def test_the_share_that_is_wanted_of_what_is_left() -> None:
    assert threshold(1.0, 0.95) == pytest.approx(0.95)
    assert threshold(0.5, 0.95) == pytest.approx(0.9)
    assert threshold(0.04, 0.95) == pytest.approx(-0.25)
    assert threshold(0.0, 0.95) == 0.0


def test_ranks_by_hand() -> None:
    singular = torch.tensor([3.0, 2.0, 1.0, 1.0, 1.0])  # energies 9, 4, 1, 1, 1 of 16
    shares = [-0.5, 0.0, 9 / 16 - 1e-9, 9 / 16, 13 / 16, 0.99, 1.0]
    assert [rank_for(singular, share) for share in shares] == [1, 1, 1, 2, 3, 5, 5]
    assert rank_for(torch.zeros(4), 0.5) == 0


def test_a_grown_basis_is_orthonormal_and_keeps_the_old_span() -> None:
    old = basis_of(20, 6)
    sketch = without(old, randn(20, 20, seed=1))
    found = grown(old, sketch, 0.6, 0.95)
    assert 6 < found.shape[1] <= 20
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.T @ found, torch.eye(found.shape[1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(without(found, old), torch.zeros(20, 6), atol=1e-6, rtol=0)


def test_a_basis_never_has_more_directions_than_there_are() -> None:
    full = basis_of(5, 5)
    assert grown(full, randn(5, 5), 0.9, 0.99).shape == (5, 5)
    nearly = basis_of(5, 4)
    assert grown(nearly, randn(5, 9), 0.9, 0.99).shape == (5, 5)


def test_little_left_still_takes_one_direction_and_nothing_takes_none() -> None:
    old = basis_of(8, 3)
    sketch = 1e-3 * without(old, randn(8, 8, seed=2))
    assert grown(old, sketch, 0.01, 0.95).shape == (8, 4)
    assert grown(old, torch.zeros(8, 8), 0.0, 0.95).shape == (8, 3)
    assert grown(None, torch.zeros(8, 8), 1.0, 0.95).shape == (8, 0)
