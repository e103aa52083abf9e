import subprocess
import sys
import time
import zlib

import pytest
import torch

from motet.core.errors import DataError
from motet.models.hashed import HashedMLP, text_features


def place(piece: str, bins: int = 1 << 16) -> int:
    return zlib.crc32(piece.encode()) % bins


def test_counts_by_hand() -> None:
    found = text_features(("Cat cat, ox",), 1 << 16)[0]
    counts = {"w:cat": 2.0, "w:ox": 1.0}
    counts |= {f"t:{piece}": 0.6 for piece in ("<ca", "cat", "at>")}
    counts |= {f"t:{piece}": 0.3 for piece in ("<ox", "ox>")}
    expected = torch.zeros(1 << 16)
    for piece, count in counts.items():
        expected[place(piece)] += count
    expected = expected.sqrt()
    torch.testing.assert_close(found, 4 * expected / expected.norm())


def test_two_pieces_of_a_word_in_one_bin_add_up() -> None:
    # In 16 bins the pieces of a long word must share some.
    counts = text_features(("internationalisation",), 16)[0].square()
    shares = counts / counts.sum()
    expected = torch.zeros(16)
    word = "<internationalisation>"
    expected[place("w:internationalisation", 16)] += 1
    for i in range(len(word) - 2):
        expected[place(f"t:{word[i : i + 3]}", 16)] += 0.3
    torch.testing.assert_close(shares, expected / expected.sum())


def test_norm_is_four_and_a_text_without_words_is_zero() -> None:
    norms = HashedMLP().prepare(("a smiling face", "😀 !", "")).norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([4.0, 0.0, 0.0]))


def test_a_text_does_not_see_its_neighbours() -> None:
    texts = ("red heart", "grinning face", "heart")
    together = text_features(texts, 256)
    for row, text in zip(together, texts, strict=True):
        assert row.equal(text_features((text,), 256)[0])


def test_words_of_every_script_count() -> None:
    assert text_features(("Straße", "笑顔", "сердце"), 1024).norm(dim=1).min() > 3.9


def test_hash_is_the_same_in_every_process() -> None:
    code = (
        "from motet.models.hashed import text_features as f\n"
        "x = f(('a cat on a mat',), 64)[0]\n"
        "import sys; sys.stdout.write(repr(x.nonzero().flatten().tolist()))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    here = text_features(("a cat on a mat",), 64)[0].nonzero().flatten().tolist()
    assert found.stdout == repr(here)


def test_bins_name_the_preparation() -> None:
    assert HashedMLP(bins=64).key != HashedMLP(bins=128).key
    assert HashedMLP(width=8, hidden=4).key == HashedMLP(width=64).key
    encoder = HashedMLP(width=8, bins=64)
    assert encoder(encoder.prepare(("a", "b"))).shape == (2, 8)


def test_pictures_are_refused() -> None:
    with pytest.raises(DataError, match="strings"):
        HashedMLP().prepare(torch.zeros(2, 3, 8, 8))


def test_two_thousand_texts_take_well_under_a_second() -> None:
    texts = tuple(f"smiling face {i} with big eyes, grinning, cat {i % 90}" for i in range(2000))
    start = time.perf_counter()
    text_features(texts, 1024)
    assert time.perf_counter() - start < 1
