import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from motet.core import ConfigError
from motet.core.batch import Batch
from motet.core.groups import frozen_names
from motet.core.rng import generator, seeded
from motet.core.tree import weights_of
from motet.models.registry import build_model, parse_model
from motet.models.vit import Attention, VisionTransformer
from motet.nn.split import (
    ShortCut,
    SplitTransformer,
    count_flops,
    el2n,
    head,
    keep_largest,
    split_bytes,
    split_of,
    split_transformers,
    tail,
    vjp,
)

OPTIONS = {"name": "vit", "side": 8, "grid": 2, "depth": 3, "heads": 2}


def whole(cut: int = 1, prompts: int = 2, *, double: bool = True) -> nn.Module:
    """A model with class head, split; in double precision unless told otherwise."""
    model = build_model(parse_model({"width": 16, "image": OPTIONS}), None, 4, generator(0))
    with seeded(0, "prompts"):
        split_transformers(model, cut, prompts)
    return model.double() if double else model


def batch(n: int = 5, *, double: bool = True) -> Batch:
    pixels = torch.randn((n, 1, 8, 8), generator=generator(1))
    present = {"image": torch.ones(n, dtype=torch.bool)}
    inputs = {"image": pixels.double() if double else pixels}
    return Batch(inputs, present, torch.arange(n) % 4, torch.arange(n))


def test_prompts_stand_between_class_token_and_patches_and_move_no_position() -> None:
    split = split_of(whole(prompts=3))
    pixels = batch().inputs["image"]
    seen: list[Tensor] = []
    split.head.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    split.head(pixels)
    plain = split.head.embed(pixels)
    assert torch.equal(seen[0][:, :1], plain[:, :1])
    assert torch.equal(seen[0][:, 1:4], split.head.prompt.expand(5, -1, -1))
    assert torch.equal(seen[0][:, 4:], plain[:, 1:])
    assert split.head.prompt.abs().max() <= 0.1
    assert split.head.prompt.std() > 0.02


@pytest.mark.parametrize("cut", [1, 2])
def test_head_body_and_tail_are_the_model(cut: int) -> None:
    model = whole(cut)
    tokens = split_of(model).body(head(model, batch()))
    assert torch.equal(tail(model, tokens), model(batch()).logits)


def test_without_prompts_the_pieces_are_the_transformer() -> None:
    with seeded(0):
        plain = VisionTransformer(width=8, depth=3, heads=2, grid=2, side=8)
    pixels = torch.randn((2, 1, 8, 8), generator=generator(0))
    wanted = plain(pixels)
    split = SplitTransformer(plain, 2, 0)
    assert torch.equal(split(pixels), wanted)
    assert len(split.head.blocks) == 2
    assert len(split.body) == 1


def test_prompts_norm_and_class_head_are_all_that_is_trained_and_sent() -> None:
    model = whole()
    prefix = "encoders.image.vit"
    names = {f"{prefix}.head.prompt", f"{prefix}.norm.weight", f"{prefix}.norm.bias"}
    names |= {"head.weight", "head.bias"}
    assert set(weights_of(model)) == names
    assert {name for name, value in model.named_parameters() if value.requires_grad} == names


def test_the_gradients_across_both_cuts_are_those_of_the_joined_model() -> None:
    model, rows = whole(), batch()
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    loss = F.cross_entropy(model(rows).logits, rows.labels)
    joined = dict(zip(trained, torch.autograd.grad(loss, trained.values()), strict=True))

    with torch.no_grad():
        smashed = head(model, rows)
    passed, pull = vjp(split_of(model).body, smashed)
    tokens = passed.requires_grad_()
    F.cross_entropy(tail(model, tokens), rows.labels).backward()
    (head(model, rows) * pull(tokens.grad)).sum().backward()
    for name, value in trained.items():
        torch.testing.assert_close(value.grad, joined[name], atol=1e-12, rtol=0, msg=name)
        assert float(joined[name].abs().max()) > 1e-6, name
    frozen = frozen_names(model)
    assert all(value.grad is None for name, value in model.named_parameters() if name in frozen)


def test_vjp_is_that_of_torch_and_holds_no_graph_outside() -> None:
    with seeded(0):
        function = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, v = (torch.randn((5, k), generator=generator(k)) for k in (3, 2))
    with torch.no_grad():
        value, pull = vjp(function, x)
    wanted, (slope,) = function(x), torch.autograd.functional.vjp(function, (x,), v)[1]
    assert torch.equal(value, wanted.detach())
    assert not value.requires_grad
    torch.testing.assert_close(pull(v), slope)
    assert not x.requires_grad
    assert all(part.grad is None for part in function.parameters())


