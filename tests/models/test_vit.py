from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from motet.core import Dataset
from motet.core.errors import ConfigError, DataError
from motet.core.rng import generator, seeded
from motet.models import pretrained
from motet.models.pretrained import OFFSET, cache_folder, pretrain, varied
from motet.models.registry import build_model, parse_model
from motet.models.vit import Attention, Block, VisionTransformer, ViT

SMALL: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "grid": 2, "side": 8}


def small(**options: Any) -> ViT:
    with seeded(0, "vit"):
        return ViT(**{**SMALL, **options})


def pixels(n: int = 3, side: int = 8, channels: int = 1) -> Tensor:
    return torch.randn((n, channels, side, side), generator=generator(1, "pixels"))


def test_attention_is_the_textbook_formula_per_head() -> None:
    with seeded(0):
        layer = Attention(8, 2)
    x = torch.randn((2, 5, 8), generator=generator(0))
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        q, k, v = (f(x)[..., part] for f in (layer.q, layer.k, layer.v))
        scores = torch.softmax(q @ k.transpose(1, 2) / 4**0.5, dim=-1)
        heads.append(scores @ v)
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads, dim=-1)))


def test_a_block_normalises_before_and_adds_after() -> None:
    with seeded(0):
        block = Block(8, 2, 16)
    x = torch.randn((2, 5, 8), generator=generator(0))
    middle = x + block.attention(block.norm1(x))
    torch.testing.assert_close(block(x), middle + block.mlp(block.norm2(middle)))


def test_tokens_are_class_then_patches_row_by_row_with_their_positions() -> None:
    embed = small().vit.embed
    x = pixels()
    tokens = embed(x)
    assert tokens.shape == (3, 5, 16)
    assert torch.equal(tokens[:, 0], (embed.cls + embed.positions[:, :1])[0].expand(3, -1))
    kernel = embed.patches.weight.flatten(1)
    for number, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        patch = x[:, :, top : top + 4, left : left + 4].flatten(1)
        wanted = patch @ kernel.T + embed.patches.bias + embed.positions[0, 1 + number]
        torch.testing.assert_close(tokens[:, 1 + number], wanted)


def test_embed_blocks_norm_one_after_the_other_are_the_whole() -> None:
    encoder = small()
    tokens = encoder.vit.embed(pixels())
    for block in encoder.vit.blocks:
        tokens = block(tokens)
    assert torch.equal(encoder.vit(pixels()), encoder.vit.norm(tokens))
    assert torch.equal(encoder(pixels()), encoder.vit.norm(tokens)[:, 0])


def test_the_toy_and_vit_b_have_the_sizes_that_are_said_of_them() -> None:
    assert sum(value.numel() for value in ViT().parameters()) == 138_368
    with torch.device("meta"):
        big = ViT(width=768, depth=12, heads=12, ratio=4, grid=14, side=224, channels=3)
    assert sum(value.numel() for value in big.parameters()) == 85_875_556 - 76_900


def test_equal_generators_build_equal_encoders_from_a_recipe() -> None:
    spec = parse_model({"width": 16, "image": {"name": "vit", **SMALL_OPTIONS}})
    one, other = (build_model(spec, None, 4, generator(3)) for _ in range(2))
    rows = Dataset({"image": torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)})
    ready = one.prepare(rows)
    assert ready.columns["image"].shape == (4, 1, 8, 8)
    found = [model(ready.batch(torch.arange(4))).logits for model in (one, other)]
    assert found[0].shape == (4, 4)
    assert torch.equal(*found)


SMALL_OPTIONS = {name: value for name, value in SMALL.items() if name != "width"}


@pytest.mark.parametrize(("options", "says"), [({"heads": 3}, "heads 3"), ({"grid": 3}, "grid 3")])
def test_sizes_that_do_not_divide_are_refused(options: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        VisionTransformer(**{**SMALL, **options})


def test_varied_turns_and_inverts_each_picture_on_its_own() -> None:
    x = pixels(64)
    out = varied(x, generator(0))
    seen = set()
    for before, after in zip(x, out, strict=True):
        matches = [
            (k, sign)
            for k in range(4)
            for sign in (1, -1)
            if torch.equal(after, sign * torch.rot90(before, k, (1, 2)))
        ]
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) == 8, "all turns, inverted and not"


