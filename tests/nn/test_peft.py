import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from motet.core.errors import ConfigError
from motet.core.rng import generator, seeded
from motet.models.vit import VisionTransformer, ViT
from motet.nn.peft import (
    Adapter,
    Prompted,
    Prototype,
    add_adapters,
    add_lora,
    add_prompts,
    freeze_all_but,
    train_biases,
    trainable_values,
)

SIZES = {"width": 16, "depth": 2, "ratio": 2}


def transformer() -> VisionTransformer:
    with seeded(0, "vit"):
        return VisionTransformer(**SIZES, heads=2, grid=2, side=8)


def pixels(n: int = 3, side: int = 8) -> Tensor:
    return torch.randn((n, 1, side, side), generator=generator(1, "pixels"))


def trained(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters() if value.requires_grad)


@pytest.mark.parametrize(
    "put", [lambda m: add_adapters(m, 4), lambda m: add_lora(m, rank=2, alpha=4)]
)
def test_adapters_and_lora_leave_the_outputs_as_they_were(put: Any) -> None:
    plain, changed = transformer(), transformer()
    with seeded(0, "put"):
        put(changed)
    assert len(changed.state_dict()) > len(plain.state_dict())
    assert torch.equal(plain(pixels()), changed(pixels()))


def test_an_adapter_is_a_bottleneck_beside_the_identity() -> None:
    with seeded(0):
        adapter = Adapter(6, 2)
        nn.init.normal_(adapter.up.weight)
        nn.init.normal_(adapter.up.bias)
    h = torch.randn((2, 3, 6), generator=generator(0))
    inner = nn.functional.gelu(h @ adapter.down.weight.T + adapter.down.bias)
    wanted = h + inner @ adapter.up.weight.T + adapter.up.bias
    torch.testing.assert_close(adapter(h), wanted)


def test_the_adapter_stands_between_the_mlp_and_its_residual_sum() -> None:
    model = transformer()
    plain = model.blocks[0]
    x = torch.randn((2, 5, 16), generator=generator(0))
    middle = x + plain.attention(plain.norm1(x))
    mlp = plain.mlp(plain.norm2(middle))
    with seeded(0):
        add_adapters(model, 4)
        nn.init.normal_(plain.mlp[1].up.weight)
    torch.testing.assert_close(plain(x), middle + plain.mlp[1](mlp))
    assert not torch.allclose(plain(x), middle + mlp)


def test_lora_adds_b_a_scaled_by_alpha_over_rank_to_q_and_v_alone() -> None:
    model = transformer()
    before = model.blocks[0].attention.q.weight.clone()
    with seeded(0, "lora"):
        add_lora(model, rank=2, alpha=6)
        attention = model.blocks[0].attention
        a, b = attention.q.lora_A["default"].weight, attention.q.lora_B["default"].weight
        assert torch.count_nonzero(b) == 0
        assert torch.count_nonzero(a) == a.numel() == 2 * 16
        nn.init.normal_(b)
    x = torch.randn((2, 5, 16), generator=generator(0))
    wanted = x @ (before + 6 / 2 * b @ a).T + attention.q.bias
    torch.testing.assert_close(attention.q(x), wanted)
    assert isinstance(attention.k, nn.Linear)
    assert isinstance(attention.out, nn.Linear)
    names = {name.split(".lora")[0] for name, _ in model.named_parameters() if "lora" in name}
    assert names == {f"blocks.{i}.attention.{part}" for i in (0, 1) for part in ("q", "v")}


