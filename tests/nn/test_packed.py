import pytest
import torch
from torch import Tensor, nn

from motet.core.rng import generator, seeded
from motet.nn.packed import PackedLayer, Packing

LENGTHS = torch.tensor([[3], [1], [5], [2]])
MASK = torch.arange(5) < LENGTHS


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0, "packed", *shape))


def layers(dropout: float = 0.0) -> tuple[PackedLayer, nn.TransformerEncoderLayer]:
    with seeded(0):
        ours = PackedLayer(16, 4, 64, dropout)
    theirs = nn.TransformerEncoderLayer(
        16, 4, 64, dropout, "gelu", batch_first=True, norm_first=True
    )
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_pieces_are_taken_text_by_text_and_put_back() -> None:
    values = draw(4, 5, 3)
    packing = Packing(MASK)
    packed = packing.pack(values)
    assert packed.equal(values[MASK])
    assert packing.places().tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 1]
    assert packing.unpack(packed).equal(values * MASK.unsqueeze(-1))


def test_the_mean_is_over_the_pieces_of_each_text() -> None:
    values = draw(4, 5, 3)
    mask = MASK.clone()
    mask[1] = False
    mean = Packing(mask).mean(values[mask])
    torch.testing.assert_close(mean[0], values[0, :3].mean(dim=0))
    torch.testing.assert_close(mean[2], values[2].mean(dim=0))
    assert not mean[1].any()


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_is_that_of_torch(training: bool) -> None:
    ours, theirs = (layer.train(training) for layer in layers())
    x = draw(4, 5, 16).requires_grad_()
    packing = Packing(MASK)
    found = ours(packing.pack(x), packing)
    expected = theirs(x, src_key_padding_mask=~MASK)[MASK]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = draw(*found.shape)
    wanted = torch.autograd.grad((expected * weights).sum(), [x, *theirs.parameters()])
    slopes = torch.autograd.grad((found * weights).sum(), [x, *ours.parameters()])
    for value, right in zip(slopes, wanted, strict=True):
        torch.testing.assert_close(value, right, atol=1e-5, rtol=1e-4)


def test_names_and_first_weights_are_those_of_torch() -> None:
    with seeded(0):
        theirs = nn.TransformerEncoderLayer(
            16, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True
        )
    ours = layers()[0].state_dict()
    assert list(ours) == list(theirs.state_dict())
    assert all(value.equal(ours[name]) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize("dropout", [0.0, 1e-12])
def test_a_text_without_pieces_leaves_the_others_alone(dropout: float) -> None:
    # Attention with dropout is another kernel.
    ours, _ = layers(dropout)
    mask = torch.cat([MASK, torch.zeros(1, 5, dtype=torch.bool)])
    x = draw(4, 5, 16)
    results = []
    for given in (MASK, mask):
        packing = Packing(given)
        value = x[MASK].requires_grad_()
        with seeded(1):
            out = ours(value, packing)
        (slope,) = torch.autograd.grad(out.square().sum(), value)
        results.append((out, slope))
    for one, other in zip(*results, strict=True):
        assert other.isfinite().all()
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("part", ["dropout", "dropout1", "dropout2", "self_attn"])
def test_dropout_is_where_torch_has_it_and_in_training_alone(part: str) -> None:
    ours, theirs = layers()
    packing = Packing(MASK)
    x = draw(4, 5, 16)[MASK]
    plain = ours(x, packing)
    for layer in (ours, theirs):
        found = layer.get_submodule(part)
        if isinstance(found, nn.Dropout):
            found.p = 1.0
        else:
            found.dropout = 1.0
    dropped = ours(x, packing)
    whole = theirs(packing.unpack(x), src_key_padding_mask=~MASK)[MASK]
    torch.testing.assert_close(dropped, whole, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(dropped, plain)
    assert ours.eval()(x, packing).allclose(plain, atol=1e-6)