def stripes(n: int = 64) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % 2
    wave = torch.tensor([1.0, -1.0]).repeat(4).expand(8, 8)
    x = torch.where(labels.view(-1, 1, 1, 1) == 0, wave, wave.T)
    return x + 0.3 * pixels(n), labels


def test_pretraining_learns_what_it_is_shown_and_is_repeatable() -> None:
    x, labels = stripes()
    losses, weights = [], []
    for _ in range(2):
        encoder = small()
        with seeded(0, "pretraining"):
            losses.append(pretrain(encoder, x, labels, augment=False, epochs=6, batch=8, lr=3e-3))
        weights.append(encoder.vit.norm.weight)
    assert losses[0] < 0.3
    assert losses[0] == losses[1]
    assert torch.equal(*weights)


class Source:
    """Stands in for Fashion-MNIST, and counts how often it is read."""

    def __init__(self) -> None:
        self.reads: list[Any] = []

    def __call__(self, **options: Any) -> Dataset:
        self.reads.append(options)
        x, labels = stripes(32)
        pictures = ((x + 1) * 127).clamp(0, 255).to(torch.uint8)
        return Dataset({"image": pictures}, labels, classes=("a", "b"))


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    found = Source()
    monkeypatch.setenv("MOTET_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "load_fashion", found)
    monkeypatch.setitem(pretrained.TRAINING, "epochs", 1)
    pretrained.pretrained_weights.cache_clear()
    return found


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def forget() -> None:
    pretrained.pretrained_weights.cache_clear()


def test_pretraining_happens_once_per_settings_and_is_kept(source: Source, tmp_path: Path) -> None:
    first = small(pretrained="plain")
    assert source.reads == [{"limit": OFFSET}]
    forget()
    second = ViT(**SMALL, pretrained="plain")
    assert len(source.reads) == 1, "the second one comes from the file"
    for name, value in first.vit.state_dict().items():
        assert torch.equal(value, second.vit.state_dict()[name])
    assert not torch.equal(first.vit.norm.weight, small().vit.norm.weight)
    small(pretrained="augmented")
    small(pretrained="plain", depth=1)
    assert len(source.reads) == 3
    assert len(files(tmp_path)) == 3, "and no draft lies about"


def test_what_the_party_draws_does_not_depend_on_the_cache(source: Source) -> None:
    draws = []
    for _ in range(2):
        with seeded(0, "party"):
            ViT(**SMALL, pretrained="plain")
            draws.append(torch.rand(()))
        forget()
    assert draws[0] == draws[1]


def test_a_damaged_file_is_made_again(source: Source, tmp_path: Path) -> None:
    small(pretrained="plain")
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    forget()
    small(pretrained="plain")
    assert len(source.reads) == 2
    assert path.read_bytes() == whole


def test_a_file_of_weights_is_taken_if_it_fits(tmp_path: Path) -> None:
    with seeded(9):
        other = ViT(**SMALL)
    path = tmp_path / "mine.safetensors"
    save_file(other.vit.state_dict(), path)
    taken = small(pretrained=str(path))
    assert torch.equal(taken(pixels()), other(pixels()))
    with pytest.raises(ConfigError, match="do not fit this size; .* blocks.1"):
        small(pretrained=str(path), depth=1)
    with pytest.raises(ConfigError, match="augmented or the path"):
        small(pretrained=str(tmp_path / "nothing"))


def test_where_pretraining_cannot_be_done_it_says_so(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="set channels: 1"):
        small(pretrained="plain", channels=3)

    def missing(**options: Any) -> Dataset:
        raise DataError("install the Debian package")

    monkeypatch.setattr(pretrained, "load_fashion", missing)
    with pytest.raises(ConfigError, match="pretrained plain: install"):
        small(pretrained="plain")


def test_the_cache_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MOTET_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "motet"
    monkeypatch.setenv("MOTET_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"


def test_the_gelu_of_the_class_token_is_what_heads_read() -> None:
    model = build_model(
        parse_model({"width": 16, "image": {"name": "vit", **SMALL_OPTIONS}}),
        None,
        3,
        generator(0),
    )
    rows = Dataset({"image": torch.zeros(2, 1, 8, 8)})
    out = model(rows.batch(torch.arange(2)))
    encoder = model.encoders["image"]
    torch.testing.assert_close(out.aux["embedding"], F.gelu(encoder(rows.columns["image"])))