class Recorder(nn.Module):
    """A block that adds 1, and remembers what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach()
        return x + 1


def test_deep_prompts_are_replaced_at_every_block_and_move_no_patch() -> None:
    model = transformer()
    recorders = [Recorder(), Recorder()]
    model.blocks = nn.ModuleList(recorders)
    with seeded(0, "prompts"):
        add_prompts(model, 3)
    tokens = model.embed(pixels())
    model(pixels())
    for number, (block, recorder) in enumerate(zip(model.blocks, recorders, strict=True)):
        assert isinstance(block, Prompted)
        assert recorder.seen.shape == (3, 1 + 3 + 4, 16), "three prompts beside five tokens"
        assert torch.equal(recorder.seen[:, 1:4], block.prompt.expand(3, -1, -1))
        rest = torch.cat([recorder.seen[:, :1], recorder.seen[:, 4:]], dim=1)
        assert torch.equal(rest, tokens + number)
    assert not torch.equal(model.blocks[0].prompt, model.blocks[1].prompt)


def test_prompts_begin_uniform_within_their_bound() -> None:
    with seeded(0):
        prompt = Prompted(nn.Identity(), 64, 200).prompt.detach()
    bound = (6 / 128) ** 0.5
    assert 0.95 * bound < prompt.abs().max() <= bound
    assert abs(float(prompt.mean())) < 0.02 * bound
    assert float(prompt.std()) == pytest.approx(bound / 3**0.5, rel=0.02)


def test_every_added_part_gets_a_gradient_and_the_rest_none() -> None:
    for put in (lambda m: add_adapters(m, 4), lambda m: add_prompts(m, 3)):
        model = nn.ModuleDict({"body": transformer(), "head": nn.Linear(16, 4)})
        freeze_all_but(model, "head")
        put(model["body"])
        model["head"](model["body"](pixels())[:, 0]).square().sum().backward()
        for name, value in model.named_parameters():
            added = "mlp.1" in name or "prompt" in name or name.startswith("head")
            assert value.requires_grad == added == (value.grad is not None), name


def test_batch_norm_in_a_frozen_model_keeps_its_statistics_though_its_bias_is_trained() -> None:
    model = nn.ModuleDict({"body": nn.BatchNorm1d(4), "head": nn.Linear(4, 2)})
    freeze_all_but(model, "head")
    train_biases(model["body"])
    assert not model["body"].training
    assert [name for name, value in model.named_parameters() if value.requires_grad] == [
        "body.bias",
        "head.weight",
        "head.bias",
    ]


@pytest.mark.parametrize("put", [lambda m: add_adapters(m, 4), lambda m: add_prompts(m, 2)])
def test_a_model_without_blocks_is_refused(put: Any) -> None:
    with pytest.raises(ConfigError, match="take the encoder vit"):
        put(nn.Linear(4, 4))
    with pytest.raises(ConfigError, match="take the encoder vit"):
        add_lora(nn.Linear(4, 4), 2, 4)


def test_without_the_package_lora_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r'pip install "motet\[peft\]"'):
        add_lora(transformer(), 2, 4)


VIT_B: dict[Prototype, int] = {
    "full": 85_875_556,
    "head": 76_900,
    "bias": 179_812,
    "adapter": 233_668,
    "prompt": 169_060,
    "lora": 371_812,
}


@pytest.mark.parametrize("prototype", VIT_B)
def test_the_counts_of_vit_b_with_100_classes_are_the_papers(prototype: Prototype) -> None:
    assert trainable_values(prototype) == VIT_B[prototype]


def test_vit_b_in_megabytes() -> None:
    assert trainable_values("full") * 4 / 2**20 == pytest.approx(327.6, abs=0.05)
    assert trainable_values("bias") * 4 / 2**20 == pytest.approx(0.686, abs=0.001)


@pytest.mark.parametrize("prototype", VIT_B)
def test_the_formula_counts_what_a_real_vit_b_trains(prototype: Prototype) -> None:
    with torch.device("meta"):
        body = ViT(width=768, depth=12, heads=12, ratio=4, grid=14, side=224, channels=3)
        model = nn.ModuleDict({"body": body, "head": nn.Linear(768, 100)})
        if prototype != "full":
            freeze_all_but(model, "head")
        if prototype == "bias":
            train_biases(body)
        elif prototype == "adapter":
            add_adapters(body, 8)
        elif prototype == "prompt":
            add_prompts(body, 10)
        elif prototype == "lora":
            add_lora(body, 8, 16)
    assert trained(model) == VIT_B[prototype]
