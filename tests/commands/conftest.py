"""A tiny recipe on real files, and the command line called inside a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from motet.cli import app

KINDS = ("cat", "dog", "sun")
ROWS = 42
RECIPE = """
title: Tiny
method:
  name: modal-fedmd
  rounds: 2
  cohort: 3
  server: {{epochs: 1, clip: null, loss: {{name: infonce}}}}
  private: {{epochs: 1, clip: null, pair: {{name: infonce}}}}
  digest: {{epochs: 1}}
data:
  name: folder
  options: {{path: {photos}, size: 16, label_column: kind}}
  test: 10
  public: 8
server:
  width: 8
  image: {{name: hog-mlp, hidden: 8}}
  text: {{name: hashed-mlp, hidden: 8, bins: 64}}
populations:
  - name: image
    count: 1
    modalities: [image]
    models: [{{width: 8, image: {{name: hog-mlp, hidden: 8}}}}]
  - name: pair
    count: 2
    modalities: [image, text]
    models:
      - width: 8
        image: {{name: hog-mlp, hidden: 8}}
        text: {{name: hashed-mlp, hidden: 8, bins: 64}}
"""

Motet = Callable[..., Result]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three kinds with captions and labels."""
    folder = tmp_path_factory.mktemp("photos")
    lines = ["file,caption,kind"]
    generator = torch.Generator().manual_seed(0)
    for i in range(ROWS):
        pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
        lines.append(f"{i}.png,a {KINDS[i % 3]} number {i},{KINDS[i % 3]}")
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def motet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Motet:
    """``motet(*words)`` in an empty folder, as if typed there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        # Anything but an exit is a bug, and is not to be hidden.
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def tiny(motet: Motet, photos: Path) -> str:
    """The name of a recipe file in the working folder that runs in a second."""
    Path("tiny.yaml").write_text(RECIPE.format(photos=photos))
    return "tiny.yaml"
