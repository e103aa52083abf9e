import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from motet.core.errors import ConfigError, DataError
from motet.core.rng import seeded
from motet.models.base import Encoder
from motet.models.text import GRUText, TransformerText

pytest.importorskip("tokenizers")

TEXTS = (
    "grinning face",
    "red heart",
    "smiling face with heart eyes and a very long tail of further words",
    "cat",
    "",
)
BUILDERS: dict[str, Callable[[], GRUText | TransformerText]] = {
    "gru": lambda: GRUText(width=24, hidden=16, embedding=12),
    "gru-one-way": lambda: GRUText(width=24, hidden=16, bidirectional=False, layers=2),
    "gru-pie": lambda: GRUText(width=24, hidden=16, embedding=12, pie=True),
    "transformer": lambda: TransformerText(width=24, dim=16, depth=2, heads=2),
}


@pytest.fixture(params=BUILDERS)
def encoder(request: pytest.FixtureRequest) -> GRUText | TransformerText:
    with seeded(0):
        made = BUILDERS[request.param]()
    made.calibrate(TEXTS)
    return made


def pad(x: Tensor, length: int) -> Tensor:
    return F.pad(x, (0, length - x.shape[1]))


def test_shapes(encoder: Encoder) -> None:
    x = encoder.prepare(TEXTS)
    assert x.shape == (5, 32)
    assert x.dtype == torch.int64
    assert encoder(x).shape == (5, 24)
    assert encoder(x[:0]).shape == (0, 24)
    assert encoder(x).isfinite().all()


@pytest.mark.parametrize("training", [False, True])
def test_padding_does_not_matter(encoder: Encoder, training: bool) -> None:
    encoder.train(training)
    x = encoder.prepare(TEXTS)
    together = encoder(x)
    for row, found in zip(x, together, strict=True):
        short = row[row != 0].unsqueeze(0)
        torch.testing.assert_close(encoder(short)[0], found, atol=1e-5, rtol=1e-4)
        alone = encoder(pad(short, 32))[0]
        torch.testing.assert_close(alone, found, atol=1e-5, rtol=1e-4)


def test_order_of_words_matters(encoder: Encoder) -> None:
    there, back = encoder(encoder.prepare(("red heart", "heart red")))
    assert not torch.allclose(there, back, atol=1e-3)


def test_gradient_reaches_every_weight(encoder: Encoder) -> None:
    encoder(encoder.prepare(TEXTS)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    table = encoder.get_parameter("embedding.weight").grad
    assert table is not None
    assert not table[0].any(), "the padding has no vector to learn"


def test_without_a_vocabulary_it_says_what_to_call() -> None:
    encoder = GRUText()
    with pytest.raises(ConfigError, match=r"GRUText has no vocabulary yet; call calibrate"):
        encoder.prepare(("a",))


@pytest.mark.usefixtures("rng_untouched")
def test_calibration_is_silent_and_names_the_preparation(encoder: Encoder) -> None:
    before = encoder.key
    encoder.calibrate(TEXTS)
    assert encoder.key == before
    encoder.calibrate((*TEXTS, "more more texts texts"))
    assert encoder.key != before


def test_both_encoders_share_one_preparation() -> None:
    gru, transformer = GRUText(width=8), TransformerText(width=16)
    gru.calibrate(TEXTS)
    transformer.calibrate(TEXTS)
    assert gru.key == transformer.key
    assert gru.prepare(TEXTS).equal(transformer.prepare(TEXTS))
    assert GRUText(max_tokens=8).key != gru.key


def test_weights_do_not_depend_on_the_vocabulary_made(encoder: Encoder) -> None:
    before = {name: value.shape for name, value in encoder.state_dict().items()}
    encoder.calibrate(("entirely different words",))
    assert {name: value.shape for name, value in encoder.state_dict().items()} == before


def test_a_copy_reads_texts_alike(encoder: Encoder) -> None:
    twin = copy.deepcopy(encoder)
    assert twin.key == encoder.key
    assert twin(twin.prepare(TEXTS)).equal(encoder(encoder.prepare(TEXTS)))


def test_dropout_is_for_training_alone() -> None:
    for encoder in (GRUText(dropout=0.5), TransformerText(dropout=0.5)):
        encoder.calibrate(TEXTS)
        x = encoder.prepare(TEXTS)
        with seeded(0):
            assert not encoder(x).equal(encoder(x))
        encoder.eval()
        assert encoder(x).equal(encoder(x))


def test_layers_of_the_transformer_start_apart() -> None:
    weights = dict(TransformerText(depth=2).named_parameters())
    assert not weights["layers.0.linear1.weight"].equal(weights["layers.1.linear1.weight"])


def test_gru_reads_from_both_ends() -> None:
    with seeded(0):
        encoder = GRUText(width=8, hidden=4, embedding=6)
    encoder.calibrate(TEXTS)
    x = encoder.prepare(("smiling face",))
    x = x[:, : int((x != 0).sum())]
    states, _ = encoder.gru(encoder.embedding(x))
    ends = torch.cat([states[:, -1, :4], states[:, 0, 4:]], dim=1)
    torch.testing.assert_close(encoder(x), encoder.project(ends))


def test_sizes_of_the_paper() -> None:
    # Word vectors of 300, two directions of d / 2 = 128: the GRU weighs 330,240.
    encoder = GRUText(width=256, hidden=128, embedding=300, pie=True, vocabulary=512)
    counts = {name: sum(p.numel() for p in m.parameters()) for name, m in encoder.named_children()}
    assert counts["gru"] == 2 * 3 * (300 * 128 + 128 * 128 + 2 * 128)
    assert counts["pie"] == 300 * 150 + 150 + 301 * 256 + 2 * 256
    assert counts["project"] == 257 * 256
    assert counts["embedding"] == 512 * 300


def test_pictures_are_refused(encoder: Encoder) -> None:
    with pytest.raises(DataError, match="strings"):
        encoder.prepare(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(DataError, match="strings"):
        encoder.calibrate(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
