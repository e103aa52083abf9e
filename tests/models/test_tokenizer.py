import json
import subprocess
import sys

import pytest

from motet.core.errors import ConfigError
from motet.models.tokenizer import PAD, START, train_tokenizer

pytest.importorskip("tokenizers")

TEXTS = (
    "grinning face",
    "grinning cat",
    "red heart",
    "beating heart",
    "smiling face with heart eyes",
    "visage souriant",
    "lächelndes gesicht",
    "笑顔",
)


def test_frequent_words_are_whole_and_rare_ones_come_in_pieces() -> None:
    tokenizer = train_tokenizer(TEXTS, 1024)
    assert tokenizer.pieces("Grinning HEART") == ["Ġgrinning", "Ġheart"]
    assert len(tokenizer.pieces("heartless")) > 2
    assert "".join(tokenizer.pieces("heartless")) == "Ġheartless"


def test_no_text_is_unknown() -> None:
    tokenizer = train_tokenizer(TEXTS, 1024)
    for text in ("сердце", "😀", "qzx", "\x00"):
        rows = tokenizer.encode((text,), 32)[0]
        assert (rows != PAD).sum() > 1
        assert (rows != START).sum() == 31
    different = tokenizer.encode(("сердце", "лицо", "😀"), 32)
    assert len({tuple(row.tolist()) for row in different}) == 3


def test_rows_start_alike_and_are_padded_or_cut() -> None:
    tokenizer = train_tokenizer(TEXTS, 1024)
    rows = tokenizer.encode(("", "red heart", "one two three four five six"), 5)
    assert rows.shape == (3, 5)
    assert rows[:, 0].eq(START).all()
    assert rows[0, 1:].eq(PAD).all()
    assert rows[2].ne(PAD).all()
    full = tokenizer.encode(("one two three four five six",), 64)
    assert rows[2].equal(full[0, :5])


def test_numbers_stay_below_the_vocabulary() -> None:
    many = tuple(f"word{i} word{i} other{i % 7}" for i in range(300))
    tokenizer = train_tokenizer(many, 540)
    assert tokenizer.size == 540
    assert tokenizer.encode(many, 16).max() < 540


def test_equal_texts_make_an_equal_tokenizer_in_every_process() -> None:
    code = (
        "import json, sys\n"
        "from motet.models.tokenizer import train_tokenizer\n"
        f"sys.stdout.write(train_tokenizer(tuple(json.loads({json.dumps(TEXTS)!r})), 1024).digest)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == train_tokenizer(TEXTS, 1024).digest
    assert found.stdout != train_tokenizer((*TEXTS, *TEXTS[3:]), 1024).digest


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r'pip install "motet\[text\]"'):
        train_tokenizer(("some text of this test alone",), 512)
