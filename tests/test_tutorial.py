"""The tutorial's recipe works as it stands there, on a real folder of pictures and captions."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import yaml

from motet.data.emoji import load_emoji
from motet.experiment.runner import run
from motet.experiment.spec import parse_experiment, with_settings

PAGE = Path(__file__).parent.parent / "docs/tutorial.md"
SMALL = (
    "method.rounds=1",
    "method.server.epochs=1",
    "method.distil.epochs=1",
    "method.private.epochs=1",
    "data.test=8",
    "data.public=10",
    "data.options.size=32",
)


def folder_of_photos(folder: Path, count: int = 60) -> None:
    """Pictures as files, with one or two captions each and a label."""
    from PIL import Image

    data = load_emoji(size=32, styles=["noto"])
    folder.mkdir()
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "caption", "label"])
        for number in range(count):
            row = number * 20
            picture = data.columns["image"][row].permute(1, 2, 0).numpy()
            Image.fromarray(picture).save(folder / f"{number}.png")
            words = data.columns["text"][row].split(", ")
            label = data.classes[int(data.labels[row])].split("-")[0]
            for caption in {words[0], " ".join(words)}:
                table.writerow([f"{number}.png", caption, label])


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
def test_the_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    folder_of_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    values = with_settings(yaml.safe_load(text), SMALL)
    result = run(parse_experiment(values), folder=tmp_path / "run")
    assert result.last("rsum") > 0
    sites = {event["party"] for event in result.events if event["event"] == "metric"}
    assert sites == {"hub", "image-1", "image-2", "pair-1", "pair-2", "pair-3", "pair-4"}
