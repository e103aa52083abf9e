"""A run as its report tells it, from the first event to the last."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.experiment.report.reports import (
    EVIL,
    GALLERY,
    RECIPE,
    SITES,
    a_round,
    arm,
    comparison,
    folder,
    history,
    metric,
    report,
)

from motet.core.errors import ConfigError, StoreError
from motet.experiment.report import write_report
from motet.experiment.report.run import read_run


def test_a_finished_run_from_result_to_recipe(tmp_path: Path) -> None:
    environment = {"python": "3.11.7", "motet": "0.1.0"}
    page = report(folder(tmp_path, gallery=GALLERY, environment=environment))
    assert page.headings() == [
        "What the server finds for a caption",
        "Over the rounds",
        "Sites",
        "What left every site",
        "How to reproduce it",
    ]
    assert "After 3 rounds, the server reaches rsum 80.0 on 400 test rows, from 60.0" in page.text
    assert "method CreamFL" in page.text
    assert "public set 300 concepts" in page.text
    assert "motet run recipe.yaml --seed 7" in page.text
    assert "00ff00ff00ff00ff" in page.text
    assert "3.11.7" in page.text
    assert "ICLR 2023" in page.text
    assert "rounds: 3" in page.text


def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path) -> None:
    page = report(folder(tmp_path, gallery=GALLERY), comparison=comparison())
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "action", "data", "xlink:href"):
                assert value.startswith(("data:image/", "data:text/yaml")), (tag, value)
    assert "url(" not in page.html
    assert "@import" not in page.html
    assert "default-src 'none'" in page.html


def test_whatever_users_write_is_text(tmp_path: Path) -> None:
    gallery = json.loads(json.dumps(GALLERY))
    for picture in gallery["pictures"].values():
        picture.update(caption=EVIL, label=EVIL)
    events = history()
    events[1]["sites"] = {EVIL: {"modalities": [EVIL], "rows": 3, "model": EVIL}}
    events += [metric(2, EVIL, **{EVIL: 3.0}), metric(2, "hub", **{EVIL: 3.0})]
    failed = {"event": "failed", "round": 1, "site": EVIL, "op": EVIL, "tag": "0.1.1"}
    events += [{**failed, "error": EVIL}, {"event": "stopped", "round": 1, "error": EVIL}]
    recipe = RECIPE.replace("A title", json.dumps(EVIL)) + f"note: {json.dumps(EVIL)}\n"
    preview = {"labels": [EVIL], "sites": {EVIL: {"rows": 1, "present": {EVIL: 1}, "labels": [1]}}}
    arms = {"creamfl": arm(EVIL, EVIL, rsum=[1.0], **{EVIL: [1.0]})}
    expected = [{"text": EVIL, "figure": EVIL, "holds": True}]
    page = report(
        folder(
            tmp_path, events, recipe, gallery=gallery, preview=preview, environment={EVIL: EVIL}
        ),
        comparison=comparison(
            title=EVIL,
            arms=arms,
            metrics=["rsum", EVIL],
            seeds=[1],
            expectations=expected,
            command=EVIL,
        ),
    )
    assert "<script" not in page.html
    assert "<img src=http" not in page.html
    tags = {tag for tag, _ in page.tags}
    assert "script" not in tags
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all(a["src"].startswith("data:") for tag, a in page.tags if tag == "img")
    assert page.text.count(" ".join(EVIL.split())) > 15


def test_equal_folders_give_equal_reports(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", gallery=GALLERY)
    other = tmp_path / "other"
    shutil.copytree(one, other)
    first = write_report(one, comparison=comparison()).read_bytes()
    assert write_report(other, comparison=comparison()).read_bytes() == first
    assert write_report(one, comparison=comparison()).read_bytes() == first
    assert sorted(path.name for path in one.iterdir()) == [
        "events.jsonl",
        "gallery.json",
        "recipe.yaml",
        "report.html",
    ]


def test_a_stopped_run_says_how_far_it_got_and_why(tmp_path: Path) -> None:
    events = history(2, {"event": "stopped", "round": 1, "error": "image-1: loss is NaN"})
    page = report(folder(tmp_path, events))
    assert "This run stopped after 1 of 3 rounds: image-1: loss is NaN" in page.text
    assert "rounds 1 of 3" in page.text
    assert "How to reproduce it" in page.headings()


def test_a_run_that_stopped_before_its_first_round(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = [{"event": "started"}]
    events += [{"event": "stopped", "round": -1, "error": "no sites"}]
    page = report(folder(tmp_path, events))
    assert "Stopped before anything was measured: no sites" in page.text
    assert "This run stopped before its first round: no sites" in page.text
    assert page.headings() == ["How to reproduce it"]


def test_a_run_that_is_still_going_on(tmp_path: Path) -> None:
    events = history(2, {"event": "checkpoint", "round": 2, "version": 3})
    page = report(folder(tmp_path, events))
    assert "This run is not finished: 2 of 3 rounds are done so far." in page.text
    assert "After 2 of 3 rounds, the server reaches rsum 70.0" in page.text
    assert "took" not in page.text


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "events.jsonl").unlink()
    page = report(path)
    assert "This run has not begun." in page.text
    assert "Nothing has been measured yet." in page.text


def test_a_resumed_run_says_so_and_not_how_long_it_took(tmp_path: Path) -> None:
    resumed = {"event": "resumed", "version": 3, "loop": 0, "round": 2}
    events = [*history(2, {"event": "checkpoint", "round": 2, "version": 3}), resumed, *a_round(2)]
    events += [{"event": "checkpoint", "round": 3, "version": 4}, {"event": "finished", "round": 3}]
    page = report(folder(tmp_path, events))
    assert "resumed 1 time" in page.text
    assert "took" not in page.text
    assert "rounds 3 seed" in page.text


def test_no_run_no_report(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run in .*recipe\.yaml"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_damaged_pictures_are_named(tmp_path: Path, content: str) -> None:
    path = folder(tmp_path)
    (path / "gallery.json").write_text(content)
    with pytest.raises(StoreError, match=r"gallery\.json.*the report goes without"):
        write_report(path)
    assert not (path / "report.html").exists()


def test_a_method_of_a_package_that_is_not_here(tmp_path: Path) -> None:
    page = report(folder(tmp_path, recipe=RECIPE.replace("creamfl", "of-others")))
    assert "method of-others" in page.text
    assert "says what travels" not in page.text


def test_sites_alone_are_averaged_where_there_is_no_server(tmp_path: Path) -> None:
    events = [event for event in history() if event.get("party") != "hub"]
    events[1]["sites"]["image-2"] = SITES["image-1"]
    events.insert(-1, metric(2, "image-2", accuracy=40.0))
    page = report(folder(tmp_path, events))
    assert "a site on average reaches accuracy 31.0 on its own test rows, from 20.0" in page.text


def test_failures_are_counted_by_reason(tmp_path: Path) -> None:
    failed = {"event": "failed", "round": 1, "site": "pair-1", "op": "contrast", "tag": "0.1.1"}
    events = [*history()[:-1], *[{**failed, "error": "no answer within 3 s"}] * 4]
    others = [{**failed, "round": number, "error": "lost"} for number in range(2, 62)]
    page = report(folder(tmp_path, events + others))
    assert "2 pair-1 contrast 4 no answer within 3 s" in page.text
    assert "And 11 more in events.jsonl." in page.text


def test_values_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    events = history()
    events.insert(-2, metric(2, "hub", rsum=float("nan"), odd=float("nan")))
    page = report(folder(tmp_path, events))
    assert "nan" not in page.text.lower()
    assert "reaches rsum 70.0" in page.text


def test_rounds_are_counted_through_loops_and_the_last_test_point_counts(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = [
        {"event": "started"},
        metric(-1, "hub", rsum=1.0),
        {"event": "round", "round": 0, "loop": 0, "of": 2},
        metric(0, "hub", rsum=2.0),
        {**metric(0, "a", accuracy=5.0), "point": "as received"},
        metric(0, "a", accuracy=6.0),
        {**metric(0, "b", accuracy=1.0), "point": "as received"},
        metric(0, "b", accuracy=2.0),
        {**metric(0, "b", accuracy=1.5), "point": "as received"},
        {"event": "round", "round": 1, "loop": 0, "of": 2},
        metric(1, "hub", rsum=3.0),
        metric(2, "hub", rsum=3.5),
        {"event": "checkpoint", "round": 2, "version": 1},
        {"event": "checkpoint", "round": 0, "version": 2},
        {"event": "round", "round": 0, "loop": 1, "of": 4},
        metric(0, "hub", rsum=4.0),
    ]
    run = read_run(folder(tmp_path, events))
    assert run.series["hub", "rsum"].points == ((0, 1.0), (1, 2.0), (2, 3.5), (3, 4.0))
    assert run.series["a", "accuracy"].points == ((1, 6.0),)
    assert run.series["b", "accuracy"].points == ((1, 1.5),)
    assert run.rounds == (2, 6)
    assert "from 1.00 before the first round" in report(tmp_path).text
