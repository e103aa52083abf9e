"""Charts, bytes, pictures and words of a report."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.experiment.report.reports import (
    GALLERY,
    RECIPE,
    Page,
    folder,
    history,
    metric,
    replied,
    report,
)

from motet.core.kinds import Kind
from motet.experiment.report.charts import apart, line_chart
from motet.experiment.report.protection import spent_rows
from motet.experiment.report.text import digits_for, duration, number, size
from motet.experiment.report.traffic import ABOUT, ASKED, REST, traffic_of


def test_sites_with_first_and_last_metric_bytes_and_rounds(tmp_path: Path) -> None:
    page = report(folder(tmp_path))
    row = "image-1 image 1,200 hog-mlp-64 accuracy 20.0 22.0 3 of 3 6.00 kB 6.15 kB"
    assert row in page.text
    assert "pair-1 image + text 30 a + b rsum 30.0 32.0 3 of 3 3.00 kB 12.0 kB" in page.text


def test_bytes_per_kind_and_direction_come_from_frames(tmp_path: Path) -> None:
    page = report(folder(tmp_path))
    # Three rounds: 3 x (1900 + 3800) of representations, frames of 3 x (2000 + 4000 + 50).
    assert "vectors that a model makes of rows 17.1 kB 8.10 kB" in page.text
    assert "frame around them 1.05 kB 900 B" in page.text
    assert "all 18.1 kB 9.00 kB" in page.text
    assert "no site sent raw rows, labels, weights, gradients, logits" in page.text
    assert "No noise hides" in page.text
    assert "contrast 6 representations 18.0 kB 6.00 kB" in page.text


def with_protection(
    tmp_path: Path, protect: str, events: list[dict[str, Any]] | None = None
) -> Page:
    recipe = RECIPE.replace("protect: {}", f"protect: {protect}")
    return report(folder(tmp_path, recipe=recipe, events=events))


def test_protection_that_cannot_be_read_is_not_called_bare(tmp_path: Path) -> None:
    page = with_protection(tmp_path, "{spells: 3}")
    assert "No noise hides" not in page.text
    assert "cannot read" in page.text


def test_what_protected_the_run_is_told(tmp_path: Path) -> None:
    bare = report(folder(tmp_path / "bare"))
    assert "No noise hides" in bare.text
    assert "Nothing beyond the checks of every reply" in bare.text
    page = with_protection(
        tmp_path / "more", "{compress: {representations: fp16}, robust: {name: median}}"
    )
    assert "representations as fp16" in page.text
    assert "takes the rule median" in page.text
    local = with_protection(tmp_path / "local", "{privacy: {mode: local}}")
    assert "No noise hides" not in local.text
    assert "The hub is not trusted" in local.text


def test_what_is_spent_stands_in_a_table(tmp_path: Path) -> None:
    spent = [
        {
            "event": "privacy",
            "round": n,
            "party": "hub",
            "epsilon": n + 1.0,
            "delta": 0.01,
            "unit": "site",
            "bound": "rdp",
        }
        for n in range(3)
    ]
    rows = spent_rows(spent)
    assert [rows[0][name] for name in ("releases", "first", "middle", "last")] == [
        "3",
        "1",
        "2",
        "3",
    ]
    assert spent_rows([{**spent[0], "epsilon": None}])[0]["last"] == "∞"


def test_shapes_of_what_left_stand_by_the_operation(tmp_path: Path) -> None:
    event = {**replied(0, "image-1", "contrast", 2000), "shapes": {"representations": "300 x 64"}}
    page = report(folder(tmp_path, events=[*history(), event]))
    assert "representations 300 x 64" in page.text


def test_every_kind_has_its_words() -> None:
    assert set(Kind) <= set(ABOUT)
    assert set(ASKED) == set(Kind) - {Kind.METRIC}


def test_bytes_of_a_failed_request_count_on_their_way_down() -> None:
    failed = {"event": "failed", "round": 0, "site": "a", "op": "train", "tag": "0.0.1"}
    traffic = traffic_of(
        [
            {**failed, "down": {"frame": 100, "weights": 90}, "error": "no"},
            {**failed, "site": "b", "error": "no answer"},
        ]
    )
    assert (traffic.down.frames, traffic.down.of("weights"), traffic.down.of(REST)) == (100, 90, 10)
    assert (traffic.up.frames, traffic.up.messages) == (0, 0)
    assert traffic.participations("a") == 0


def test_evaluation_counts_as_taking_part_only_where_nothing_else_was_asked() -> None:
    both = [replied(0, "a", "contrast", 9), replied(0, "b", "evaluate", 9)]
    assert traffic_of(both).participations("b") == 0
    assert traffic_of(both[1:]).participations("b") == 1


def test_pictures_before_and_after(tmp_path: Path) -> None:
    page = report(folder(tmp_path, gallery=GALLERY))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert all(attributes.get("alt") for attributes in images)
    assert [image["src"][-4:] for image in images] == ["AAAA", "BBBB", "CCCC", "AAAA", "CCCC"]
    kinds = [a["class"] for tag, a in page.tags if tag == "li" and "tile" in a.get("class", "")]
    assert kinds == ["tile same", "tile other", "tile right", "tile other"]
    assert "a cat (the right picture)" in page.html
    assert "right picture: place 3 of 400" in page.text
    assert "right picture: place 1 of 400" in page.text
    assert "Chance alone would give the right picture place 200" in page.text


def test_a_run_without_pictures_has_no_such_section(tmp_path: Path) -> None:
    path = folder(tmp_path, gallery={"pictures": {}, "stages": {"before": [], "after": []}})
    assert "What the server finds for a caption" not in report(path).headings()


def test_the_preview_shows_modalities_and_labels(tmp_path: Path) -> None:
    preview = {
        "labels": ["cats", "dogs"],
        "sites": {
            "image-1": {"rows": 1200, "present": {"image": 1200}, "labels": [1200, 0]},
            "pair-1": {"rows": 30, "present": {"image": 25, "text": 30}, "labels": [10, 20]},
        },
    }
    page = report(folder(tmp_path, preview=preview))
    assert "Who holds what" in page.headings()
    assert "image-1 1,200 1,200 0 1 of 2 cats: 1200 pair-1 30 25 30 2 of 2" in page.text
    assert "at a site at most 1,200" in page.text
    squares = re.findall(r'<rect[^>]*fill-opacity="(.*?)"', page.html)
    # The square root, so that few rows can be seen beside many.
    assert squares == ["1.00", "0.09", "0.13"]


def test_the_preview_of_public_and_test_set_does_not_set_the_scale(tmp_path: Path) -> None:
    site = {"rows": 4, "present": {"image": 4}, "labels": [4, 0]}
    test = {"rows": 900, "present": {"image": 900}, "labels": [800, 100]}
    told = {"about": "group", "labels": ["a", "b"], "sites": {"one": site}, "test": test}
    page = report(folder(tmp_path, preview={**told, "public": None}))
    assert "how many of the 2 values of group occur" in page.text
    assert "one 4 4 1 of 2 a: 4 test set 900 900 2 of 2" in page.text
    assert re.findall(r'<rect[^>]*fill-opacity="(.*?)"', page.html) == ["1.00"] * 3


def test_a_preview_without_labels_shows_modalities_alone(tmp_path: Path) -> None:
    site = {"rows": 4, "present": {"image": 4, "text": 3}, "labels": []}
    page = report(folder(tmp_path, preview={"about": "", "labels": [], "sites": {"one": site}}))
    assert "one 4 4 3" in page.text
    assert "squares" not in page.text


def test_too_many_labels_are_counted_and_not_drawn(tmp_path: Path) -> None:
    site = {"rows": 5000, "present": {"image": 5000}, "labels": [1] * 5000}
    names = [str(i) for i in range(5000)]
    page = report(folder(tmp_path, preview={"labels": names, "sites": {"one": site}}))
    assert "5000 of 5000" in page.text
    assert len(page.html) < 100_000


def test_many_sites_stay_readable(tmp_path: Path) -> None:
    events = history()
    sites = {f"s-{i:03}": {"modalities": ["image"], "rows": 5, "model": "m"} for i in range(100)}
    events[1]["sites"] = sites
    events += [metric(2, name, accuracy=float(i % 90)) for i, name in enumerate(sites)]
    page = report(folder(tmp_path, events))
    assert "101 sites; names and values are in the table" in page.text
    assert len(page.html) < 300_000


def test_labels_keep_their_order_and_their_distance() -> None:
    places = apart([50, 50, 51, 10, 99], 10, 0, 100)
    assert [sorted(places).index(place) for place in places] == [1, 2, 3, 0, 4]
    ordered = sorted(places)
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(ordered))
    assert min(places) >= 0
    assert max(places) <= 100
    assert apart([0, 0, 1], 10, 0, 100) == [0, 10, 20]
    assert apart([99, 100, 100], 10, 0, 100) == [80, 90, 100]


def test_labels_that_do_not_fit_share_the_room() -> None:
    assert sorted(apart([100.0] * 5, 40, 0, 100)) == pytest.approx([0, 25, 50, 75, 100])


def test_a_chart_without_any_point() -> None:
    assert "<svg" in line_chart([], label="nothing")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345_678, "12.3 MB"), (5e9, "5.00 GB")],
)
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text


def test_numbers() -> None:
    assert number(-0.04, sign=True) == "0.0"
    assert number(-3.14, 2) == "−3.14"
    assert number(2, sign=True) == "+2.0"
    assert number(float("nan")) == "–"
    assert [digits_for(values) for values in ([12.0, 0.1], [-1.5], [0.2], [])] == [1, 2, 3, 3]
    assert [duration(s) for s in (25.2, 300, 7300)] == ["25 s", "5 min", "2.0 h"]