def test_the_short_cut_sees_the_picture_through_the_heads_blocks_alone() -> None:
    model = whole()
    rows = batch()
    split_of(model).give_away_body()
    logits = ShortCut(model)(rows).logits
    assert torch.equal(logits, tail(model, head(model, rows)))
    assert float(logits.detach().std(dim=0).min()) > 1e-3, (
        "the class token must depend on the picture"
    )
    with pytest.raises(ConfigError, match="the hub has it"):
        model(rows)


@pytest.mark.parametrize("cut", [0, 3, 7])
def test_a_cut_leaves_blocks_on_both_sides(cut: int) -> None:
    with pytest.raises(ConfigError, match=f"1 to 2 of the transformer's 3 blocks, not {cut}"):
        whole(cut)


def test_only_a_transformer_is_split() -> None:
    spec = parse_model({"width": 8, "image": {"name": "pixel-mlp", "side": 8}})
    model = build_model(spec, None, 4, generator(0))
    with pytest.raises(ConfigError, match="take the encoder vit"):
        split_transformers(model, 1, 2)
    with pytest.raises(ConfigError, match="was not split"):
        split_of(model)


def test_el2n_is_the_distance_of_the_probabilities_from_the_one_hot_label() -> None:
    logits = torch.tensor([[0.0, 0.0], [50.0, -50.0], [50.0, -50.0], [math.log(3.0), 0.0]])
    labels = torch.tensor([0, 0, 1, 0])
    wanted = torch.tensor([0.5**0.5, 0.0, 2**0.5, 0.125**0.5])
    torch.testing.assert_close(el2n(logits, labels), wanted)


def kept(scores: list[float], labels: list[int], share: float) -> list[int]:
    return keep_largest(torch.tensor(scores), torch.tensor(labels), share).tolist()


@pytest.mark.parametrize(
    ("share", "wanted"),
    [(1.0, [0, 1, 2, 3, 4]), (0.5, [1, 2, 4]), (0.6, [1, 2, 4]), (0.2, [4]), (0.01, [4])],
)
def test_the_largest_scores_are_kept(share: float, wanted: list[int]) -> None:
    assert kept([0.1, 0.7, 0.5, 0.2, 0.9], [0] * 5, share) == wanted


def test_equal_scores_keep_the_first_rows() -> None:
    assert kept([0.5, 0.5, 0.5, 0.5], [0, 0, 0, 0], 0.5) == [0, 1]


def test_no_class_is_dropped_and_the_number_stays_what_it_was() -> None:
    scores, labels = [0.9, 0.8, 0.7, 0.6, 0.1, 0.2], [0, 0, 0, 0, 2, 2]
    assert kept(scores, labels, 0.5) == [0, 1, 5]
    assert kept(scores, labels, 0.1) == [0, 5], "one row of each class, though it be more"


def test_a_share_is_rounded_up_but_not_for_a_rounding_error() -> None:
    assert len(kept([0.5] * 100, [0] * 100, 0.07)) == 7
    assert len(kept([0.5] * 100, [0] * 100, 0.071)) == 8


def test_bytes_by_the_formula() -> None:
    q = 4 * 21 * 64
    assert split_bytes(100, 2, 21, 64, 1000) == 4 * 100 * 2 * q + 8 * 1000
    assert split_bytes(100, 0, 21, 64, 1000) == 8000


def test_flops_are_two_per_multiplication_and_a_sites_share_is_its_blocks() -> None:
    x, y = torch.zeros(3, 5), torch.zeros(5, 7)
    assert count_flops(lambda: x @ y) == 2 * 3 * 5 * 7
    x.requires_grad_()
    assert count_flops(lambda: (x @ y).sum().backward()) == 2 * 2 * 3 * 5 * 7
    layer = Attention(8, 2)
    tokens = torch.zeros(2, 5, 8)
    assert count_flops(lambda: layer(tokens)) == 2 * 2 * (4 * 5 * 8 * 8 + 2 * 5 * 5 * 8)
    model, rows = whole(double=False), batch(double=False)
    ends = count_flops(lambda: ShortCut(model)(rows))
    middle = count_flops(lambda: split_of(model).body(head(model, rows)))
    assert ends < 0.5 * middle
